"""Writing files so that a reader, a crash or a full disk never sees half of one."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import itertools
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from cmibq.errors import DataError, StorageError

__all__ = [
    "atomic_dir",
    "atomic_write",
    "check_writable",
    "explain",
    "fsync_dir",
    "read_json",
    "sha256_bytes",
    "sha256_file",
    "write_bytes",
    "write_json",
    "write_text",
]

_CHUNK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_counter = itertools.count()


def explain(error: OSError, path: Path) -> StorageError:
    """Return an operating-system error as one that says what to do."""
    if error.errno in _FULL:
        step = "the disk, quota or file size limit is exhausted; free space or choose another place"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        step = "writing there is not permitted; choose a folder you may write to"
    else:
        step = "choose another place"
    return StorageError(error.errno or 0, f"cannot write ({error.strerror or error}): {step}", path)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "-", platform.node()) or "host"


def _temporary(path: Path) -> Path:
    """Return a name in the folder of `path` that no other writer uses."""
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{next(_counter)}.part")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` on this machine left behind when they were killed."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{re.escape(_host())}\.(\d+)\.\d+\.part")
    for other in path.parent.iterdir():
        match = pattern.fullmatch(other.name)
        if match and not _alive(int(match.group(1))):
            _discard(other)


def _discard(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):  # these never raise
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def fsync_dir(path: Path) -> None:
    """Make new names in a folder survive a power cut (no effect where folders cannot be synced)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _storage(path: Path, temporary: Path) -> Iterator[None]:
    """Discard `temporary` on any error and explain those that come from writing it."""
    try:
        yield
    except OSError as error:
        _discard(temporary)
        names = [str(n) for n in (error.filename, error.filename2) if n is not None]
        ours = str(path.parent)
        near = all(n.startswith(ours) or ours.startswith(n) for n in names)
        if isinstance(error, StorageError) or not near:
            raise
        raise explain(error, path) from error
    except BaseException:
        _discard(temporary)
        raise


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete and on disk.

    Written beside the target, flushed with ``fsync``, then renamed over it. If the body raises,
    the old file (or its absence) is left exactly as it was. Missing parent folders are made; a
    symbolic link is followed.

    Args:
        path: file to write or replace.

    Yields:
        A binary file.

    Raises:
        StorageError: disk full, not permitted, or `path` is a folder.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp(), "a.bin")
        >>> with atomic_write(target) as file:
        ...     _ = file.write(b"abc")
        ...     assert not target.exists()
        >>> target.read_bytes()
        b'abc'
    """
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    with _storage(target, temporary):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        fsync_dir(target.parent)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check that a file or folder can be made at `path`, before the work that fills it.

    An empty file is made in the nearest folder that exists, and removed.

    Raises:
        StorageError: disk full, not permitted, or a file stands where a folder is needed.
    """
    target = Path(os.path.realpath(path))
    temporary = next(p for p in target.parents if p.exists()) / _temporary(target).name
    try:
        temporary.touch(exist_ok=False)
        temporary.unlink()
    except OSError as error:
        raise explain(error, target) from error


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, exchange = -100, 2
    names = os.fsencode(first), os.fsencode(second)
    return swap is not None and swap(at_cwd, names[0], at_cwd, names[1], exchange) == 0


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            handle = os.open(Path(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        fsync_dir(Path(parent))


def _check_free(target: Path, overwrite: bool) -> None:
    if target.exists() and not target.is_dir():
        raise StorageError(errno.ENOTDIR, "is a file; choose the name of a folder", target)
    if not overwrite and target.exists() and any(target.iterdir()):
        raise StorageError(
            errno.EEXIST, "the folder is not empty; choose another or set overwrite", target
        )


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is complete and on disk.

    Args:
        path: folder to make. An existing empty one is replaced.
        overwrite: replace an existing folder that is not empty; until then it stays as it is.

    Yields:
        The temporary folder to fill, beside the target.

    Raises:
        StorageError: `path` exists and `overwrite` is not set, disk full, not permitted.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp(), "package")
        >>> with atomic_dir(target) as folder:
        ...     _ = (folder / "a.txt").write_text("x")
        >>> [file.name for file in target.iterdir()]
        ['a.txt']
    """
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    with _storage(target, temporary):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        _check_free(target, overwrite)
        temporary.mkdir()
        yield temporary
        _sync_tree(temporary)
        _check_free(target, overwrite)  # another process may have made it meanwhile
        if target.exists() and any(target.iterdir()):
            if not _exchange(temporary, target):
                old = _temporary(target)
                os.replace(target, old)
                os.replace(temporary, target)
                temporary = old
            _discard(temporary)
        else:
            os.replace(temporary, target)
        fsync_dir(target.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically; see `atomic_write`."""
    with atomic_write(path) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], content: str) -> None:
    """Write a UTF-8 file atomically; see `atomic_write`."""
    write_bytes(path, content.encode())


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 1) -> None:
    """Write a JSON file atomically; NaN and infinity are refused because JSON has none."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str], *, limit: int = 1 << 28) -> Any:
    """Read a JSON file.

    Args:
        path: UTF-8 file.
        limit: largest size in bytes that is read.

    Raises:
        DataError: the file is missing, too large, or not JSON; the message names file and line.
    """
    file = Path(path)
    try:
        size = file.stat().st_size
        if size > limit:
            raise DataError(f"{file} has {size} bytes; at most {limit} are read")
        return json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); check the path") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: not valid JSON ({error.msg})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{file} is not a JSON text ({type(error).__name__})") from error


def sha256_bytes(content: bytes) -> str:
    """Return the SHA-256 of some bytes as hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's content as hex digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
