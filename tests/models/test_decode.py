from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cmibq.models import accelerate_, decode
from cmibq.nn import convert_
from cmibq.ops.library import torch_threads
from cmibq.quant import PerGroup, QuantSpec
from tests.fixtures import SHAPES, make_model

FAMILIES = {
    "llama": {},
    "llama-gqa": SHAPES["gqa"],
    "mistral": {"num_key_value_heads": 2, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2},
}


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the tokens that took the short way, in a list of one number; one thread."""
    count, whole = [0], decode.Step.__call__

    def counted(self: Any, *args: Any) -> Any:
        made = whole(self, *args)
        count[0] += made is not None
        return made

    monkeypatch.setattr(decode.Step, "__call__", counted)
    with torch_threads(1):
        yield count


def packed(family: str = "llama", act_bits: int = 16) -> Any:
    """Return a tiny LLaVA whose decoder layers are packed."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    model = make_model(text=family.partition("-")[0], **(shape | FAMILIES[family]))
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n]
    convert_(model, {n: QuantSpec(4, PerGroup(32)) for n in names if "language" in n}, act_bits)
    return model


def ids(count: int = 9) -> Tensor:
    return torch.arange(4, 4 + count)[None]


def logits(model: Any, tokens: Tensor, **rest: Any) -> Tensor:
    """Return the logits of a forced continuation, token by token with a cache."""
    found, cache = [], None
    with torch.no_grad():
        for at in range(0, 5):
            now = tokens[:, :5] if at == 0 else tokens[:, 4 + at : 5 + at]
            out = model(input_ids=now, past_key_values=cache, use_cache=True, **rest)
            cache = out.past_key_values
            found.append(out.logits[:, -1])
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("act_bits", [16, 8])
def test_a_token_is_that_of_the_host(family: str, act_bits: int, steps: list[int]) -> None:
    model = packed(family, act_bits)
    expected = logits(model, ids())
    layers = model.config.text_config.num_hidden_layers
    assert accelerate_(model) == accelerate_(model) == layers
    found = logits(model, ids())
    assert steps[0] == 4 * layers
    # float32 sums in another order; int8 activations may round to the next code
    most = 1e-4 if act_bits == 16 else 0.05
    assert (found - expected).abs().max() <= most * expected.abs().max()


def test_generate_gives_the_same_tokens(steps: list[int]) -> None:
    model = packed("llama-gqa")
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    rest = {"attention_mask": torch.ones_like(ids()), **settings}
    expected = model.generate(ids(), **rest)
    accelerate_(model)
    assert torch.equal(model.generate(ids(), **rest), expected)
    assert steps[0] == 11 * 3
    beams = model.generate(ids(), num_beams=2, **rest)
    assert beams.shape == expected.shape


def test_with_an_image(steps: list[int]) -> None:
    model = packed()
    asked = torch.tensor([[4, 3, 3, 3, 3, 8, 9]])
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    rest = {"pixel_values": pixels, "attention_mask": torch.ones_like(asked), "max_new_tokens": 5}
    expected = model.generate(asked, do_sample=False, min_new_tokens=5, **rest)
    accelerate_(model)
    assert torch.equal(model.generate(asked, do_sample=False, min_new_tokens=5, **rest), expected)
    assert steps[0] == 4 * 2


def test_several_tokens_are_bit_equal(steps: list[int]) -> None:
    model = packed()
    with torch.no_grad():
        expected = model(input_ids=ids()).logits
        accelerate_(model)
        assert torch.equal(model(input_ids=ids()).logits, expected)
    assert steps[0] == 0


def test_bfloat16_is_nearer_to_float32(steps: list[int]) -> None:
    model = packed()
    exact = logits(model, ids())
    model = model.to(torch.bfloat16)
    stock = (logits(model, ids()) - exact).abs().mean()
    accelerate_(model)
    out = logits(model, ids())
    assert (out - exact).abs().mean() <= stock
    assert out.dtype == torch.bfloat16
    assert steps[0] > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_question_in_generate(family: str, dtype: torch.dtype) -> None:
    model = packed(family).to(dtype)
    asked = torch.randint(4, 32, (128, 9), generator=torch.Generator().manual_seed(0))
    rest = {"attention_mask": torch.ones_like(asked), "max_new_tokens": 1, "do_sample": False}
    rest |= {"output_logits": True, "return_dict_in_generate": True}
    expected = model.generate(asked, **rest).logits[0]
    copied = copy.deepcopy(model)
    accelerate_(copied)
    found = copied.generate(asked, **rest).logits[0]
    exact = model.float().generate(asked, **rest).logits[0]
    assert type(copied).__name__ == type(model).__name__
    if dtype == torch.float32:
        assert (found - exact).abs().max() <= 1e-4 * exact.abs().max()
    else:  # no worse than the host's roundings, but for chance
        assert (found - exact).abs().mean() <= 1.1 * (expected - exact).abs().mean()


def test_several_padded_questions() -> None:
    model = packed("llama-gqa")
    asked, mask = torch.cat([ids(), ids() + 1]), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    rest = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": mask}
    expected = model.generate(asked, **rest)
    accelerate_(model)
    assert torch.equal(model.generate(asked, **rest), expected)


def test_padding_goes_through_the_host(steps: list[int]) -> None:
    model = packed()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    rest = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "attention_mask": mask}
    expected = model.generate(ids(), **rest)
    accelerate_(model)
    assert torch.equal(model.generate(ids(), **rest), expected)
    assert steps[0] == 0


def test_hooks_and_attentions_are_served(steps: list[int]) -> None:
    model = packed()
    accelerate_(model)
    with torch.no_grad():
        cache = model(input_ids=ids(), use_cache=True).past_key_values
        seen: list[Any] = []
        module = model.model.language_model.layers[0].mlp
        handle = module.register_forward_hook(lambda *a: seen.append(a))
        model(input_ids=ids()[:, :1], past_key_values=cache)
        assert len(seen) == 1
        assert steps[0] == 1  # the other layer
        handle.remove()
        rest = {"output_hidden_states": True}
        out = model(input_ids=ids()[:, :1], past_key_values=cache, **rest)
        assert len(out.hidden_states) == 3


def test_copies_and_changes_are_followed(steps: list[int]) -> None:
    model = packed()
    accelerate_(model)
    expected = logits(model, ids())
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied, ids()), expected)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(logits(torch.load(file, weights_only=False), ids()), expected)
    assert steps[0] == 3 * 4 * 2
    layer = copied.model.language_model.layers[1].self_attn.k_proj
    state = {name: t.clone() for name, t in layer.state_dict().items()}
    state["scales"] *= 2
    layer.load_state_dict(state)
    changed = logits(copied, ids())
    assert not torch.equal(changed, expected)
    fresh = packed()
    fresh.model.language_model.layers[1].self_attn.k_proj.load_state_dict(state)
    assert (changed - logits(fresh, ids())).abs().max() <= 1e-4 * expected.abs().max()
    assert torch.equal(logits(model, ids()), expected)


def test_the_state_dict_stays(steps: list[int]) -> None:
    model = packed("llama-gqa")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    accelerate_(model)
    logits(model, ids())
    after = model.state_dict()
    assert list(after) == list(before)
    for name, value in before.items():
        assert torch.equal(after[name], value)


def test_the_cache_can_be_cropped_and_used_with_gradients() -> None:
    from transformers import DynamicCache

    model = packed()
    accelerate_(model)
    with torch.inference_mode():
        cache = model(input_ids=ids(), past_key_values=DynamicCache(), use_cache=True)
        cache = cache.past_key_values
        first = model(input_ids=ids()[:, :1], past_key_values=cache).logits
        cache.crop(-1)
        assert cache.get_seq_length() == 9
        again = model(input_ids=ids()[:, :1], past_key_values=cache).logits
    assert torch.equal(first, again)
    with torch.no_grad():  # not inference mode: what was made there must not be written to
        model(input_ids=ids()[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == 11
    assert cache.layers[0].keys.shape[2] == 11


def test_long_answers_grow_the_room(steps: list[int]) -> None:
    model = packed()
    rest = {"max_new_tokens": 90, "min_new_tokens": 90, "do_sample": False}
    rest["attention_mask"] = torch.ones_like(ids())
    expected = model.generate(ids(), **rest)
    accelerate_(model)
    assert torch.equal(model.generate(ids(), **rest), expected)
    assert steps[0] == 89 * 2


def test_float_layers_take_no_part() -> None:
    assert accelerate_(make_model(**SHAPES["mha"])) == 0
