from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from cmibq import io, models
from cmibq.errors import ConfigError, DataError, ModelError, PackageError, StorageError
from cmibq.eval import evaluate, open_model, read_samples
from cmibq.eval import measure as measuring
from cmibq.nn import PackedLinear
from cmibq.recipe import EvalConfig
from cmibq.search import apply_scales_
from tests.eval.packages import write_package
from tests.fixtures import write_llava


def config(folder: Path, items: Path, out: Path | str = "", **options: Any) -> EvalConfig:
    return EvalConfig(
        model_args=f"pretrained={folder}",
        data_path=str(items),
        output_path=str(out),
        **({"speed_prompts": 1, "speed_tokens": 2} | options),
    )


def run(cfg: EvalConfig) -> dict[str, Any]:
    return evaluate(cfg, progress=False)


def test_float_then_package(
    llava_dir: Path, packed: io.Package, items_path: Path, tmp_path: Path
) -> None:
    float_result = run(config(llava_dir, items_path, tmp_path / "float", name="float"))
    cfg = config(packed.path, items_path, tmp_path / "w4", baseline=str(tmp_path / "float"))
    result = run(cfg)
    assert [float_result[key] for key in ("method", "w_bit", "a_bit")] == ["float", 16, 16]
    assert float_result["bits_per_weight"] == 32
    assert float_result["reload_exact"] is None
    assert "flips" not in float_result
    assert [result[key] for key in ("method", "w_bit", "w_group", "a_bit")] == ["rtn", 4, 32, 16]
    assert result["reload_exact"] is True
    assert result["n_questions"] == 24
    assert result["bytes"] == (packed.path / "cmibq.safetensors").stat().st_size
    assert result["bytes"] < float_result["bytes"] < float_result["bytes_on_disk"]
    assert result["bits_per_weight"] == packed.manifest.bits_per_weight
    assert result["peak_rss"] > 1e6
    assert result["tokens_per_s"] > 0
    assert list(result["generation"]) == ["packed"]
    assert list(float_result["generation"]) == ["float32", "bfloat16"]
    assert result["source"] == float_result["source"] == str(llava_dir)
    assert 0 < result["flips"] < 1
    assert result["excess_loss"] == pytest.approx(float_result["logprob"] - result["logprob"])
    assert set(result["layers"]) == set(packed.manifest.layers)
    assert all(layer["error"] == 0.25 for layer in result["layers"].values())
    written = json.loads((tmp_path / "w4" / "result.json").read_text())
    assert written == {k: v for k, v in result.items() if k != "skipped"}
    samples = read_samples(tmp_path / "w4" / "samples.jsonl")
    assert sum(s.correct for s in samples) / 24 == result["accuracy"]
    assert sum(s.logprob for s in samples) / 24 == pytest.approx(result["logprob"])


def test_a_finished_measurement_is_not_repeated(
    packed: io.Package, items_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(packed.path, items_path, tmp_path, name="a")
    first = run(cfg)
    assert not first["skipped"]
    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_measure", lambda *a: pytest.fail("measured again"))
        assert run(replace(cfg, name="b")) == first | {"skipped": True}
    assert not run(replace(cfg, batch_size=5))["skipped"]
    assert not run(cfg)["skipped"]
    (tmp_path / "result.json").write_text("{")
    assert not run(cfg)["skipped"]
    (tmp_path / "samples.jsonl").unlink()
    assert not run(cfg)["skipped"]
    assert (tmp_path / "samples.jsonl").is_file()


def test_a_killed_measurement_leaves_no_result(
    packed: io.Package, items_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(packed.path, items_path, tmp_path)
    run(cfg)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "write_samples", killed)
    with pytest.raises(KeyboardInterrupt):
        run(replace(cfg, limit=3))
    assert not (tmp_path / "result.json").exists()


def test_another_model_or_data_is_another_measurement(
    llava_dir: Path, packed: io.Package, items_path: Path, tmp_path: Path
) -> None:
    cfg = config(packed.path, items_path, tmp_path)
    other = write_package(llava_dir, tmp_path / "w3", items_path, bits=3)
    a = run(cfg)
    b = run(config(other.path, items_path, tmp_path))
    c = run(replace(cfg, limit=3))
    assert len({r["fingerprint"] for r in (a, b, c)}) == 3
    assert c["n_questions"] == 3


@pytest.mark.parametrize(("bits", "group", "acts"), [(4, 32, 16), (3, 64, 16), (4, 32, 8)])
def test_pseudo_quantisation_agrees_with_the_package(
    llava_dir: Path, items_path: Path, tmp_path: Path, bits: int, group: int, acts: int
) -> None:
    package = write_package(
        llava_dir, tmp_path / "p", items_path, bits=bits, group=group, acts=acts
    )
    real = run(config(package.path, items_path, tmp_path / "real"))
    pseudo = run(
        config(
            llava_dir,
            items_path,
            tmp_path / "pseudo",
            pseudo_quant=True,
            w_bit=bits,
            w_group=group,
            a_bit=acts,
        )
    )
    assert pseudo["logprob"] == pytest.approx(real["logprob"], abs=0.02 if acts == 8 else 1e-4)
    assert pseudo["bits_per_weight"] == real["bits_per_weight"]
    assert pseudo["method"] == "rtn"
    assert pseudo["bytes"] is None
    assert pseudo["reload_exact"] is None


def test_pseudo_quantisation_with_scales(llava_dir: Path, items_path: Path, tmp_path: Path) -> None:
    loaded = models.load(llava_dir)
    modules, entries = dict(loaded.model.named_modules()), []
    torch.manual_seed(0)
    for name, block in loaded.adapter.blocks(loaded.model):
        for group in loaded.adapter.groups(name, block):
            scales = torch.exp(
                torch.randn(loaded.model.get_submodule(group.linears[0]).in_features)
            )
            entries.append(io.ScaleEntry(group.prev, group.linears, scales))
            apply_scales_(modules, group, scales)
    io.save_scales(tmp_path / "s.pt", entries)
    options: dict[str, Any] = {"pseudo_quant": True, "w_bit": 3, "w_group": 32, "method": "awq"}
    found = run(config(llava_dir, items_path, scale_path=str(tmp_path / "s.pt"), **options))
    loaded.model.save_pretrained(tmp_path / "scaled")
    loaded.processor.save_pretrained(tmp_path / "scaled")
    wanted = run(config(tmp_path / "scaled", items_path, **(options | {"method": "rtn"})))
    plain = run(config(llava_dir, items_path, **(options | {"method": "rtn"})))
    assert found["logprob"] == pytest.approx(wanted["logprob"], abs=1e-5)
    assert abs(found["logprob"] - plain["logprob"]) > 1e-3
    assert found["method"] == "awq"


def test_scales_of_another_model(llava_gqa_dir: Path, items_path: Path, tmp_path: Path) -> None:
    entry = io.ScaleEntry("model.layers.0.norm", ("model.layers.0.q_proj",), torch.ones(96))
    io.save_scales(tmp_path / "s.safetensors", [entry])
    cfg = config(
        llava_gqa_dir,
        items_path,
        pseudo_quant=True,
        w_bit=4,
        w_group=32,
        method="awq",
        scale_path=str(tmp_path / "s.safetensors"),
    )
    with pytest.raises(ModelError, match=r"no group.*another model"):
        run(cfg)


def test_scales_of_other_settings(llava_dir: Path, items_path: Path, tmp_path: Path) -> None:
    entry = io.ScaleEntry("norm", ("q_proj",), torch.ones(96))
    made = {"method": "awq", "w_bit": 3, "w_group": 32, "a_bit": 16}
    io.save_scales(tmp_path / "s.pt", [entry], provenance=made)
    options: dict[str, Any] = {"pseudo_quant": True, "scale_path": str(tmp_path / "s.pt")}
    for change in ({"w_bit": 4}, {"w_group": 64}, {"a_bit": 8}, {"method": "mbq"}):
        name = next(iter(change))
        with pytest.raises(ConfigError, match=rf"was made with {name} .*make both equal"):
            run(config(llava_dir, items_path, **(options | made | change)))


def test_group_that_does_not_divide(llava_dir: Path, items_path: Path) -> None:
    cfg = config(llava_dir, items_path, pseudo_quant=True, w_bit=4, w_group=48)
    with pytest.raises(ModelError, match=r"layers\.0\.self_attn\.q_proj.*48"):
        run(cfg)


def test_conflicts_are_told(packed: io.Package, items_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a package; leave it out"):
        run(config(packed.path, items_path, pseudo_quant=True, w_bit=4, w_group=32))
    with pytest.raises(ConfigError, match=r"no result\.json; measure the float model first"):
        run(config(packed.path, items_path, baseline=str(tmp_path)))


def test_what_stops_a_measurement_is_told_before_it(
    packed: io.Package,
    llava_dir: Path,
    items_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measuring, "_measure", None)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        run(config(packed.path, items_path, tmp_path / "file"))
    with pytest.raises(DataError, match="data_path is empty"):
        run(replace(config(packed.path, items_path), data_path=""))
    options = {"pseudo_quant": True, "w_bit": 4, "scale_path": str(tmp_path / "no.pt")}
    with pytest.raises(PackageError, match=r"no\.pt does not exist"):
        run(config(llava_dir, items_path, **options))


def test_a_model_with_nan_is_told(items_path: Path, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(write_llava(tmp_path / "m"))
    model.model.language_model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match=r"item \d+: the model gives logits that are NaN"):
        run(config(tmp_path / "m", items_path))


def test_baseline_on_other_questions(
    llava_dir: Path,
    packed: io.Package,
    items_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(config(llava_dir, items_path, tmp_path / "float", limit=3))
    monkeypatch.delattr("cmibq.eval.measure.score")  # told before a question is asked
    with pytest.raises(DataError, match="other questions"):
        run(config(packed.path, items_path, tmp_path / "w4", baseline=str(tmp_path / "float")))
    assert not (tmp_path / "w4").exists()
    with pytest.raises(DataError, match="vqa counts how many of at least 3 people agree"):
        run(config(packed.path, items_path, metric="vqa"))


def test_questions_longer_than_the_context_are_told(
    llava_dir: Path, items_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    item = json.loads(items_path.read_text())[0]
    item["conversations"][0]["value"] += " red" * 600
    item["image"] = str(items_path.parent / item["image"])
    (tmp_path / "items.json").write_text(json.dumps([item]))
    run(config(llava_dir, tmp_path / "items.json"))
    assert "1 of 1 questions have more tokens than the 128" in caplog.text


def test_models_that_cannot_be_opened(packed: io.Package, items_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        run(config(tmp_path / "nowhere", items_path))
    copied = Path(shutil.copytree(packed.path, tmp_path / "copied"))
    weights = copied / "cmibq.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(PackageError, match=r"cmibq\.safetensors is truncated"):
        run(config(copied, items_path))


def test_an_opened_package_stays_packed(packed: io.Package) -> None:
    loaded, package = open_model(packed.path)
    assert package is not None
    layers = [m for m in loaded.model.modules() if isinstance(m, PackedLinear)]
    assert len(layers) == len(packed.manifest.layers) == 14
    assert sum(m.nbytes() for m in layers) <= 1.1 * packed.manifest.packed_bytes
    assert not any(list(m.parameters()) for m in layers)
    assert loaded.model.generation_config.eos_token_id == 1


def test_two_models_of_one_architecture_do_not_share_tensors(
    llava_dir: Path, packed: io.Package, items_path: Path, tmp_path: Path
) -> None:
    other = write_package(llava_dir, tmp_path / "w2", items_path, bits=2)
    (a, _), (b, _) = open_model(packed.path), open_model(other.path)
    check = io.check_probe(a.model, packed)
    assert check is not None
    assert check.exact
    assert a.model is not b.model


def test_threads_are_put_back(packed: io.Package, items_path: Path) -> None:
    before = torch.get_num_threads()
    assert run(config(packed.path, items_path, threads=1))["environment"]["threads"] == 1
    assert torch.get_num_threads() == before


def test_a_result_holds_no_nan(packed: io.Package, items_path: Path) -> None:
    text = json.dumps(run(config(packed.path, items_path, limit=1)), allow_nan=False)
    assert math.isfinite(json.loads(text)["stderr"])


def test_a_bfloat16_model(items_path: Path, tmp_path: Path) -> None:
    source = write_llava(tmp_path / "bf16", "mha", dtype="bfloat16")
    package = write_package(source, tmp_path / "w4", items_path, bits=8)
    whole = run(config(source, items_path, tmp_path / "float"))
    small = run(config(package.path, items_path, baseline=str(tmp_path / "float")))
    assert whole["bits_per_weight"] == 16
    assert small["reload_exact"] is True
    assert small["excess_loss"] == pytest.approx(0, abs=0.1)


def test_reports_can_compare_without_torch() -> None:
    code = "import sys, cmibq.eval; assert 'torch' not in sys.modules; cmibq.eval.evaluate"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=root, check=True)
