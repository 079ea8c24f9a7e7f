"""Composed models: one folder, one budget for both towers, fusions, projector and decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cmibq import models
from cmibq.data import encode, read_items
from cmibq.eval import open_model
from cmibq.fusion.settled import SettledFusion
from cmibq.integrations.calm import attach_calm
from cmibq.models import decode, vision
from cmibq.models.composed import leaving_out
from cmibq.nn import PackedLinear, convert_
from cmibq.ptq import quantize
from cmibq.ptq.fisher import measure
from cmibq.ptq.sensitivity import Plan
from cmibq.quant import PerGroup, QuantSpec
from cmibq.recipe import QuantRecipe
from cmibq.recipe.calm import CALMConfig
from tests.fixtures import write_llava

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[4, 3, 3, 3, 3, 8, 9]])
PIXELS = torch.randn(1, 3, 16 + 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def composed_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a LLaVA whose tower is composed with a DINOv2; its gates are open."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("composed")
    loaded = models.load(write_llava(out / "plain"))
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**sizes, image_size=28, patch_size=14)
    other = transformers.Dinov2Model(config).eval()
    kind: Any = getattr(transformers, "BitImageProcessorPil", transformers.BitImageProcessor)
    both: Any = {
        "processor": loaded.processor,
        "augmenting_processor": kind(size={"shortest_edge": 28}, crop_size=28),
    }
    calm = CALMConfig(composition_layers=2, attention_heads=4)
    tower: Any = attach_calm(loaded.model, other, calm, **both)
    for fusion in tower.calm_modules:
        nn.init.normal_(fusion.gate, std=0.03)
    (out / "model").mkdir()
    models.save_float(loaded, out / "model")
    return out / "model"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        made: Tensor = model(input_ids=IDS, pixel_values=PIXELS.to(model.dtype)).logits
    return made


def test_a_folder_opens_as_it_was(composed_dir: Path) -> None:
    first, second = models.load(composed_dir).model, models.load(composed_dir).model
    tower: Any = models.calm_of(first)
    assert torch.equal(logits(first), logits(second))
    assert (tower.layers, tower.calm_config.attention_heads) == ((0, 1), 4)
    with torch.no_grad():
        for fusion in tower.calm_modules:
            fusion.gate.zero_()
    assert not torch.equal(logits(first), logits(second)), "the fusions are at work"


def test_transformers_alone_refuses_the_folder(composed_dir: Path) -> None:
    with pytest.raises(OSError, match=r"model\.safetensors"):
        transformers.AutoModelForImageTextToText.from_pretrained(composed_dir)


def test_settled_towers_see_the_same(composed_dir: Path) -> None:
    model = models.load(composed_dir).model
    tower: Any = models.calm_of(model)
    with torch.no_grad():
        want = tower(PIXELS).last_hidden_state
        models.settle_(models.settle_(model))
        assert all(isinstance(m, SettledFusion) for m in tower.calm_modules)
        torch.testing.assert_close(tower(PIXELS).last_hidden_state, want, rtol=1e-5, atol=1e-5)


def quantised(composed_dir: Path, items_path: Path, out: Path, **how: Any) -> Any:
    fields: dict[str, Any] = {
        "model_args": f"pretrained={composed_dir}",
        "scope": "lm,projector,vision",
        "data_path": str(items_path),
        "n_samples": 12,
        "output_path": str(out),
    }
    return quantize(QuantRecipe(**fields | how), progress=False)


def test_w8a8(composed_dir: Path, items_path: Path, tmp_path: Path) -> None:
    quantised(composed_dir, items_path, tmp_path / "w8", method="rtn", w_bit=8, w_group=-1, a_bit=8)
    loaded, package = open_model(tmp_path / "w8")
    assert package is not None
    packed = {n for n, m in loaded.model.named_modules() if isinstance(m, PackedLinear)}
    for part in ("anchor_tower", "augmenting_tower", "calm_modules", "projector", "language_model"):
        assert any(part in n for n in packed), part
    tower: Any = models.calm_of(loaded.model)
    assert not [n for n, m in tower.named_modules() if isinstance(m, nn.Linear)]
    exact: Any = models.calm_of(models.load(composed_dir).model)
    with torch.no_grad():
        want, seen = (t(PIXELS).last_hidden_state for t in (exact, tower))
    assert float((seen - want).norm() / want.norm()) < 0.03
    got = logits(loaded.model)
    again, _ = open_model(tmp_path / "w8")
    pixels = again.processor.image_processor(Image.new("RGB", (20, 24)), return_tensors="pt")
    assert pixels["pixel_values"].shape == (1, 3, 16 + 28, 28)
    assert torch.equal(logits(again.model), got)


def test_one_budget(composed_dir: Path, items_path: Path, tmp_path: Path) -> None:
    most = 190_000
    result = quantised(
        composed_dir, items_path, tmp_path / "small", method="awq", w_bit=4, w_group=32,
        embed_bit=8, head_bit=8, n_grid=4, run_process=True, max_bytes=f"{most}B",
    )  # fmt: skip
    loaded, package = open_model(tmp_path / "small")
    assert package is not None
    size = (tmp_path / "small" / "cmibq.safetensors").stat().st_size
    assert 0.9 * most <= size <= most
    assert result.budget["mixed"]["kl"] >= 0
    assert bool(logits(loaded.model).isfinite().all())


def test_sensitivities_reach_both_towers(composed_dir: Path, items_path: Path) -> None:
    loaded = models.load(composed_dir)
    models.settle_(loaded.model)
    names = loaded.adapter.targets(loaded.model, "vision")
    plan = Plan({n: QuantSpec(4, PerGroup(8)) for n in names}, {})
    samples = encode(read_items(items_path)[:2], loaded.processor)
    found = measure(loaded, samples, plan, (2, 4), rows=16)
    assert found.keys() == set(names)
    assert all(bool((t[:, 0] > 0).all()) for t in found.values())


def test_generate_takes_the_short_way_through_both_towers(
    composed_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = models.settle_(models.load(composed_dir).model).requires_grad_(False)
    names = [n for n, m in model.named_modules() if type(m) is nn.Linear and n != "lm_head"]
    convert_(model, {n: QuantSpec(8, PerGroup(8), symmetric=True) for n in names}, 16)
    how = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
    want = model.generate(IDS, pixel_values=PIXELS, output_logits=True, **how).logits[0]
    taken = []

    def noted(*args: Any) -> Any:
        made = vision.vision_layer(*args)
        taken.append(made is not None)
        return made

    monkeypatch.setattr(decode, "vision_layer", noted)
    models.accelerate_(model)
    got = model.generate(IDS, pixel_values=PIXELS, output_logits=True, **how).logits[0]
    assert taken == [True] * 4
    assert float((got - want).abs().max()) <= 1e-3 * float(want.abs().max())
    with leaving_out((0, 1)):
        alone = model.generate(IDS, pixel_values=PIXELS, output_logits=True, **how).logits[0]
    assert not torch.equal(alone, got)
