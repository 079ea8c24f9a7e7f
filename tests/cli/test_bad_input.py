from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cmibq.cli.main import main

Quantize = Callable[..., tuple[int, str]]


def flags(**fields: Any) -> list[str]:
    return [word for key, value in fields.items() for word in (f"--{key}", str(value))]


@pytest.fixture
def quantize(
    tmp_path: Path, llava_dir: Path, items_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[Quantize]:
    """Run ``cmibq quantize`` with some fields changed; afterwards nothing may be left behind."""
    out = tmp_path / "results" / "package"

    def call(**changed: Any) -> tuple[int, str]:
        fields = {
            "model_args": f"pretrained={llava_dir}",
            "method": "awq",
            "w_bit": 4,
            "w_group": 32,
            "data_path": items_path,
            "n_samples": 4,
            "run_process": "true",
            "threads": 1,
            "output_path": out,
        }
        code = main(["quantize", *flags(**fields | changed)])
        return code, capsys.readouterr().err

    yield call
    assert not out.exists()
    if out.parent.exists():
        assert list(out.parent.iterdir()) == []


def test_bits_and_conflicts_are_configuration_errors(quantize: Quantize) -> None:
    code, told = quantize(w_bit=9)
    assert code == 2
    assert "w_bit is 9; allowed are" in told
    assert quantize(method="mbx") == (
        2,
        "cmibq: error: unknown search 'mbx'; did you mean 'mbq'?\n",
    )
    assert quantize(calib_data="cocoo")[0] == 2
    assert quantize(output_path="")[0] == 2


def test_group_that_does_not_divide_names_the_layer(quantize: Quantize) -> None:
    code, told = quantize(w_group=48)
    assert code in (1, 2)
    assert "48" in told
    assert "proj" in told


def test_model_that_is_not_there_or_not_supported(quantize: Quantize, tmp_path: Path) -> None:
    code, told = quantize(model_args=f"pretrained={tmp_path / 'nowhere'}")
    assert code == 1
    assert "does not exist" in told
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    code, told = quantize(model_args=f"pretrained={tmp_path / 'bert'}")
    assert code == 1
    assert "bert" in told
    assert "llava" in told


def test_weights_that_are_not_numbers(quantize: Quantize, tmp_path: Path, llava_dir: Path) -> None:
    from safetensors.torch import load_file, save_file

    spoilt = shutil.copytree(llava_dir, tmp_path / "spoilt")
    weights = load_file(spoilt / "model.safetensors")
    name = next(
        n for n in weights if n.endswith("layers.1.mlp.up_proj.weight") and "vision" not in n
    )
    weights[name][3, 5] = float("nan")
    save_file(weights, spoilt / "model.safetensors", {"format": "pt"})
    code, told = quantize(model_args=f"pretrained={spoilt}")
    assert code == 1
    assert "layers.1.mlp.up_proj" in told


def test_missing_image_is_named(quantize: Quantize, tmp_path: Path, items_path: Path) -> None:
    items = json.loads(items_path.read_text())
    for item in items:
        item["image"] = "images/gone.png"
    (tmp_path / "items.json").write_text(json.dumps(items))
    code, told = quantize(data_path=tmp_path / "items.json")
    assert code == 1
    assert "gone.png" in told


def test_malformed_line_is_named(quantize: Quantize, tmp_path: Path, items_path: Path) -> None:
    items = [json.dumps(item) for item in json.loads(items_path.read_text())]
    items[6] = items[6][:-9]
    (tmp_path / "items.jsonl").write_text("\n".join(items))
    code, told = quantize(data_path=tmp_path / "items.jsonl", image_folder=items_path.parent)
    assert code == 1
    assert "items.jsonl" in told
    assert "line 7" in told


def test_last_run_of_a_list_is_checked_before_the_first_starts(
    quantize: Quantize, tmp_path: Path, llava_dir: Path, items_path: Path
) -> None:
    run = {
        "model_args": f"pretrained={llava_dir}",
        "method": "rtn",
        "w_group": 32,
        "data_path": str(items_path),
        "n_samples": 2,
    }
    first = run | {"output_path": str(tmp_path / "first")}
    for wrong in ({"w_bits": 3}, {"w_bit": 9}, {"w_bit": "four"}, {"method": "gptq"}):
        runs = [first, run | {"output_path": str(tmp_path / "second"), **wrong}]
        (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
        assert main(["quantize", "--config", str(tmp_path / "runs.yaml")]) == 2
        assert not (tmp_path / "first").exists()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, llava_dir: Path, items_path: Path) -> Path:
    out = tmp_path_factory.mktemp("package") / "rtn"
    fields = {"model_args": f"pretrained={llava_dir}", "method": "rtn", "w_group": 32}
    fields |= {"data_path": str(items_path), "n_samples": 2, "output_path": str(out)}
    assert main(["quantize", *flags(**fields)]) == 0
    return out


def evaluate(folder: Path, items_path: Path, out: Path, *more: str) -> int:
    fields = {"model_args": f"pretrained={folder}", "data_path": items_path, "output_path": out}
    return main(["eval", *flags(**fields, limit=4, speed_prompts=1, speed_tokens=2), *more])


def test_round_trip_and_a_second_time(
    package: Path, items_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(package, items_path, tmp_path / "out") == 0
    told = capsys.readouterr().out
    assert "of 4 questions" in told
    assert json.loads((tmp_path / "out" / "result.json").read_text())["reload_exact"] is True
    assert evaluate(package, items_path, tmp_path / "out") == 0
    assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["truncated", "altered", "newer"])
def test_damaged_packages_are_refused(
    how: str, package: Path, items_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = shutil.copytree(package, tmp_path / "spoilt")
    weights, manifest = spoilt / "cmibq.safetensors", spoilt / "manifest.json"
    content = weights.read_bytes()
    if how == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif how == "altered":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"version": 99}))
    assert evaluate(spoilt, items_path, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert ("99" if how == "newer" else "cmibq.safetensors") in told
    assert not (tmp_path / "out").exists()


def test_baseline_must_have_been_measured(
    package: Path, items_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = ["--baseline", str(tmp_path / "float")]
    assert evaluate(package, items_path, tmp_path / "out", *baseline) == 2
    assert "measure the float model first" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_full_disk_leaves_nothing_behind(tmp_path: Path, llava_dir: Path, items_path: Path) -> None:
    out = tmp_path / "results" / "package"
    fields = {"model_args": f"pretrained={llava_dir}", "method": "rtn", "w_group": 32}
    fields |= {"data_path": str(items_path), "n_samples": 2, "output_path": str(out)}
    done = subprocess.run(
        [sys.executable, "-m", "cmibq", "quantize", *flags(**fields)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert done.returncode == 1
    assert "free space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"model_args": "pretrained=nowhere"}, "model folder 'nowhere' does not exist"),
        ({"data_path": "nowhere.json"}, "data_path 'nowhere.json' is not a file"),
        ({"baseline": "nowhere"}, "baseline is 'nowhere', which has no result.json"),
    ],
)
def test_last_measurement_of_a_list_is_checked_before_the_first_starts(
    tmp_path: Path,
    llava_dir: Path,
    items_path: Path,
    capsys: pytest.CaptureFixture[str],
    wrong: dict[str, str],
    told: str,
) -> None:
    run = {"model_args": f"pretrained={llava_dir}", "data_path": str(items_path)}
    first = run | {"output_path": str(tmp_path / "first")}
    runs = [first, run | {"baseline": str(tmp_path / "." / "first")} | wrong]
    (tmp_path / "runs.yaml").write_text(yaml.safe_dump(runs))
    assert main(["eval", "--config", str(tmp_path / "runs.yaml")]) in (1, 2)
    assert f"run 2 of 2 ({'nowhere' if 'model_args' in wrong else llava_dir.name}): {told}" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "first").exists()
