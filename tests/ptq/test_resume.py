from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.io import load_scales
from cmibq.ptq import fit as fitting
from cmibq.ptq import prepare, quantize, stream
from cmibq.ptq import run as module
from cmibq.ptq.fit import encoded, smallest_needs
from cmibq.ptq.journal import GroupFound, Journal
from cmibq.ptq.needs import USUAL_BASE
from cmibq.recipe import QuantRecipe
from cmibq.search import GroupResult


def recipe(folder: Path, model: Path, items: Path) -> QuantRecipe:
    return QuantRecipe(
        model_args=f"pretrained={model}",
        data_path=str(items),
        method="mbq",
        reweight=True,
        run_process=True,
        w_bit=3,
        w_group=32,
        n_grid=5,
        threads=1,
        output_path=str(folder / "out"),
        scale_path=str(folder / "scales.safetensors"),
    )


def weights(folder: Path) -> bytes:
    return (folder / "out" / "cmibq.safetensors").read_bytes()


def same_scales(a: Path, b: Path) -> None:
    one, other = (load_scales(f / "scales.safetensors").entries for f in (a, b))
    for x, y in zip(one, other, strict=True):
        assert x[:2] == y[:2]
        assert torch.equal(x.scales, y.scales)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for n in "ab":
        (tmp_path / n).mkdir()
    return tmp_path / "a", tmp_path / "b"


def test_a_run_that_failed_between_blocks_goes_on(
    folders: tuple[Path, Path],
    llava_gqa_dir: Path,
    items_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole, broken = folders
    quantize(recipe(whole, llava_gqa_dir, items_path), progress=False)
    searched: list[int] = []
    real = module.search_block

    def fail(task: Any, index: int, *rest: Any) -> Any:
        if index == 2:
            raise KeyboardInterrupt
        searched.append(index)
        return real(task, index, *rest)

    asked = recipe(broken, llava_gqa_dir, items_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "search_block", fail)
        with pytest.raises(KeyboardInterrupt):
            quantize(asked, progress=False)
    assert searched == [0, 1]
    assert [p.name for p in broken.iterdir()] == [".out.work"]

    def only_last(task: Any, index: int, *rest: Any) -> Any:
        assert index == 2
        return real(task, index, *rest)

    monkeypatch.setattr(module, "search_block", only_last)
    monkeypatch.setattr(module, "add_gradients_", lambda *a: pytest.fail("gradients again"))
    assert not quantize(asked, progress=False).skipped
    assert sorted(p.name for p in broken.iterdir()) == ["out", "scales.safetensors"]
    same_scales(whole, broken)
    assert weights(whole) == weights(broken)


KILLED = """
import json, os, signal, sys
from cmibq.ptq import quantize, run
from cmibq.recipe import QuantRecipe
real = run.search_block
def search(task, index, *rest):
    if index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(task, index, *rest)
run.search_block = search
quantize(QuantRecipe(**json.loads(sys.argv[1])), progress=False)
"""


def test_a_killed_process_goes_on(
    folders: tuple[Path, Path], llava_dir: Path, items_path: Path
) -> None:
    from dataclasses import asdict

    whole, killed = folders
    quantize(recipe(whole, llava_dir, items_path), progress=False)
    asked = recipe(killed, llava_dir, items_path)
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(asdict(asked))],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [p.name for p in killed.iterdir()] == [".out.work"]
    journal = prepare(asked).journal
    assert journal.read_block(0) is not None
    assert journal.read_block(1) is None
    assert not quantize(asked, progress=False).skipped
    same_scales(whole, killed)
    assert weights(whole) == weights(killed)


def test_killed_between_scales_and_package(
    folders: tuple[Path, Path], llava_dir: Path, items_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, broken = folders
    asked = recipe(broken, llava_dir, items_path)

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["cmibq.ptq.quantize"], "save_package", fail)
        with pytest.raises(KeyboardInterrupt):
            quantize(asked, progress=False)
    assert (broken / "scales.safetensors").exists()
    monkeypatch.setattr(module, "search_block", fail)
    assert not quantize(asked, progress=False).skipped
    assert quantize(asked, progress=False).skipped


def test_the_journal_of_another_recipe_is_not_used(
    folders: tuple[Path, Path], llava_dir: Path, items_path: Path
) -> None:
    first = prepare(recipe(folders[0], llava_dir, items_path))
    first.journal.write_block(0, {})
    other = QuantRecipe(**{**first.recipe.__dict__, "w_bit": 4})
    assert prepare(other).journal.read_block(0) is None
    assert first.journal.read_block(0) == {}


def test_journal_keeps_everything_exactly(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "w", "f" * 64)
    assert journal.read_block(3) is None
    assert journal.read_ratios() is None
    scales = torch.rand(7)
    found = {
        "qkv": GroupFound(GroupResult(scales, [0.1, 1 / 3], 0.25), {"a.q": 1 / 7}),
        "o": GroupFound(GroupResult(None, [], None), {}),
    }
    journal.write_block(3, found)
    journal.write_ratios(torch.tensor([[1 / 3, 2 / 7]], dtype=torch.float64))
    back = journal.read_block(3)
    assert back is not None
    got = back["qkv"].result.scales
    assert got is not None
    assert torch.equal(got, scales)
    assert back["qkv"].result.losses == [0.1, 1 / 3]
    assert back["qkv"].errors == {"a.q": 1 / 7}
    assert back["o"] == found["o"]
    ratios = journal.read_ratios()
    assert ratios is not None
    assert ratios.tolist() == [[1 / 3, 2 / 7]]
    journal.remove()
    assert not (tmp_path / "w").exists()


def test_a_damaged_journal_is_searched_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, "f")
    journal.write_block(0, {})
    (path,) = (tmp_path / "f").iterdir()
    path.write_bytes(path.read_bytes()[:10])
    assert journal.read_block(0) is None
    assert "done again" in caplog.text


def test_a_flipped_bit_in_a_journal_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, "f")
    journal.write_block(0, {"o": GroupFound(GroupResult(torch.ones(7), [0.5], 0.25), {})})
    journal.write_rounded(0, {"a.weight": torch.ones(2, 3, dtype=torch.bfloat16)}, {"a": 0.5})
    assert journal.rounded() == {0}
    for path in (tmp_path / "f").iterdir():
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    assert journal.read_block(0) is None
    assert journal.read_rounded(0) is None
    assert journal.rounded() == set()
    assert caplog.text.count("the checksum differs") == 3


def test_memory_of_the_process_does_not_change_the_run(
    folders: tuple[Path, Path], llava_dir: Path, items_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit under which batches get smaller gives the same batches whatever is resident."""
    given = dataclasses.replace(recipe(folders[0], llava_dir, items_path), max_memory="5GB")
    samples = encoded(given, prepare(given).samples, llava_dir)
    monkeypatch.setattr(stream, "_LEAST_TOKENS", 1024)
    large, _ = smallest_needs(given, samples, llava_dir, None)
    cap = large.smallest - 10_000  # too little for the usual batches
    cap += USUAL_BASE - max(large.base, USUAL_BASE)
    found = set()
    for base in (100 << 20, USUAL_BASE - (1 << 20)):
        monkeypatch.setattr(fitting, "resident", lambda base=base: base)
        needs, tokens = smallest_needs(given, samples, llava_dir, cap)
        assert needs.base == base
        found.add(tokens)
    assert len(found) == 1
    assert None not in found


def test_a_result_that_was_not_verified_is_verified_later(
    folders: tuple[Path, Path], llava_dir: Path, items_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(folders[0], llava_dir, items_path)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules["cmibq.ptq.quantize"], "verify_", killed)
        with pytest.raises(KeyboardInterrupt):
            quantize(given, progress=False)
    before = weights(folders[0])
    again = quantize(given, progress=False)
    assert again.skipped
    assert again.verification is not None
    assert again.verification["ok"]
    assert weights(folders[0]) == before
    assert quantize(given, progress=False).verification == again.verification
    assert quantize(dataclasses.replace(given, verify=False), progress=False).verification
