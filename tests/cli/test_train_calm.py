"""``cmibq train calm`` on a tiny LLaVA and a tiny DINOv2: stages, reload, resume, refusals."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from cmibq import models
from cmibq.cli.main import main
from cmibq.errors import ConfigError
from cmibq.integrations import calm_training
from cmibq.integrations.calm import attach_calm, calm_of
from cmibq.io.tensors import read_tensors
from cmibq.recipe.train_calm import CALMRecipe
from cmibq.train import read_journal, trackers

FIELDS: dict[str, Any] = {
    **{"composition_layers": 2, "attention_heads": 4, "batch_size": 4, "epochs": 1},
    **{"checkpoint_every": 2, "max_steps": 3, "n_measure": 8, "threads": 1},
    **{"learning_rate": 1e-2, "host_lr": 1e-3},
}


@pytest.fixture(scope="session")
def dino_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random DINOv2 of three layers, as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(5)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=24, patch_size=8
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        transformers.Dinov2Model(config).save_pretrained(folder)
        transformers.CLIPImageProcessorPil(
            size={"height": 24, "width": 24}, crop_size={"height": 24, "width": 24}
        ).save_pretrained(folder)
    return folder


def settings(llava_dir: Path, dino: Path, items: Path, out: Path, **more: Any) -> dict[str, Any]:
    places = {"model_args": f"pretrained={llava_dir}", "augmenting_model": str(dino)}
    return FIELDS | places | {"data_path": str(items), "output_path": str(out)} | more


def flags(told: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in told.items()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return read_tensors(file)[0]


@pytest.fixture(scope="module")
def trained(
    llava_dir: Path, dino_dir: Path, items_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the command made of a YAML file."""
    folder = tmp_path_factory.mktemp("calm")
    told = settings(llava_dir, dino_dir, items_path, folder / "out")
    (folder / "run.yaml").write_text(yaml.safe_dump(told))
    assert main(["train", "calm", "--config", str(folder / "run.yaml")]) == 0
    return told


def test_both_stages_leave_log_fusions_and_page(trained: dict[str, Any]) -> None:
    out = Path(trained["output_path"])
    log = read_journal(out / "log.jsonl")
    assert [(r["stage"], r["step"]) for r in log] == [(s, n) for s in (1, 2) for n in range(3)]
    keys = {"train_loss", "learning_rate", "calm_module_grad_norm", "attention_entropy"}
    assert all(keys <= set(r) for r in log)
    assert all(r["calm_module_grad_norm"] > 0 for r in log[:3])
    assert all(r["calm_module_grad_norm"] == 0 for r in log[3:])  # frozen in stage two
    seen = read_journal(out / "monitor.jsonl")
    assert len(seen[0]["entropy"]) == 2
    assert len(seen[0]["entropy"][0]) == 4
    mean = sum(map(sum, seen[0]["entropy"])) / 8
    assert log[0]["attention_entropy"] == pytest.approx(mean, abs=1e-4)
    facts = json.loads((out / "run.json").read_text())
    assert facts["done"] == [1, 2]
    assert facts["start_losses"]["gated_attention"] == facts["start_losses"]["anchor"]
    assert facts["start_losses"]["cross_attention"] != facts["start_losses"]["anchor"]
    assert facts["start_losses"]["simple_add"] == facts["start_losses"]["anchor"]
    assert facts["peak_bytes_1"] > 0
    assert (out / "report.html").read_text().count("<svg") == 6


def test_the_result_opens_without_the_original_towers(
    trained: dict[str, Any], dino_dir: Path, tmp_path: Path
) -> None:
    out = Path(trained["output_path"])
    hidden = dino_dir.rename(tmp_path / "elsewhere")
    try:
        loaded = models.load(out / "model")
    finally:
        hidden.rename(dino_dir)
    tower = calm_of(loaded.model)
    assert tower is not None
    assert loaded.processor.image_processor.sizes == tower.image_sizes == ((16, 16), (24, 24))
    again = pickle.loads(pickle.dumps(loaded.processor))
    assert again.image_processor.sizes == tower.image_sizes
    plain = models.load(trained["model_args"].removeprefix("pretrained=")).model
    with pytest.raises(ConfigError, match="has no image_processor"):
        attach_calm(plain, str(dino_dir), processor=again.image_processor)
    assert not any(m._forward_hooks for m in plain.modules())
    fusions = weights(out / "stage1")
    for name, p in tower.calm_modules.named_parameters():
        assert torch.equal(p, fusions[f"calm_modules.{name}"])


def test_the_same_run_is_not_done_twice(
    trained: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "calm", *flags(trained)]) == 0
    assert "already done" in capsys.readouterr().out
    assert main(["train", "calm", *flags(trained), "--seed=5"]) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err


def test_features_on_disk_have_the_same_bits(trained: dict[str, Any], tmp_path: Path) -> None:
    told = trained | {"stage": 1, "n_measure": 0, "feature_cache": str(tmp_path / "features")}
    for name in ("first", "second"):
        assert main(["train", "calm", *flags(told | {"output_path": str(tmp_path / name)})]) == 0
        kept = sorted((tmp_path / "features").glob("*/*.safetensors"))
        assert kept
        made = weights(tmp_path / name / "stage1")
        if name == "first":
            want, times = made, [f.stat().st_mtime_ns for f in kept]
    assert [f.stat().st_mtime_ns for f in kept] == times
    assert all(torch.equal(made[n], t) for n, t in want.items())
    for name, plain in weights(Path(trained["output_path"]) / "stage1").items():  # in batches
        torch.testing.assert_close(made[name], plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("place", [(1, 2), (2, 1)])
def test_a_run_that_was_stopped_goes_on(
    place: tuple[int, int], trained: dict[str, Any], tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(stage: int, step: int, log: dict[str, float]) -> None:
        if (stage, step) == place:
            raise Stopped

    recipe = CALMRecipe(**trained | {"output_path": str(tmp_path / "out")})
    with pytest.raises(Stopped):
        calm_training.train_calm_recipe(recipe, on_step=stop)
    torch.manual_seed(7)
    assert calm_training.train_calm_recipe(recipe)
    whole = Path(trained["output_path"])
    for name in ("stage1", "model"):
        found, want = (weights(folder / name) for folder in (tmp_path / "out", whole))
        assert [n for n in want if not torch.equal(found[n], want[n])] == []
    for name in ("log.jsonl", "monitor.jsonl"):
        logs = [read_journal(folder / name) for folder in (tmp_path / "out", whole)]
        assert logs[0] == logs[1]


def test_stage_two_alone_starts_from_a_stage_one(
    trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"output_path": str(tmp_path / "two"), "stage": 2, "n_measure": 0, "max_steps": 1}
    told = trained | more | {"tune_type_vision_tower": "calm", "train": ""}
    assert main(["train", "calm", *flags(told)]) == 2
    assert "holds no fusions of a stage one" in capsys.readouterr().err
    whole = trained["output_path"]
    other = told | {"output_path": str(tmp_path / "heads"), "attention_heads": 8}
    assert main(["train", "calm", *flags(other), f"--stage1_path={whole}"]) == 1
    assert "attention_heads is 4 there and 8 here" in capsys.readouterr().err
    assert main(["train", "calm", *flags(told), f"--stage1_path={whole}"]) == 0
    assert "stage 2 starts from the fusions of" in capsys.readouterr().out
    log = read_journal(tmp_path / "two" / "log.jsonl")
    assert [(r["stage"], r["step"]) for r in log] == [(2, 0)]
    assert log[0]["calm_module_grad_norm"] > 0


def test_a_norm_that_harms_the_anchor_is_warned_of_and_told_elsewhere(
    trained: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The published module changes the anchor at step 0: the warning has both losses."""
    noted: list[tuple[int, dict[str, float]]] = []

    class Noted:
        def __init__(self, folder: Path, settings: dict[str, Any], system: str) -> None:
            self.names = trackers._Names(system, folder)

        def __call__(self, stage: int, step: int, log: dict[str, float]) -> None:
            told, at = self.names(stage, step, log)
            noted.append((at, told))

        def close(self) -> None:
            noted.append((-1, {}))

    monkeypatch.setitem(trackers.TRACKERS._parts, "tensorboard", Noted)
    more = {"output_path": str(tmp_path / "o"), "max_steps": 2, "track": "tensorboard"}
    more |= {"fusion_strategy": "cross_attention"}
    assert main(["train", "calm", *flags(trained | more)]) == 0
    told = json.loads((tmp_path / "o" / "run.json").read_text())["start_losses"]
    warning = f"loss {told['cross_attention']:.4f} instead of {told['anchor']:.4f} nats per token"
    assert warning in capsys.readouterr().err
    assert [at for at, _ in noted] == [0, 1, 2, 3, -1]
    keys = {"train_loss", "learning_rate", "calm_module_grad_norm", "attention_entropy"}
    assert all(set(log) == keys for at, log in noted if at >= 0)


def test_the_plan_reads_no_weights(
    trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shapes of CLIP-L and DINOv2-L: 5n / (24N + 5n) of the towers and fusions, and a little."""
    transformers = pytest.importorskip("transformers")
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
    clip = {"intermediate_size": 4096, "image_size": 336, "patch_size": 14}
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "vocab_size": 64}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **large, **clip},
        text_config=text,
        vision_feature_layer=-1,
    ).save_pretrained(tmp_path / "llava")
    transformers.Dinov2Config(**large, image_size=518).save_pretrained(tmp_path / "dino")
    told = {"model_args": f"pretrained={tmp_path / 'llava'}", "composition_layers": 4}
    told |= {"augmenting_model": str(tmp_path / "dino"), "attention_heads": 16}
    assert main(["train", "calm", "--plan", *flags(told)]) == 0
    shown = capsys.readouterr().out
    assert "layers 6, 12, 18, 24 of the anchor look at layers 6, 12, 18, 24" in shown
    assert "(5n / (24N + 5n) with n = 4, N = 24: 3.36 %)" in shown
    own = 4 * (5 * 1024**2 + 6 * 1024)
    assert f"{own:,}" in shown
    share = float(shown.split("% of the model, ")[1].split(" %")[0])
    assert 3.3 < share < 3.4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"attention_heads": 5}, "num_heads is 5, which does not divide the anchor's width 32"),
        ({"augmenting_model": ""}, "augmenting_model is ''"),
        ({"augmenting_model": "nowhere"}, "'nowhere' is no folder of a vision tower"),
        ({"composition_layers": 3}, "composition_layers is 3, but the tower has 2 layers"),
        ({"fusion_strategy": "cross"}, "cross"),
        ({"data_path": ""}, "data_path is empty"),
        ({"train": ""}, "stage two has nothing to train"),
        ({"train": "vision"}, "the towers of a composed tower stay frozen"),
        ({"optimizer": "SGD"}, "optimizer is 'SGD'; allowed are AdamW"),
        ({"layers": 4}, "unknown flag '--layers'"),
    ],
)
def test_what_is_wrong_is_told_before_weights_load(
    more: dict[str, Any],
    message: str,
    trained: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("weights were read")

    monkeypatch.setattr(calm_training.models, "load", load)
    monkeypatch.setattr(calm_training, "open_tower", load)
    told = trained | {"output_path": str(tmp_path / "o")} | more
    assert main(["train", "calm", *flags(told)]) != 0
    assert message in capsys.readouterr().err


def test_a_processor_of_another_tower_is_refused_before_weights_load(
    trained: dict[str, Any], dino_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "dino"
    other.mkdir()
    (other / "config.json").write_text((dino_dir / "config.json").read_text())
    told = json.loads((dino_dir / "preprocessor_config.json").read_text())
    told |= {name: {"height": 32, "width": 32} for name in ("size", "crop_size")}
    (other / "preprocessor_config.json").write_text(json.dumps(told))
    more = {"augmenting_model": str(other), "output_path": str(tmp_path / "o")}
    assert main(["train", "calm", *flags(trained | more)]) == 2
    message = "the augmenting processor makes images of 32 x 32 pixels, but the tower takes 24 x 24"
    assert message in capsys.readouterr().err


def test_a_missing_image_and_an_unknown_key_are_named(
    trained: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = json.loads(Path(trained["data_path"]).read_text())
    items[3]["image"] = "images/none.png"
    (tmp_path / "items.json").write_text(json.dumps(items))
    told = trained | {"data_path": str(tmp_path / "items.json"), "output_path": str(tmp_path / "o")}
    told |= {"image_folder": str(Path(trained["data_path"]).parent)}
    assert main(["train", "calm", *flags(told)]) == 1
    assert "none.png" in capsys.readouterr().err
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(told | {"fusion_strategi": "x"}))
    assert main(["train", "calm", "--config", str(tmp_path / "run.yaml")]) == 2
    assert (
        "unknown key 'fusion_strategi'; did you mean 'fusion_strategy'" in capsys.readouterr().err
    )
