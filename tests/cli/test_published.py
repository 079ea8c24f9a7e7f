"""The commands of MBQ's README, word for word, and what its scripts relied on."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cmibq.cli.main import guarded, main
from cmibq.cli.options import read_options
from cmibq.cli.published import PublishedEval, PublishedQuant, run_eval, run_quant
from cmibq.errors import ConfigError
from cmibq.recipe import EvalConfig, QuantRecipe, fingerprint

SEARCH = """--model internvl2 --model_args pretrained="OpenGVLab/InternVL2-8B" --calib_data coco
 --data_path "your/data/path/" --image_folder "your/image/folder" --n_samples 128 {0} --method mbq
 --run_process --w_bit 4 {1} --reweight {2} --loss_mode mae
 --scale_path "scale_cache/mbq/internvl2_w4.pt" """
EVAL = """--model internvl2 --model_args pretrained="OpenGVLab/InternVL2-8B" --tasks mmmu
 --batch_size 1 --log_samples --log_samples_suffix mmmu --method mbq --pseudo_quant --w_bit 4 {0}
 --output_path "your/output/path" --scale_path "scale_cache/mbq/internvl2_w4.pt" """


def quant(text: str) -> PublishedQuant:
    return read_options("x", PublishedQuant, shlex.split(text), about="").runs[0]


def evaluation(text: str) -> PublishedEval:
    return read_options("x", PublishedEval, shlex.split(text), about="").runs[0]


def test_search_of_the_readme() -> None:
    made = quant(SEARCH.format("--interleave_format", "--w_group 128", "")).recipe
    assert made == QuantRecipe(
        model="internvl2", model_args="pretrained=OpenGVLab/InternVL2-8B", calib_data="coco",
        data_path="your/data/path/", image_folder="your/image/folder", n_samples=128,
        interleave_format=True, method="mbq", run_process=True, w_bit=4, w_group=128,
        reweight=True, loss_mode="mae", scale_path="scale_cache/mbq/internvl2_w4.pt",
    )  # fmt: skip
    acts = quant(SEARCH.format("", "--a_bit 8", "")).recipe
    assert (acts.w_bit, acts.a_bit, acts.interleave_format) == (4, 8, False)


def test_evaluation_of_the_readme() -> None:
    for more, bits in (("--w_group 128", 16), ("--a_bit 8", 8)):
        made = evaluation(EVAL.format(more)).config
        assert made == EvalConfig(
            model="internvl2", model_args="pretrained=OpenGVLab/InternVL2-8B", tasks="mmmu",
            batch_size=1, log_samples=True, log_samples_suffix="mmmu", method="mbq",
            pseudo_quant=True, w_bit=4, w_group=128, a_bit=bits, output_path="your/output/path",
            scale_path="scale_cache/mbq/internvl2_w4.pt",
        )  # fmt: skip


def test_defaults_are_the_published_ones() -> None:
    made = quant("")
    assert (made.method, made.w_bit, made.a_bit, made.w_group) == ("awq", 8, 16, 128)
    assert (made.calib_data, made.n_samples, made.alpha) == ("pileval", 128, 0.5)
    told = evaluation("--tasks mmmu")
    assert (told.batch_size, told.method, told.w_bit) == (1, "awq", 8)
    assert told.config == EvalConfig(tasks="mmmu", batch_size=1)


def test_alpha_takes_a_fraction() -> None:
    assert quant("--method smoothquant --alpha 0.8").recipe.alpha == 0.8


def test_a_run_is_the_same_as_that_of_quantize() -> None:
    made = quant("--w_bit 4 --method mbq --calib_data coco --batch_size 4 --device cpu")
    assert type(made.recipe) is QuantRecipe
    assert fingerprint(made.recipe) == fingerprint(QuantRecipe())


@pytest.mark.parametrize(
    ("action", "text", "message"),
    [
        (quant, "--few_shot_format", "few_shot_format is set with calib_data 'pileval'"),
        (quant, "--interleave_format", "it applies to coco only"),
        (quant, "--reweight --method mbq", "it applies to coco only"),
        (quant, "--calib_data coco --few_shot_format --interleave_format", "choose one"),
        (quant, "--w_bits 3", "unknown flag '--w_bits'; did you mean '--w_bit'"),
        (quant, "--device cuda", "everything runs on cpu"),
        (evaluation, "--tasks mmmu --device cuda:0", "everything runs on cpu"),
        (evaluation, "--tasks mmmu --log_samples", "log_samples is set without output_path"),
        (evaluation, "--tasks mmmu --run_process", "scales are searched by quantize"),
        (evaluation, "--tasks mmmu --pseudo_quant", "needs scale_path; only rtn has none"),
        (evaluation, "--tasks mmmu --metric vqa", "which have metrics of their own"),
        (evaluation, "--gen_kwargs x=1", "gen_kwargs set without tasks"),
        (evaluation, "--tasks mmmu --log_samples_suffix a/b", "must not have a slash"),
    ],
)
def test_conflicts_are_named(action: Any, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        action(text)
    assert message in str(caught.value)


def test_yaml_with_all_keys_a_list_and_an_unknown_one(tmp_path: Path) -> None:
    keys = "calib_data: coco\nn_samples: 4\ntext_data_path: ''\ndistort: False\nloss_mode: mae\n"
    file = tmp_path / "a.yaml"
    file.write_text(f'{keys}model_args: pretrained="a/b",device_map=auto\n')
    assert quant(f"--config {file}").recipe.n_samples == 4
    file.write_text("- {w_bit: 3, name: a}\n- {w_bit: 2}\n")
    runs = read_options("x", PublishedQuant, ["--config", str(file)], about="").runs
    assert [(r.recipe.w_bit, r.method) for r in runs] == [(3, "awq"), (2, "awq")]
    file.write_text("w_bits: 3\n")
    with pytest.raises(ConfigError, match="unknown key 'w_bits'; did you mean 'w_bit'"):
        quant(f"--config {file}")


def test_search_then_evaluation(
    llava_dir: Path, items_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scales = tmp_path / "cache" / "w4.pt"
    common = ["--model", "llava", "--model_args", f"pretrained={llava_dir}", "--method", "mbq"]
    common += ["--w_bit", "4", "--w_group", "32", "--scale_path", str(scales), "--reweight"]
    search = ["--calib_data", "coco", "--data_path", str(items_path), "--n_samples", "4"]
    search += ["--run_process", "--few_shot_format", "--loss_mode", "mae"]
    assert guarded([*common, *search], run_quant) == 0, capsys.readouterr().err
    assert scales.is_file()
    measure = [*common, "--data_path", str(items_path), "--pseudo_quant", "--limit", "4"]
    measure += ["--speed_prompts", "0", "--output_path", str(tmp_path / "out"), "--log_samples"]
    assert guarded([*measure, "--log_samples_suffix", "mine"], run_eval) == 0
    capsys.readouterr()
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert written == ["result.json", "samples.jsonl", "samples_mine.jsonl"]
    assert guarded([*measure, "--loss_mode", "mse"], run_eval) == 2
    assert "was made with loss_mode 'mae', this run has 'mse'" in capsys.readouterr().err
    assert main(["eval", "--config", "llava/Eval/eval", "--w_bit", "2", "--print_config"]) == 0


@pytest.mark.parametrize("name", ["main_quant", "main"])
def test_modules_run_with_warnings_off(name: str) -> None:
    words = [sys.executable, "-W", "ignore", "-m", f"cmibq.{name}"]
    done = subprocess.run([*words, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m cmibq.{name}")
    wrong = subprocess.run([*words, "--w_bits", "3"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
