"""Tensors in files: same values, nothing left behind, clear errors; same result of a whole run."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import StorageError
from cmibq.ptq import quantize
from cmibq.ptq.fit import Fit
from cmibq.ptq.spill import Room, resident
from cmibq.recipe import QuantRecipe

MODULE = sys.modules["cmibq.ptq.quantize"]


def test_beyond_the_budget_tensors_lie_in_files(tmp_path: Path) -> None:
    room = Room(tmp_path / "scratch", budget=100)
    first = room.keep(torch.arange(20.0))
    assert (room.held, room.filed) == (80, 0)
    second = room.keep(torch.arange(30.0).reshape(5, 6))
    assert room.held == 80
    assert room.filed >= 120
    assert list((tmp_path / "scratch").iterdir()) == []  # a kill leaves nothing behind
    room.release()
    assert torch.equal(second, torch.arange(30.0).reshape(5, 6))
    view = second[1:]
    filed = room.filed
    del second, first
    assert (room.held, room.filed) == (0, filed)  # a view keeps it
    del view
    assert (room.filed, room.most_filed) == (0, filed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
@pytest.mark.parametrize("budget", [None, 0])
def test_any_type_and_size(tmp_path: Path, dtype: torch.dtype, budget: int | None) -> None:
    room = Room(tmp_path, budget)
    for shape in ((0,), (0, 3), (1,), (3, 5, 7), (64, 65)):
        t = torch.randint(0, 2, shape).to(dtype)
        assert torch.equal(room.keep(t), t)
    parts = [torch.rand(2, 3), torch.empty(0), torch.rand(4)]
    made = room.empty_like(parts)
    assert [m.shape for m in made] == [p.shape for p in parts]
    assert made[2].data_ptr() - made[0].data_ptr() == 24  # one piece
    assert room.empty_like([]) == []


@pytest.fixture
def small_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, small_files: None) -> None:
    room = Room(tmp_path, budget=0)
    with pytest.raises(StorageError, match="free space or choose another place") as error:
        room.empty((1 << 20,))
    assert error.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []
    assert room.filed == 0


def test_resident_memory_is_given_back_below_the_limit(tmp_path: Path) -> None:
    size = 64 << 20
    room = Room(tmp_path, budget=0, limit=1)
    t = room.empty((size,), torch.uint8).fill_(7)
    before = resident()
    if before == 0:
        pytest.skip("this system does not tell how much memory a process has")
    with room.guarded():
        while resident() > before - size // 2:
            pass
    assert int(t[::4096].sum()) == 7 * len(t[::4096])


def recipe(model: Path, items: Path, out: Path, **fields: Any) -> QuantRecipe:
    given: dict[str, Any] = {"method": "mbq", "reweight": True, "w_bit": 3, "n_grid": 4}
    given |= {"run_process": True, "w_group": 32, "threads": 1, "data_path": str(items)}
    return QuantRecipe(model_args=f"pretrained={model}", output_path=str(out), **given | fields)


@pytest.mark.parametrize("fields", [{}, {"method": "awq", "reweight": False, "effort": "race"}])
def test_a_run_on_files_gives_the_same_bytes(
    tmp_path: Path,
    llava_dir: Path,
    items_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    quantize(recipe(llava_dir, items_path, tmp_path / "a", **fields), progress=False)
    rooms: list[Room] = []
    real = MODULE.prepare

    def on_files(*args: Any) -> Any:
        return replace(real(*args), fit=Fit(room=0))

    def note(*args: Any) -> Room:
        rooms.append(Room(*args))
        return rooms[0]

    monkeypatch.setattr(MODULE, "prepare", on_files)
    monkeypatch.setattr(MODULE, "Room", note)
    quantize(recipe(llava_dir, items_path, tmp_path / "b", **fields), progress=False)
    assert rooms[0].most_filed > 100_000
    assert rooms[0].held == rooms[0].filed == 0
    name = "cmibq.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_full_disk_ends_a_run_with_its_blocks_kept(
    tmp_path: Path,
    llava_dir: Path,
    items_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, real, calls = recipe(llava_dir, items_path, tmp_path / "a"), MODULE.prepare, 0

    def full(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:  # in the second block
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, "prepare", lambda *a: replace(real(*a), fit=Fit(room=0)))
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(StorageError, match="free space"):
            quantize(asked, progress=False)
    assert real(asked).journal.read_block(0) is not None
    assert not quantize(asked, progress=False).skipped
