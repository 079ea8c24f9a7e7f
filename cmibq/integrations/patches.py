"""Attributes of other people's classes, replaced and put back."""

from __future__ import annotations

from typing import Any

__all__ = ["Patches"]

_MISSING = object()


class Patches:
    """A list of replaced attributes.

    Example:
        >>> class Host:
        ...     size = 1
        >>> patches = Patches()
        >>> patches.set(Host, "size", 2)
        >>> Host.size
        2
        >>> patches.undo()
        >>> Host.size
        1
    """

    def __init__(self) -> None:
        self._done: list[tuple[Any, str, Any]] = []

    def __bool__(self) -> bool:
        """Return whether anything is replaced."""
        return bool(self._done)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace an attribute of a class or a module; one that it inherits is covered."""
        self._done.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, value)

    def undo(self) -> None:
        """Put everything back, the last first."""
        while self._done:
            owner, name, value = self._done.pop()
            if value is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
