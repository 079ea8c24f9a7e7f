"""Large arrays from huge pages, their memory used again by later calls.

A fresh 64 MiB array costs 16384 page faults before the first result is in it: several times what
the kernel needs to fill it. Results of `LARGE` bytes and more therefore come from anonymous memory
that asks the kernel for huge pages, and when the last array, view or tensor over such memory is
gone it goes to a free list, from which the next result is taken. The list holds at most `CAP` bytes
(oldest out first), counts as resident memory of the process, and empties with `clear`.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "CAP",
    "LARGE",
    "clear",
    "drop",
    "empty",
    "held",
    "mapped_files",
    "page_out",
    "pages",
    "scratch",
    "trim",
]

LARGE = 4 << 20
"""Bytes from which an array is worth its own pages: two huge pages."""
CAP = 512 << 20
"""Most bytes that wait for their next use."""
HUGE_PAGE = 2 << 20
_PAGE_OUT = 21  # MADV_PAGEOUT: never loses what was written, unlike MADV_DONTNEED
_DROP = 4  # MADV_DONTNEED


_Block = tuple[mmap.mmap, int]
"""A mapping, and the address of its first huge page."""


class _Pool:
    """Mappings that nobody refers to, oldest first."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start anew; also in a forked child, where another thread may have held the lock."""
        self.lock = threading.RLock()  # a collection inside it may give back another mapping
        self.free: list[_Block] = []
        self.size = 0

    def take(self, size: int) -> _Block:
        """Return a mapping of at least `size` bytes and at most a quarter more."""
        most, best = size + size // 4 + 1, None
        with self.lock:
            for block in self.free:
                if size <= len(block[0]) < most:
                    best, most = block, len(block[0])
            if best is not None and best in self.free:  # unless a collection unmapped it
                self.free.remove(best)
                self.size -= most
                return best
        return _map(size)

    def give(self, block: _Block) -> None:
        """Keep a mapping for later; unmap the oldest beyond `CAP`."""
        with self.lock:
            self.free.append(block)
            self.size += len(block[0])
            while self.size > CAP:
                self.size -= len(self.free.pop(0)[0])


def _map(size: int) -> _Block:
    try:
        mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:  # the latter: not even an address has that many bits
        raise MemoryError(f"cannot map {size} bytes for a result: {error}") from error
    start: int = np.frombuffer(mapping, np.uint8).__array_interface__["data"][0]
    with contextlib.suppress(OSError, AttributeError):  # a kernel or system without huge pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping, -(-start // HUGE_PAGE) * HUGE_PAGE


class _Owner:
    """What arrays over a mapping refer to; gives it back when the last of them is gone.

    Short on purpose: it runs where a kernel has just filled the caches with its result, so that
    every line of code comes from memory (100 us in all was an eighth of a thread's fakequant).
    """

    __slots__ = ("__array_interface__", "block", "pool")

    def __init__(
        self, pool: _Pool, size: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.pool = pool
        # One huge page more than needed: address space, of which only whole pages are ever touched.
        self.block = pool.take(-(-size // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE)
        self.__array_interface__ = {
            "version": 3,
            "data": (self.block[1], False),
            "shape": shape,
            "typestr": dtype.str,
        }

    def __del__(self) -> None:
        if hasattr(self, "block"):
            self.pool.give(self.block)


class _Once(_Pool):
    """Mappings that nobody uses again."""

    def take(self, size: int) -> _Block:
        """Return a new mapping."""
        return _map(size)

    def give(self, block: _Block) -> None:
        """Keep nothing."""


_POOL = _Pool()
_ONCE = _Once()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forget)


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Return an array whose values are not set, from huge pages where it is large.

    Args:
        shape: its sizes.
        dtype: its type.

    Returns:
        A C-contiguous array. Its memory is used again only when no array, view or tensor over it
        is left.

    Raises:
        MemoryError: no memory of that size.

    Example:
        >>> empty((2, 3)).shape
        (2, 3)
    """
    shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(shape)
    kind = np.dtype(dtype)
    size = prod(shape) * kind.itemsize
    if size < LARGE or kind.hasobject or kind.names:  # an interface has no names of fields
        return np.empty(shape, kind)
    return np.asarray(_Owner(_POOL, size, shape, kind))


def scratch(size: int) -> NDArray[np.uint8]:
    """Return bytes for the time of a call, from huge pages where they are many.

    Unlike those of `empty` they go back to the system at once, so that a call that needs much room
    leaves nothing behind.

    Example:
        >>> len(scratch(3))
        3
    """
    if size < LARGE:
        return np.empty(size, np.uint8)
    return np.asarray(_Owner(_ONCE, size, (size,), np.dtype(np.uint8)))


def pages(size: int) -> NDArray[np.uint8]:
    """Return bytes that are 0, in ordinary pages of their own where they are many.

    For memory that is filled bit by bit: only pages that were written to are there, and they go
    back to the system with the array, whatever lies around it.

    Example:
        >>> int(pages(3).sum())
        0
    """
    if size < LARGE // 8:
        return np.zeros(size, np.uint8)
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"cannot map {size} bytes: {error}") from error


def mapped_files(ending: str) -> list[tuple[int, int]]:
    """Return (first, end) of the addresses at which files with such names are mapped.

    Args:
        ending: of the names.

    Returns:
        Ranges in bytes; none on systems other than Linux.

    Example:
        >>> mapped_files(".no-such-file")
        []
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    spans = (line.split(maxsplit=1)[0].split("-") for line in lines if line.endswith(ending))
    return [(int(first, 16), int(end, 16)) for first, end in spans]


def page_out(start: int, size: int) -> None:
    """Give back memory that is mapped from a file and not needed for a while.

    The next use reads it from the file again. Values that no file has stay in memory, and so does
    everything on systems other than Linux.

    Args:
        start: address.
        size: bytes; whole pages of them are given back.

    Example:
        >>> page_out(0, 0)
    """
    _advise(start, size, _PAGE_OUT)


def drop(start: int, size: int) -> None:
    """Take memory that is mapped from a file, and was never written to, out of the process at once.

    The next use reads it from the file again. What was written is lost: see `page_out`.

    Args:
        start: address.
        size: bytes; whole pages of them are dropped. Nothing happens on systems other than Linux.

    Example:
        >>> drop(0, 0)
    """
    _advise(start, size, _DROP)


def _advise(start: int, size: int, advice: int) -> None:
    """Tell the system something about the whole pages of a piece of memory."""
    page = mmap.PAGESIZE
    first, last = -(-start // page) * page, (start + size) // page * page
    if sys.platform == "linux" and last > first:
        where, length = ctypes.c_void_p(first), ctypes.c_size_t(last - first)
        ctypes.CDLL(None).madvise(where, length, advice)


def held() -> int:
    """Return the bytes that wait for their next use; they count as memory of this process.

    Example:
        >>> clear()
        >>> held()
        0
    """
    return _POOL.size


def trim() -> None:
    """Give free pages of the C library's heap back to the system, where it can (glibc).

    Aligned blocks of some megabytes leave holes there that the next ones of their size do not fit
    into, so that a heap grows though nothing is kept.

    Example:
        >>> trim()
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def clear() -> None:
    """Give the waiting memory back to the system.

    Example:
        >>> large = empty(LARGE, np.uint8)
        >>> del large
        >>> held() >= LARGE
        True
        >>> clear()
    """
    with _POOL.lock:
        _POOL.free.clear()
        _POOL.size = 0
