"""One registry class for every list of named parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from cmibq.errors import ConfigError, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(Generic[T]):
    """Exact names to parts; a duplicate is an error, an unknown name lists the known ones.

    Third parties add parts through the entry-point group ``cmibq.<concept>``: each entry point is
    loaded on the first look-up of its own name and must register itself or be the part.

    Args:
        concept: what the parts are, in the singular ("search", "model family"); used in messages
            and, with blanks replaced by ``_``, as the entry-point group.

    Example:
        >>> SHAPES: Registry[type] = Registry("shape")
        >>> @SHAPES.register("int")
        ... class Whole: ...
        >>> SHAPES["int"].__name__
        'Whole'
    """

    def __init__(self, concept: str) -> None:
        self.concept = concept
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that files a part under `name`.

        Raises:
            ConfigError: the name is taken.
        """

        def add(part: T) -> T:
            if name in self._parts:
                raise ConfigError(
                    f"{self.concept} {name!r} is registered twice ({self._parts[name]!r} and "
                    f"{part!r}); choose another name"
                )
            self._parts[name] = part
            return part

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._parts:
            self._load_plugin(name)
        if name not in self._parts:
            raise ConfigError(f"unknown {self.concept} {name!r}; {nearest(name, self._parts)}")
        return self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def _load_plugin(self, name: str) -> None:
        group = "cmibq." + self.concept.replace(" ", "_")
        for entry in entry_points(group=group, name=name):
            part = entry.load()
            self._parts.setdefault(name, part)
