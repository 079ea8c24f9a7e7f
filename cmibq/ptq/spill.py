"""Room for what a search keeps of all calibration tokens: memory up to a budget, then files.

A file is mapped into memory, so that whoever computes with its tensor need not know. Its name is
removed as soon as it is mapped: nothing is left behind by a process that ends or is killed. Pages
that have been looked at count as memory of the process until the system wants them back; under a
hard limit (`Room.limit`) a thread gives them back before that.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmibq import memory
from cmibq.fileio import explain

__all__ = ["Room", "give_back", "resident"]

_ALIGN = 64
_PAGE = mmap.ALLOCATIONGRANULARITY
_POLL_SECONDS = 0.01
_REST_SECONDS = 0.1  # after giving back was not enough
_WEIGHTS = ".safetensors"
_numbers = itertools.count()


def resident() -> int:
    """Return the bytes of memory that this process uses now; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        return 0


def _page_out_weights() -> None:
    """Give back all weights that are mapped from files."""
    for start, end in memory.mapped_files(_WEIGHTS):
        memory.page_out(start, end - start)


def give_back(tensors: Iterable[Tensor]) -> None:
    """Let the system have the memory of weights that are mapped from files, until they are read."""
    files = list(memory.mapped_files(_WEIGHTS))
    for t in tensors:
        if any(start <= t.data_ptr() < end for start, end in files):
            memory.page_out(t.data_ptr(), t.nbytes)


class Room:
    """Where tensors of all calibration tokens are kept.

    Args:
        folder: where files are made; made when the first one is.
        budget: bytes of tensors kept in memory at a time; those beyond lie in files. None = all in
            memory.
        limit: resident bytes of the process from which mapped pages are given back.

    Attributes:
        held: bytes in memory now.
        filed: bytes in files now.
        most_filed: largest `filed` so far.

    Example:
        >>> room = Room(Path("unused"), budget=100)
        >>> kept = room.empty((5, 4), torch.float32)
        >>> room.held, room.filed
        (80, 0)
    """

    def __init__(self, folder: Path, budget: int | None = None, limit: int | None = None) -> None:
        self.folder = folder
        self.budget = budget
        self.limit = limit
        self.held = self.filed = self.most_filed = 0
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Return a tensor whose values are not set; its room is free again when it is gone.

        Raises:
            StorageError: it belongs in a file and the disk is full.
        """
        size = prod(shape) * dtype.itemsize
        if self.budget is None or self.held + size <= self.budget:
            raw = np.empty(size + _ALIGN, np.uint8)
            self.held += size
            weakref.finalize(raw, self._leave, size, 0)
        else:
            raw = self._file(size)
            self.filed += len(raw)
            self.most_filed = max(self.most_filed, self.filed)
            weakref.finalize(raw, self._leave, 0, len(raw))
        first = -raw.ctypes.data % _ALIGN
        return torch.from_numpy(raw)[first : first + size].view(dtype).view(*shape)

    def keep(self, t: Tensor) -> Tensor:
        """Return a copy of a tensor."""
        return self.empty(t.shape, t.dtype).copy_(t)

    def empty_like(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Return one tensor of the size of each; together they are one piece of memory or file."""
        sizes = [p.numel() for p in parts]
        if not sizes:
            return []
        whole = self.empty((sum(sizes),), parts[0].dtype).split(sizes)
        return [w.view(p.shape) for w, p in zip(whole, parts, strict=True)]

    def _leave(self, held: int, filed: int) -> None:
        self.held -= held
        self.filed -= filed

    def _file(self, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        size = max(-(-size // _PAGE), 1) * _PAGE
        path = self.folder / f"spill-{os.getpid()}-{next(_numbers)}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(path, "w+b") as file:
                try:
                    # A hole that the disk cannot fill later would end the process with a signal.
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, size)
                    file.truncate(size)
                    mapping = mmap.mmap(file.fileno(), size)
                finally:
                    with contextlib.suppress(OSError):  # systems that keep names of open files
                        path.unlink()
        except OSError as error:
            raise explain(error, path) from error
        self._maps.add(mapping)
        return np.frombuffer(mapping, np.uint8)

    def release(self) -> None:
        """Give free memory and mapped pages back to the system; values stay, in files."""
        memory.clear()
        memory.trim()
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapping in list(self._maps):
                mapping.madvise(mmap.MADV_DONTNEED)
        if self.limit is not None and resident() > self.limit:
            _page_out_weights()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep the resident memory of the process below the limit, as far as files allow."""
        if self.limit is None:
            yield
            return
        done = threading.Event()
        watch = threading.Thread(target=self._watch, args=(done,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            done.set()
            watch.join()

    def _watch(self, done: threading.Event) -> None:
        pause = _POLL_SECONDS
        while not done.wait(pause):
            pause = _POLL_SECONDS
            if self.limit is not None and resident() > self.limit:
                self.release()
                pause = _REST_SECONDS if resident() > self.limit else _POLL_SECONDS
