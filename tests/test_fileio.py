from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cmibq import fileio
from cmibq.errors import CmibqError, DataError, StorageError


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run as a user without rights: root may write anywhere, which would hide what is tested."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def run_python(code: str, *args: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE)


def test_writes_and_makes_parents(tmp_path: Path) -> None:
    fileio.write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"
    assert names(tmp_path / "a" / "b") == ["c.txt"]


def test_bare_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fileio.write_text("c.txt", "x")
    assert names(tmp_path) == ["c.txt"]


def test_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    fileio.write_text(tmp_path / "link", "new")
    assert (tmp_path / "real").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


def test_error_in_the_body_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def interrupted() -> None:
        with fileio.atomic_write(target) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_foreign_os_error_is_not_blamed_on_the_target(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="/no/such"), fileio.atomic_write(tmp_path / "a"):
        open("/no/such")
    assert names(tmp_path) == []


def write_file(folder: Path) -> None:
    fileio.write_bytes(folder / "a", bytes(100_000))


def write_folder(folder: Path) -> None:
    with fileio.atomic_dir(folder / "a", overwrite=True) as inner:
        (inner / "x").write_bytes(bytes(100_000))


WRITERS = [write_file, write_folder]


@pytest.mark.parametrize("write", WRITERS)
def test_full_disk(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with file_size_limit(5000), pytest.raises(StorageError, match="free space") as caught:
        write(tmp_path)
    assert caught.value.errno == errno.EFBIG
    assert isinstance(caught.value, OSError)
    assert isinstance(caught.value, CmibqError)
    assert str(tmp_path / "a") in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", WRITERS)
def test_no_space_left(
    tmp_path: Path, write: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device.*free space"):
        write(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("write", WRITERS)
def test_read_only_folder(tmp_path: Path, write: Callable[[Path], None]) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    for part in (folder, *folder.parents):
        if part.is_relative_to("/tmp") and part != Path("/tmp"):
            part.chmod(0o755)
    folder.chmod(0o555)
    with unprivileged(), pytest.raises(StorageError, match=r"not permitted.*choose"):
        write(folder)
    folder.chmod(0o755)
    assert names(folder) == []


def test_target_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="choose another place"):
        fileio.write_text(tmp_path / "a", "x")
    assert names(tmp_path) == ["a"]


def test_leftovers_of_killed_writers_go_and_those_of_live_ones_stay(tmp_path: Path) -> None:
    code = """
import sys, time
from cmibq import fileio
with fileio.atomic_write(sys.argv[1]) as file:
    file.write(b"x" * 1000); file.flush()
    print("ready", flush=True)
    time.sleep(60)
"""
    target = tmp_path / "a.txt"
    target.write_text("old")
    child = run_python(code, target)
    assert child.stdout is not None
    child.stdout.readline()
    assert len(names(tmp_path)) == 2
    fileio.write_text(tmp_path / "b.txt", "")
    with fileio.atomic_write(target):
        assert len([n for n in names(tmp_path) if n.endswith(".part")]) == 2
    child.send_signal(signal.SIGKILL)
    child.communicate()
    fileio.write_text(target, "new")
    assert names(tmp_path) == ["a.txt", "b.txt"]
    assert target.read_text() == "new"


def test_killed_at_any_time_a_file_is_old_or_new(tmp_path: Path) -> None:
    code = """
import sys
from cmibq import fileio
print("ready", flush=True)
for i in range(10**9):
    fileio.write_bytes(sys.argv[1] + "/file", bytes([i % 256]) * 300_000)
    with fileio.atomic_dir(sys.argv[1] + "/folder", overwrite=True) as inner:
        (inner / "a").write_bytes(bytes([i % 256]) * 1000)
        (inner / "b").write_bytes(bytes([i % 256]) * 1000)
"""
    for round_ in range(6):
        child = run_python(code, tmp_path)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.01 + 0.013 * round_)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        if (tmp_path / "file").exists():
            content = (tmp_path / "file").read_bytes()
            assert len(content) == 300_000
            assert len(set(content)) == 1
        if (tmp_path / "folder").exists():
            assert names(tmp_path / "folder") == ["a", "b"]
            assert len({(tmp_path / "folder" / n).read_bytes() for n in "ab"}) == 1


def test_folder_replaces_only_when_told(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with fileio.atomic_dir(target) as folder:
        (folder / "old").touch()
    with pytest.raises(StorageError, match=r"not empty.*overwrite"), fileio.atomic_dir(target):
        pass
    with pytest.raises(RuntimeError), fileio.atomic_dir(target, overwrite=True) as folder:
        raise RuntimeError
    assert names(target) == ["old"]
    with fileio.atomic_dir(target, overwrite=True) as folder:
        (folder / "new").touch()
        assert names(target) == ["old"]
    assert names(target) == ["new"]
    assert names(tmp_path) == ["a"]


def test_folder_made_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a"

    def fill() -> None:
        with fileio.atomic_dir(target):
            target.mkdir()
            (target / "theirs").touch()

    with pytest.raises(StorageError, match="not empty"):
        fill()
    assert names(target) == ["theirs"]
    assert names(tmp_path) == ["a"]


def test_places_are_checked_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fileio.check_writable(tmp_path / "new" / "folder" / "a")
    for bad in (tmp_path / "file" / "a", tmp_path / ("n" * 250)):
        with pytest.raises(StorageError, match="cannot write"):
            fileio.check_writable(bad)
    assert names(tmp_path) == ["file"]


def test_folder_replaced_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fileio, "_exchange", lambda a, b: False)
    test_folder_replaces_only_when_told(tmp_path)


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with (
        pytest.raises(StorageError, match="is a file"),
        fileio.atomic_dir(tmp_path / "a", overwrite=True),
    ):
        pass


def test_json_round_trip_and_no_nan(tmp_path: Path) -> None:
    value = {"ä": [1, 2.5, None, "x"]}
    fileio.write_json(tmp_path / "a.json", value)
    assert fileio.read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError, match="JSON compliant"):
        fileio.write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{\n"a": 1,\n]', "line 3: not valid JSON"),
        (b"\xff\xfe\xfa", "not a JSON text"),
        (b"[" * 200_000, "not a JSON text"),
        (b" " * 1001, "at most 1000"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        fileio.read_json(tmp_path / "a.json", limit=1000 if content[:1] == b" " else 1 << 20)


def test_missing_json(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.json cannot be read.*check the path"):
        fileio.read_json(tmp_path / "no.json")


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 700_000)
    assert fileio.sha256_file(tmp_path / "a") == fileio.sha256_bytes(b"abc" * 700_000)
    assert fileio.sha256_bytes(b"abc").startswith("ba7816bf")


def test_storage_error_pickles() -> None:
    error = pickle.loads(pickle.dumps(StorageError(28, "cannot write", "/a")))
    assert (error.errno, error.filename, str(error)) == (28, "/a", "/a: cannot write")
