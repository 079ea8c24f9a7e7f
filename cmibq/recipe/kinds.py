"""Which values a field takes, by its type hint; the same for Python, flags and YAML files."""

from __future__ import annotations

import types
import typing
from typing import Any, Final

from cmibq.errors import ConfigError

__all__ = ["allowed_kinds", "check_kinds", "hints_of", "plain_types"]

_KINDS: Final = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def hints_of(cls: type[Any]) -> dict[str, Any]:
    """Return the type hints of the fields of a dataclass."""
    return typing.get_type_hints(cls)


def plain_types(hint: Any) -> tuple[type, ...]:
    """Return the plain types that a hint such as ``int | None`` allows.

    Example:
        >>> plain_types(int | None)
        (<class 'int'>,)
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(part for part in typing.get_args(hint) if part is not type(None))
    return (hint,)


def allowed_kinds(hint: Any) -> str:
    """Say what a hint allows.

    Example:
        >>> allowed_kinds(bool | None)
        'true or false or null'
    """
    kinds = [_KINDS.get(part, str(part)) for part in plain_types(hint)]
    return " or ".join([*kinds, "null"] if plain_types(hint) != (hint,) else kinds)


def _fits(value: Any, hint: Any) -> bool:
    plain = plain_types(hint)
    if value is None:
        return plain != (hint,)
    if isinstance(value, bool):
        return bool in plain
    return isinstance(value, (*plain, int) if float in plain else plain)


def check_kinds(recipe: Any) -> None:
    """Refuse a field of another type than its hint, such as a `Path` where text is stored.

    Args:
        recipe: a dataclass.

    Raises:
        ConfigError: naming the field, the value and what is allowed.
    """
    for name, hint in hints_of(type(recipe)).items():
        value = getattr(recipe, name)
        if not _fits(value, hint):
            cure = f", such as str({name})" if plain_types(hint) == (str,) else ""
            raise ConfigError(f"{name} is {value!r}; it must be {allowed_kinds(hint)}{cure}")
