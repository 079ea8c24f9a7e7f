"""The documented commands on LLaVAs of two shapes; in fresh processes where it matters."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import cmibq
from cmibq.cli.main import main
from tests.fixtures import make_model, make_processor

ROOT = Path(cmibq.__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def cmibq_command(*words: str | Path, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cmibq", *map(str, words)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=120,
        **kwargs,
    )


def here(*words: str | Path) -> int:
    """Run a command in this process; its messages go to the captured stderr."""
    return main([str(word) for word in words])


def quantize_words(model: Path, items: Path, out: Path, *more: str) -> list[str | Path]:
    return [
        *("quantize", "--model_args", f"pretrained={model}", "--method", "mbq", "--reweight"),
        *("--w_bit", "3", "--w_group", "32", "--calib_data", "coco", "--data_path", items),
        *("--image_folder", items.parent, "--n_samples", "12", "--run_process"),
        *("--scale_path", out / "scales.pt", "--output_path", out / "packed", *more),
    ]


@pytest.mark.parametrize("shape", ["llava_dir", "llava_gqa_dir"])
def test_quantize_eval_report(
    shape: str, items_path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(shape)
    run = cmibq_command(*quantize_words(model, items_path, tmp_path))
    assert run.returncode == 0, run.stderr
    folders = {"float": model, "packed": tmp_path / "packed"}
    for name, folder in folders.items():
        run = cmibq_command(
            *("eval", "--model_args", f"pretrained={folder}", "--data_path", items_path),
            *("--output_path", tmp_path / "runs" / name, "--name", name, "--speed_prompts", "1"),
            *("--speed_tokens", "2"),
        )
        assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "runs/packed/result.json").read_text())
    assert result["reload_exact"] is True
    assert result["n_questions"] == 24
    assert 3.0 < result["bits_per_weight"] < 4.0  # 3 bits, a 16-bit scale and 3 of zero per 32
    assert here("report", "--runs", tmp_path / "runs", "--out", tmp_path / "report") == 0
    rows = json.loads((tmp_path / "report/report.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"float", "mbq"}
    page = (tmp_path / "report/report.html").read_text()
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_the_same_recipe_again_does_nothing_and_another_is_refused(
    llava_dir: Path, items_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = quantize_words(llava_dir, items_path, tmp_path)
    assert here(*words) == 0
    stamp = (tmp_path / "packed/manifest.json").stat().st_mtime_ns
    assert here(*words) == 0
    assert (tmp_path / "packed/manifest.json").stat().st_mtime_ns == stamp
    assert here(*[w if w != "3" else "4" for w in words]) != 0
    assert "overwrite" in capsys.readouterr().err
    assert (tmp_path / "packed/manifest.json").stat().st_mtime_ns == stamp


def test_killed_at_any_time_it_goes_on_to_the_same_result(
    llava_gqa_dir: Path, items_path: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert here(*quantize_words(llava_gqa_dir, items_path, whole)) == 0
    words = [sys.executable, "-m", "cmibq"]
    words += map(str, quantize_words(llava_gqa_dir, items_path, broken))
    for seconds in (2.5, 4.0, 5.0):
        process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(words, env=ENVIRONMENT, capture_output=True).returncode == 0
    name = "cmibq.safetensors"
    assert (whole / "packed" / name).read_bytes() == (broken / "packed" / name).read_bytes()


def copy_with(items_path: Path, out: Path, **change: object) -> Path:
    items = json.loads(items_path.read_text())
    for item in items:
        item["image"] = str(items_path.parent / item["image"])
    items[3] |= change
    path = out / "changed.json"
    path.write_text(json.dumps(items))
    return path


def test_bad_input_ends_in_one_clear_line(
    llava_dir: Path, items_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "broken.jsonl"
    good = json.loads(items_path.read_text())
    for item in good:
        item["image"] = str(items_path.parent / item["image"])
    lines.write_text("\n".join([json.dumps(good[0]), json.dumps(good[1]), '{"image": ']))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("w_bits: 4\n")
    nan = tmp_path / "nan"
    broken = make_model(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    layer = "model.language_model.layers.1.mlp.up_proj"
    broken.get_submodule(layer).weight.data[3, 5] = torch.nan
    broken.save_pretrained(nan)
    make_processor().save_pretrained(nan)
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "blip-2"}')
    missing = copy_with(items_path, tmp_path, image="nowhere.png")
    group = [w if w != "32" else "48" for w in quantize_words(llava_dir, items_path, tmp_path)]
    cases: list[tuple[list[str | Path], list[str]]] = [
        (quantize_words(llava_dir, missing, tmp_path), ["nowhere.png"]),
        (quantize_words(llava_dir, lines, tmp_path), ["broken.jsonl", "3"]),
        (["quantize", "--config", recipe], ["w_bits", "w_bit"]),
        (quantize_words(llava_dir, items_path, tmp_path, "--w_bit", "9"), ["w_bit", "9", "1..8"]),
        (group, ["48", "64"]),
        (quantize_words(nan, items_path, tmp_path), [layer, "NaN"]),
        (quantize_words(other, items_path, tmp_path), ["blip-2", "llava"]),
        (quantize_words(tmp_path / "absent", items_path, tmp_path), ["absent"]),
    ]
    for words, expected in cases:
        assert here(*words) != 0, words
        told = capsys.readouterr().err
        assert "Traceback" not in told
        for part in expected:
            assert part in told.strip().splitlines()[-1], (part, told)
        assert not (tmp_path / "packed").exists()
        assert not (tmp_path / "scales.pt").exists()


def test_a_damaged_or_newer_package_is_refused(
    llava_dir: Path, items_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert here(*quantize_words(llava_dir, items_path, tmp_path)) == 0
    package = tmp_path / "packed"
    manifest, weights = package / "manifest.json", package / "cmibq.safetensors"
    kept, whole = manifest.read_text(), weights.read_bytes()
    evaluate = ["eval", "--model_args", f"pretrained={package}", "--data_path", items_path]
    evaluate += ["--output_path", tmp_path / "result"]

    weights.write_bytes(whole[: len(whole) // 2])
    assert here(*evaluate) != 0
    assert "cmibq.safetensors" in capsys.readouterr().err
    weights.write_bytes(whole)
    manifest.write_text(json.dumps({**json.loads(kept), "version": 99}))
    assert here(*evaluate) != 0
    assert "99" in capsys.readouterr().err
    assert not (tmp_path / "result" / "result.json").exists()


def test_a_full_disk_leaves_nothing_half_written(
    llava_dir: Path, items_path: Path, tmp_path: Path
) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    words = quantize_words(llava_dir, items_path, tmp_path)
    run = cmibq_command(*words, preexec_fn=small_files)
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "packed").exists()
    left = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size >= 60_000]
    assert left == []
    assert here(*words) == 0
