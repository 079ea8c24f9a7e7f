"""``cmibq train cm-ibq`` on a tiny LLaVA: both stages, reload, resume, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cmibq.cli.main import main
from cmibq.errors import ConfigError
from cmibq.integrations import training
from cmibq.integrations.bottleneck import bridge_of, check
from cmibq.io.tensors import read_tensors
from cmibq.recipe.train import TrainRecipe
from cmibq.train import read_journal

FIELDS: dict[str, Any] = {
    **{"hidden_dim": 8, "min_bits": 0, "stage1_bits": 6.0, "stage2_bits": 2.0},
    **{"stage1_steps": 3, "stage2_steps": 5, "batch_size": 4, "checkpoint_every": 2},
    **{"n_diagnose": 8, "stage1_lr": 1e-2, "stage2_lr": 1e-2, "threads": 1},
}


def settings(llava_dir: Path, items_path: Path, out: Path, **more: Any) -> dict[str, Any]:
    places = {"model_args": f"pretrained={llava_dir}", "data_path": str(items_path)}
    return FIELDS | places | {"output_path": str(out)} | more


@pytest.fixture(scope="module")
def trained(
    llava_dir: Path, items_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the command made of a YAML file."""
    folder = tmp_path_factory.mktemp("train")
    told = settings(llava_dir, items_path, folder / "out")
    (folder / "run.yaml").write_text(yaml.safe_dump(told))
    assert main(["train", "cm-ibq", "--config", str(folder / "run.yaml")]) == 0
    return told


def test_both_stages_leave_a_result_that_reloads(trained: dict[str, Any], llava_dir: Path) -> None:
    from transformers import AutoModelForImageTextToText

    out = Path(trained["output_path"])
    log = read_journal(out / "log.jsonl")
    want = [(1, n) for n in range(3)] + [(2, n) for n in range(5)]
    assert [(r["stage"], r["step"]) for r in log] == want
    assert log[0]["target_bits"] == 6.0
    assert log[-1]["target_bits"] == 2.0
    model = AutoModelForImageTextToText.from_pretrained(out / "model").eval()
    check(model)
    bridge = bridge_of(model)
    assert bridge is not None
    assert bridge.layer.target_bits == 2.0
    facts = json.loads((out / "run.json").read_text())
    assert facts["done"]
    assert facts["answer_bits"] > 0
    found = json.loads((out / "diagnostics.json").read_text())
    assert sum(found["bits"]) == 2 * bridge.layer.config.latent_dim
    assert (out / "report.html").read_text().count("<svg") == 6


def test_the_same_run_is_not_done_twice(
    trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    told = [f"--{name}={value}" for name, value in trained.items()]
    assert main(["train", "cm-ibq", *told]) == 0
    assert "already done" in capsys.readouterr().out
    assert main(["train", "cm-ibq", *told, "--seed=5"]) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err


@pytest.mark.parametrize("place", [(1, 2), (2, 3)])
def test_a_run_that_was_stopped_goes_on(
    place: tuple[int, int], trained: dict[str, Any], tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(stage: int, step: int, log: dict[str, float]) -> None:
        if (stage, step) == place:
            raise Stopped

    recipe = TrainRecipe(**trained | {"output_path": str(tmp_path / "out")})
    with pytest.raises(Stopped):
        training.train_cm_ibq(recipe, on_step=stop)
    assert not (tmp_path / "out" / "model").exists()
    torch.manual_seed(7)
    assert training.train_cm_ibq(recipe)
    whole = Path(trained["output_path"])
    found, want = (
        read_tensors(folder / "model" / "model.safetensors")[0]
        for folder in (tmp_path / "out", whole)
    )
    assert [n for n in want if not torch.equal(found[n], want[n])] == []
    logs = [read_journal(folder / "log.jsonl") for folder in (tmp_path / "out", whole)]
    assert logs[0] == logs[1]


def test_parts_of_the_host_are_trained_or_stay(
    trained: dict[str, Any], llava_dir: Path, tmp_path: Path
) -> None:
    before = read_tensors(llava_dir / "model.safetensors")[0]
    more = {"train": "lm", "mode": "task", "task": "learned", "alignment_weight": 0.1}
    more |= {"accumulate": 2, "dtype": "bfloat16", "gradient_checkpointing": True}
    recipe = TrainRecipe(**trained | {"output_path": str(tmp_path / "lm")} | more)
    assert training.train_cm_ibq(recipe)
    changed = [
        {n for n in before if not torch.equal(before[n], after[n])}
        for after in (
            read_tensors(folder / "model" / "model.safetensors")[0]
            for folder in (Path(trained["output_path"]), tmp_path / "lm")
        )
    ]
    assert changed[0]
    assert all("projector" in n for n in changed[0])
    assert any("layers.0.mlp" in n for n in changed[1])
    assert not [n for n in changed[1] if "projector" in n or "vision" in n]
    assert all("alignment" in r for r in read_journal(tmp_path / "lm" / "log.jsonl"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name what to train: cmibq train cm-ibq"),
        (["cm-ibqq"], "unknown system 'cm-ibqq'"),
        (["cm-ibq", "--stage2_bits=99"], "stage2_bits is 99.0; allowed are"),
        (["cm-ibq", "--model_args=pretrained=x"], "data_path is empty"),
    ],
)
def test_what_is_wrong_is_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_data_without_images_is_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text(
        '[{"conversations": [{"from": "human", "value": "is"}, {"from": "gpt", "value": "no"}]}]'
    )
    told = trained | {"data_path": str(tmp_path / "text.json"), "output_path": str(tmp_path / "o")}
    with pytest.raises(ValueError, match="no item with an image"):
        training.read(TrainRecipe(**told))
    with pytest.raises(ConfigError, match="output_path is empty"):
        training.check(TrainRecipe(**trained | {"output_path": ""}))


def test_folders_of_others_are_not_replaced(trained: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "log.jsonl").write_text("mine")
    told = trained | {"output_path": str(tmp_path), "overwrite": True}
    with pytest.raises(ConfigError, match=r"holds model, log.jsonl that no training of cmibq"):
        training.check(TrainRecipe(**told))
    own = Path(trained["output_path"])
    more = {"model_args": f"pretrained={own / 'model'}", "overwrite": True}
    with pytest.raises(ConfigError, match=r"model_args is .* that the result replaces"):
        training.check(TrainRecipe(**trained | more))
