"""Exceptions: every message names the argument, its value, what is allowed and the next step."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

__all__ = [
    "CmibqError",
    "ConfigError",
    "DataError",
    "ModelError",
    "PackageError",
    "StorageError",
    "check_axis",
    "check_tokens",
    "nearest",
    "refuse_step_size",
]


class CmibqError(ValueError):
    """Base of all errors raised by cmibq for something the caller can put right."""


class ConfigError(CmibqError):
    """A recipe, flag or YAML key is unknown, out of range or conflicts with another."""


class DataError(CmibqError):
    """A data file, line, image or tensor cannot be used."""


class ModelError(CmibqError):
    """A model, layer or weight cannot be used (unsupported family, NaN weights, wrong shape)."""


class PackageError(CmibqError):
    """A saved package is truncated, altered, of a newer version or otherwise unreadable."""


class StorageError(OSError, CmibqError):
    """A file cannot be written (disk full, not permitted); has ``errno`` and ``filename``."""

    def __str__(self) -> str:
        return f"{self.filename}: {self.strerror}"


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a hint that names what comes closest to an unknown name.

    Args:
        name: the unknown name.
        known: all allowed names.
        limit: how many close names to offer at most.

    Returns:
        ``"did you mean 'w_bit'?"`` or, where nothing is close, ``"known: 'a', 'b'"``.

    Example:
        >>> nearest("w_bits", ["w_bit", "a_bit"], limit=1)
        "did you mean 'w_bit'?"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "known: " + ", ".join(repr(n) for n in names)


def check_axis(axis: int) -> None:
    """Refuse an axis of a matrix other than 0 (per row) and 1 (per column).

    Raises:
        ConfigError: `axis` is something else; negative axes too.
    """
    if axis not in (0, 1):
        raise ConfigError(f"axis is {axis!r}; allowed are 0 (per row) and 1 (per column)")


def check_tokens(name: str, shape: tuple[int, ...]) -> None:
    """Refuse what is no batch of sequences.

    Args:
        name: of the argument.
        shape: its sizes; [B, L, D] is allowed.

    Raises:
        ConfigError: another number of dimensions.

    Example:
        >>> check_tokens("xq", (5, 8))
        Traceback (most recent call last):
        ...
        cmibq.errors.ConfigError: xq has shape [5, 8]; give [B, L, D], for one sequence with B = 1
    """
    if len(shape) != 3:
        raise ConfigError(
            f"{name} has shape {list(shape)}; give [B, L, D], for one sequence with B = 1"
        )


def refuse_step_size(at: int, value: float) -> NoReturn:
    """Refuse a step size that no power of two stands for.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"power_of_two: scale[{at}] is {value}; step sizes must be > 0 and at most 2**127, "
        "such as qparams returns"
    )
