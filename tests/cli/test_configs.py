from __future__ import annotations

import re
from pathlib import Path

import pytest

from cmibq.cli.main import guarded, main
from cmibq.cli.options import read_options
from cmibq.cli.published import PublishedEval, PublishedQuant, run_quant
from cmibq.cli.quantize import CONFIGS
from cmibq.cli.yamlfile import list_shipped
from cmibq.recipe import EvalConfig, QuantRecipe, parse_model_args

NAMES = list_shipped(CONFIGS)
SEARCHES = [name for name in NAMES if not name.endswith("eval")]
PUBLISHED = [
    f"{family}/{name}"
    for family, sizes in (
        ("internvl2", ("8b", "26b")),
        ("llava_onevision", ("7b", "72b")),
        ("qwen2_vl", ("7b", "72b")),
    )
    for name in (
        "Eval/eval",
        *(f"MBQ_search/{s}_{m}" for s in sizes for m in ("weight_only", "weight_activation")),
    )
]
FAMILIES = ("internvl2", "internvl3", "llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl")


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_is_valid_and_described(name: str) -> None:
    cls = EvalConfig if name.endswith("eval") else QuantRecipe
    options = read_options("x", cls, ["--config", name], about="", shipped=CONFIGS)
    assert options.runs
    assert len(NAMES[name]) > 10
    for run in options.runs:
        assert parse_model_args(run.model_args).parts
        if isinstance(run, QuantRecipe):
            acts = f"a{run.a_bit}" if run.a_bit < 16 else f"g{run.w_group}"
            mode = "weight_activation" if run.a_bit < 16 else "weight_only"
            assert name.endswith((f"/{run.method}-w{run.w_bit}{acts}", f"_{mode}"))
            assert run.reweight is (run.method == "mbq")
            assert run.run_process
            if "_search/" in name:
                assert name.split("/")[1].lower() == f"{run.method}_search"
                assert run.scale_path.endswith(f"w{run.w_bit}{acts}.pt")
                assert run.model == name.split("/")[0]


def test_the_published_names_and_every_family_are_there() -> None:
    assert set(PUBLISHED) <= set(NAMES)
    for family in FAMILIES:
        modes = {re.sub(r"/\d+b_", "/", n) for n in NAMES if n.startswith(f"{family}/")}
        assert modes >= {
            f"{family}/{mode}"
            for mode in (
                "Eval/eval",
                "MBQ_search/weight_only",
                "MBQ_search/weight_activation",
                "AWQ_search/weight_only",
                "SmoothQuant_search/weight_activation",
                "RTN/weight_only",
            )
        }


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_work_as_scripts_write_them(name: str) -> None:
    cls = PublishedEval if name.endswith("eval") else PublishedQuant
    words = ["--config", f"configs/{name}.yaml"]
    (run,) = read_options("x", cls, words, about="", shipped=CONFIGS).runs
    if isinstance(run, PublishedEval):
        assert run.config.pseudo_quant
        assert run.config.tasks == "mmmu_val"
        pair = name.replace("Eval/eval", "MBQ_search/")
        searched = next(n for n in sorted(NAMES, reverse=True) if n.startswith(pair)
                        and f"_{n.split('/')[-1].split('_')[0]}_" in run.scale_path
                        and n.endswith("weight_only"))  # fmt: skip
        (other,) = read_options("x", QuantRecipe, ["--config", searched], about="",
                                shipped=CONFIGS).runs  # fmt: skip
        assert (run.scale_path, run.w_bit, run.w_group) == (
            other.scale_path, other.w_bit, other.w_group)  # fmt: skip
    else:
        assert run.recipe.calib_data == "coco"
        assert (run.w_bit, run.a_bit) == ((3, 16) if name.endswith("only") else (4, 8))


def test_what_stands_for_the_user_s_files_is_told(
    llava_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    words = ["--config", "configs/llava/MBQ_search/7b_weight_only.yaml"]
    assert guarded(words, run_quant) == 1
    told = capsys.readouterr().err
    assert "model folder 'llava-hf/llava-1.5-7b-hf' does not exist" in told
    words += ["--model_args", f"pretrained={llava_dir}", "--w_group", "32"]
    assert guarded(words, run_quant) == 1
    told = capsys.readouterr().err
    assert "data_path is 'your/coco/captions.json', which stands for your own file" in told


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--list-configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert len(lines) == 57


def test_flags_override_a_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", "--config", "llava/mbq-w3g128", "--w_bit", "2", "--print_config"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "w_bit: 2  # bits per weight" in printed
    assert "reweight: true" in printed
