from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cmibq.cli.main import main
from cmibq.eval import verify
from cmibq.io import load as load_package
from cmibq.ptq.quantize import quantize
from tests.ptq.test_quantize import recipe


def test_numbers_go_into_the_notes(tmp_path: Path, llava_dir: Path, items_path: Path) -> None:
    asked = recipe(llava_dir, items_path, tmp_path / "out", method="awq", w_bit=8)
    made = quantize(asked, progress=False)
    found = made.verification
    assert found is not None
    assert found["ok"]
    assert found["held_out"]
    assert found["reload_exact"]
    assert found["kl"] < 0.02
    assert found["samples"] == 8
    assert found["captions"][0].keys() == {"prompt", "float", "quantised"}
    assert load_package(tmp_path / "out").manifest.metadata["verify"] == found
    again = quantize(asked, progress=False)
    assert again.skipped
    assert again.verification == found


def test_the_samples_are_not_those_of_the_calibration(
    tmp_path: Path, llava_dir: Path, items_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    plain = verify.compare
    monkeypatch.setattr("cmibq.ptq.verify.ask", _recording(seen))
    quantize(recipe(llava_dir, items_path, tmp_path / "a", method="rtn"), progress=False)
    assert plain is verify.compare
    ids = {s.sample.where for s in seen[0]}
    assert len(ids) == 8
    used = quantize(
        recipe(llava_dir, items_path, tmp_path / "b", method="rtn", n_samples=24), progress=False
    )
    assert used.verification is not None
    assert not used.verification["held_out"]


def _recording(seen: list[Any]) -> Any:
    from cmibq.eval.answers import ask

    def record(loaded: Any, samples: Any) -> Any:
        seen.append(samples)
        return ask(loaded, samples)

    return record


def test_without_data_and_without_verify(tmp_path: Path, llava_dir: Path) -> None:
    plain: dict[str, Any] = {"method": "rtn", "run_process": False}
    made = quantize(recipe(llava_dir, None, tmp_path / "a", **plain), progress=False)
    assert made.verification is not None
    assert made.verification["captions"] == []
    made = quantize(recipe(llava_dir, None, tmp_path / "b", **plain, verify=False), progress=False)
    assert made.verification is None
    assert "verify" not in load_package(tmp_path / "b").manifest.metadata


def test_rounded_float_models_are_verified_too(
    tmp_path: Path, llava_dir: Path, items_path: Path
) -> None:
    asked = recipe(llava_dir, items_path, tmp_path / "out", method="rtn", pseudo_quant=True)
    made = quantize(asked, progress=False)
    assert made.verification is not None
    assert made.verification["reload_exact"] is None
    told = json.loads((tmp_path / "out" / "cmibq.json").read_text())
    assert told["verify"] == made.verification


def test_a_broken_result_gives_code_3(
    tmp_path: Path, llava_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    strict = dict.fromkeys(range(2, 9), verify.Limit(1e-6, 1.0))
    monkeypatch.setattr("cmibq.eval.verify.LIMITS", strict)
    words = ["--model_args", f"pretrained={llava_dir}", "--method", "rtn", "--w_bit", "2"]
    words = ["quantize", *words, "--w_group", "32", "--output_path", str(tmp_path / "out")]
    assert main(words) == 3
    told = capsys.readouterr()
    assert "is not the model it was made from" in told.err
    assert "nats per token away" in told.err
    assert "use more bits" in told.err
    assert main(words) == 3  # also where everything is there already
    assert "already done" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "other"), "--no_verify"]) == 0
