"""The shipped files, run as published scripts run them, for a tiny model of every family."""

from __future__ import annotations

from pathlib import Path

import pytest

from cmibq.cli.main import guarded
from cmibq.cli.published import run_eval, run_quant
from cmibq.eval import read_samples
from cmibq.io import load_scales
from tests.models.families import write_family, write_talks

FAMILIES = {
    "llava": ("llava", "7b"),
    "llava_onevision": ("llava_onevision", "7b"),
    "internvl2": ("internvl", "8b"),
    "internvl3": ("internvl", "8b"),
    "qwen2_vl": ("qwen2_vl", "7b"),
    "qwen2_5_vl": ("qwen2_5_vl", "7b"),
}


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talks(tmp_path_factory.mktemp("talks"))


@pytest.mark.parametrize(
    ("family", "mode"),
    [*((family, "weight_only") for family in FAMILIES), ("qwen2_vl", "weight_activation")],
)
def test_search_and_evaluation_of_a_shipped_file(
    family: str,
    mode: str,
    talks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, size = FAMILIES[family]
    model = write_family(name, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    own = ["--model_args", f"pretrained={model}", "--w_group", "16", "--scale_path", "s.pt"]
    words = ["--config", f"configs/{family}/MBQ_search/{size}_{mode}.yaml", *own]
    words += ["--data_path", str(talks), "--image_folder", str(talks.parent), "--n_samples", "3"]
    assert guarded([*words, "--few_shot_format", "--n_grid", "3"], run_quant) == 0, (
        capsys.readouterr().err
    )
    assert load_scales("s.pt").provenance["model"] == family
    words = ["--config", f"configs/{family}/Eval/eval.yaml", *own, "--output_path", "out"]
    words += ["--tasks", "", "--data_path", str(talks), "--image_folder", str(talks.parent)]
    words += ["--speed_prompts", "0", "--metric", "exact_match", "--batch_size", "2"]
    bits = ["--w_bit", "4", "--a_bit", "8"] if mode == "weight_activation" else []
    assert guarded([*words, *bits], run_eval) == 0, capsys.readouterr().err
    assert all(s.score in (0, 1) for s in read_samples("out/samples.jsonl"))
    assert Path("out/samples_mmmu_val.jsonl").is_file()
