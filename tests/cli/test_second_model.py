from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cmibq.cli.main import main

METHODS = ("rtn", "smoothquant", "awq", "mbq")


def test_the_demos_commands_on_a_differently_shaped_model(
    llava_gqa_dir: Path,
    items_path: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Quantise, measure and report as the demo does, with grouped keys, biases, no template."""
    quantised, measured = [], []
    data = {"data_path": str(items_path), "threads": 1}
    floats = {"name": "float", "model_args": f"pretrained={llava_gqa_dir}"}
    measured.append({**floats, **data, "output_path": str(tmp_path / "eval" / "float")})
    for method in METHODS:
        for acts in (16, 8):
            name, out = f"{method}-a{acts}", tmp_path / "packages" / f"{method}-a{acts}"
            run = {"name": name, "model_args": f"pretrained={llava_gqa_dir}", "method": method}
            run |= {"w_bit": 3, "w_group": 32, "a_bit": acts, "reweight": method == "mbq"}
            run |= {"n_samples": 6, "run_process": True, "output_path": str(out), **data}
            quantised.append(run)
            where = {"output_path": str(tmp_path / "eval" / name)}
            base = {"baseline": str(tmp_path / "eval" / "float")}
            measured.append(
                {"model_args": f"pretrained={out}", "name": name, **where, **base, **data}
            )
    for number, run in enumerate(measured):
        measured[number] = run | {"speed_prompts": 1, "speed_tokens": 2}
    for command, runs in (("quantize", quantised), ("eval", measured)):
        file = tmp_path / f"{command}.yaml"
        file.write_text(yaml.safe_dump(runs))
        assert main([command, "--config", str(file)]) == 0, capsys.readouterr().err
    out = tmp_path / "report"
    assert main(["report", "--runs", str(tmp_path / "eval"), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "[8/8] mbq-a8 ... saved, mean layer error" in told
    assert "[9/9] mbq-a8 ..." in told
    report = json.loads((out / "report.json").read_text())
    assert [(r["method"], r["a_bit"]) for r in report["rows"]] == [
        ("float", 16),
        *((method, 16) for method in METHODS),
        *((method, 8) for method in METHODS),
    ]
    assert all(r["reload_exact"] for r in report["rows"][1:])
    assert report["gaps"] == []
    assert set(report["layers"]["W3A8 g32"]) == set(METHODS)
    page = (out / "report.html").read_text()
    assert "planted" not in page
    assert "Error of each layer" in page
