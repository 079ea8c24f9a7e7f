from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmibq.models import accelerate_, decode, vision
from cmibq.nn import convert_
from cmibq.quant import PerGroup, QuantSpec
from tests.fixtures import make_model

ASKED = torch.tensor([[4, 3, 3, 3, 3, 8, 9]])
PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def packed() -> Any:
    """Return a tiny LLaVA whose decoder and tower are packed."""
    model = make_model(hidden_size=64, intermediate_size=96, num_hidden_layers=1)
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n]
    convert_(model, {n: QuantSpec(8, PerGroup(16)) for n in names})
    return model


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note for each layer of a tower whether it took the short way."""
    found: list[bool] = []

    def noted(*args: Any) -> Any:
        made = vision.vision_layer(*args)
        found.append(made is not None)
        return made

    monkeypatch.setattr(decode, "vision_layer", noted)
    return found


def first_logits(model: Any) -> Tensor:
    rest = {"attention_mask": torch.ones_like(ASKED), "max_new_tokens": 1, "do_sample": False}
    rest |= {"output_logits": True, "return_dict_in_generate": True}
    made: Tensor = model.generate(ASKED, pixel_values=PIXELS.to(model.dtype), **rest).logits[0]
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_in_generate(dtype: torch.dtype, taken: list[bool]) -> None:
    model = packed()
    exact = first_logits(model)
    model = model.to(dtype)
    stock = first_logits(model)
    accelerate_(model)
    found = first_logits(model)
    assert taken == [True] * len(taken) != []
    if dtype == torch.float32:
        assert (found - exact).abs().max() <= 1e-4 * exact.abs().max()
    else:  # as near as the host's roundings, but for chance
        assert (found - exact).abs().mean() <= 1.5 * (stock - exact).abs().mean()


def test_a_forward_pass_is_bit_equal(taken: list[bool]) -> None:
    model = packed()
    with torch.no_grad():
        expected = model(input_ids=ASKED, pixel_values=PIXELS).logits
        accelerate_(model)
        assert torch.equal(model(input_ids=ASKED, pixel_values=PIXELS).logits, expected)
    assert True not in taken


def test_hooks_fall_back(taken: list[bool]) -> None:
    model = packed()
    accelerate_(model)
    seen: list[int] = []
    layer = next(m for m in model.modules() if isinstance(m, decode._FastVision))
    handle: Any = layer.self_attn.q_proj.register_forward_hook(lambda *a: seen.append(1))
    first_logits(model)
    assert seen == [1]
    assert taken.count(False) == 1
    handle.remove()
    taken.clear()
    first_logits(copy.deepcopy(model))
    assert taken.count(False) == 0


def test_attention_weights_are_the_hosts() -> None:
    model = packed()
    accelerate_(model)
    first_logits(model)  # hooks of transformers are there from now on
    model.set_attn_implementation("eager")
    tower = model.model.vision_tower
    with torch.no_grad(), vision.generating():
        made = tower(PIXELS, output_attentions=True)
    assert len(made.attentions) == tower.config.num_hidden_layers


def test_other_activations_are_the_hosts() -> None:
    model = packed()
    layer = next(m for m in model.modules() if type(m).__name__ == "CLIPEncoderLayer")
    layer.mlp.activation_fn = nn.ReLU()
    assert vision.find_parts(layer) is None


@pytest.mark.parametrize("kind", ["Dinov2", "Dinov2WithRegisters", "ViT"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_towers(kind: str, dtype: torch.dtype, taken: list[bool]) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 128} if kind == "ViT" else {"mlp_ratio": 2}
    config = getattr(transformers, f"{kind}Config")(**sizes, image_size=16, patch_size=4)
    tower = getattr(transformers, f"{kind}Model")(config).eval()
    for name, gain in tower.named_parameters():
        if name.endswith("lambda1"):  # one is the start of a training
            nn.init.uniform_(gain, 0.5, 2.0)
    names = [n for n, m in tower.named_modules() if isinstance(m, nn.Linear)]
    convert_(tower, {n: QuantSpec(8, PerGroup(16)) for n in names})
    with torch.no_grad():
        exact = tower(PIXELS).last_hidden_state
        tower, pixels = tower.to(dtype), PIXELS.to(dtype)
        stock = tower(pixels).last_hidden_state
        accelerate_(tower)
        assert torch.equal(tower(pixels).last_hidden_state, stock)
        assert True not in taken
        taken.clear()
        with vision.generating():
            found = tower(pixels).last_hidden_state
    assert taken == [True, True]
    if dtype == torch.float32:
        assert (found - exact).abs().max() <= 1e-4 * exact.abs().max()
    else:
        assert (found - exact).abs().mean() <= 1.5 * (stock - exact).abs().mean()
