"""CM-IBQ behind the projector of Hugging Face models."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.bottleneck import attach_cm_ibq, bridge_of, check, collect
from cmibq.train import stage_one_pretrain
from tests.integrations.hosts import FAMILIES, batch, make, prompt_of

ROOT = Path(__file__).parents[2]
SMALL = {"hidden_dim": 16, "min_bits": 1}


def train(model: Any, inputs: dict[str, Any], steps: int = 3) -> list[float]:
    """Return the loss of every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", ["shared", "task"])
def test_both_stages_train_save_and_reload(family: str, mode: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = make(family)
    bridge = attach_cm_ibq(model, SMALL | {"mode": mode, "alignment_weight": 0.1, "stage1_bits": 3})
    inputs = batch(family, images=(1, 2))
    for p in model.parameters():
        p.requires_grad_(any(p is q for q in bridge.parameters()))
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimiser = torch.optim.AdamW(bridge.layer.parameters(), lr=1e-2)
    batches = [part for _ in range(6) for part in collect(model, inputs)]
    first = stage_one_pretrain(bridge.layer, batches, optimiser, torch.device("cpu"))
    whole = len(batches) // 6
    assert sum(s["total"] for s in first[-whole:]) < sum(s["total"] for s in first[:whole])
    model.requires_grad_(True)
    losses = train(model, inputs, 4)
    assert losses[-1] < losses[0]
    assert set(bridge.last_terms) == {
        *("reconstruction", "rate", "bitrate", "alignment", "total", "task")
    }
    assert all(not torch.equal(p, before[n]) for n, p in bridge_parameters(model) if p.grad.any())
    model.eval()
    with torch.no_grad():
        want = model(**prompt_of(inputs)).logits
        model.save_pretrained(tmp_path)
        again, info = AutoModelForImageTextToText.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert not any(info.values())
        check(again)
        assert torch.equal(again(**prompt_of(inputs)).logits, want)
        made = again.generate(
            **prompt_of(batch(family, images=(1,))),
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        one = prompt_of(batch(family, images=(1,)))
        alone = model(**one, logits_to_keep=1).logits[:, -1]
    assert torch.equal(made.logits[0], alone)


def bridge_parameters(model: Any) -> list[tuple[str, Any]]:
    return [(n, p) for n, p in model.named_parameters() if ".cm_ibq." in n and p.grad is not None]


def test_rows_and_tiles_get_their_own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images in a row, of two and three tiles: five units, with the row's prompt."""
    model = make("llava_next")
    bridge = attach_cm_ibq(model, SMALL | {"mode": "task"})
    inputs = batch("llava_next", images=(1, 2))
    (part,) = collect(model, inputs)
    assert part["features"].shape == (2 + 3 + 2, 4, 32)
    told = part["task_embedding"]
    assert torch.equal(told[0], told[1])
    assert not torch.equal(told[1], told[2])
    assert torch.equal(told[2:], told[2:3].expand(5, -1))
    table, ids = model.get_input_embeddings(), inputs["input_ids"]
    prompt = (ids != 3) & inputs["attention_mask"].bool() & (inputs["labels"] == -100)
    want = torch.stack([table(i[p]).mean(0) for i, p in zip(ids, prompt, strict=True)])
    assert torch.allclose(told[[0, 2]], want, atol=1e-6)
    assert not told.requires_grad
    assert bridge.training


def test_answers_are_not_in_the_task_embedding() -> None:
    model = make("llava")
    attach_cm_ibq(model, SMALL | {"mode": "task"})
    inputs = batch("llava")
    before = collect(model, inputs)[0]["task_embedding"]
    other = inputs | {"input_ids": inputs["input_ids"].where(inputs["labels"] < 0, 9)}
    assert torch.equal(collect(model, other)[0]["task_embedding"], before)


def test_given_and_learned_tasks() -> None:
    model = make("llava")
    inputs = batch("llava")
    attach_cm_ibq(model, {"layer": SMALL | {"mode": "task"}, "task": "given"})
    given = torch.randn(3, 32)
    part = collect(model, inputs | {"cm_ibq_task": given})[0]
    assert torch.equal(part["task_embedding"], given)
    with pytest.raises(ModelError, match="cm_ibq_task"):
        model(**inputs)
    model = make("llava")
    options = {"layer": SMALL | {"mode": "task", "task_dim": 5}, "task": "learned", "tasks": 4}
    bridge = attach_cm_ibq(model, options)
    losses = train(model, inputs | {"cm_ibq_task": torch.tensor([0, 3, 3])})
    assert losses[-1] < losses[0]
    assert bridge.task_vectors is not None
    assert bridge.task_vectors.weight.shape == (4, 5)


def test_a_copy_has_its_own_layer() -> None:
    model = make("llava")
    attach_cm_ibq(model, SMALL)
    inputs = batch("llava")
    train(model, inputs)
    other = copy.deepcopy(model)
    with torch.no_grad():
        bridge_of(other).layer.decoder.weight.zero_()
        bridge_of(other).layer.decoder.bias.zero_()
        a, b = (m.eval()(**prompt_of(inputs)).logits for m in (model, other))
        blank = other(**(prompt_of(inputs) | {"pixel_values": torch.zeros(3, 3, 16, 16)})).logits
    assert not torch.equal(a, b)
    assert torch.equal(b, blank)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = make("llava")
        attach_cm_ibq(model, SMALL)
        if checkpointing:
            kind = {"use_reentrant": reentrant}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)
        found.append(train(model, batch("llava")))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_rows_without_images() -> None:
    model = make("llava")
    bridge = attach_cm_ibq(model, SMALL | {"mode": "task"})
    mixed = batch("llava", images=(0, 1, 0, 1))
    losses = train(model, mixed)
    assert losses[-1] < losses[0]
    text = batch("llava", images=(0, 0))
    text.pop("pixel_values")
    model.zero_grad()
    model(**text).loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in bridge.parameters())


def test_float32_inside_a_half_model(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = make("llava")
    bridge = attach_cm_ibq(model, SMALL)
    train(model, batch("llava"))
    weight = bridge.layer.encoder.weight.clone()
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for one in (model.bfloat16().eval(), half):
        layer = bridge_of(one).layer
        assert torch.equal(layer.encoder.weight, weight)
        inputs = prompt_of(batch("llava")) | {"attention_mask": None}
        assert one(**inputs).logits.dtype == torch.bfloat16


def test_wrong_configurations() -> None:
    model = make("llava")
    with pytest.raises(ConfigError, match=r"feature_dim is 31; the projector .* gives 32"):
        attach_cm_ibq(model, SMALL | {"feature_dim": 31})
    with pytest.raises(ConfigError, match="task_dim is 5"):
        attach_cm_ibq(model, SMALL | {"task_dim": 5, "mode": "task"})
    with pytest.raises(ConfigError, match="no field 'turns'"):
        attach_cm_ibq(model, {"layer": SMALL, "turns": 1})
    with pytest.raises(ModelError, match="no CM-IBQ layer"):
        collect(model, batch("llava"))
    with pytest.raises(ModelError, match="no projector"):
        attach_cm_ibq(torch.nn.Linear(2, 2), SMALL)
    attach_cm_ibq(model, SMALL)
    with pytest.raises(ConfigError, match="already"):
        attach_cm_ibq(model, SMALL)
    with pytest.raises(ModelError, match="never seen features"):
        model.eval()(**prompt_of(batch("llava")))
    with pytest.raises(ModelError, match="never seen features"):
        check(model)


def test_checkpoints_that_lack_a_half(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file
    from transformers import LlavaForConditionalGeneration as Llava

    model = make("llava")
    attach_cm_ibq(model, SMALL)
    train(model, batch("llava"), 1)
    model.save_pretrained(tmp_path)
    code = """
import sys
from transformers import AutoModelForImageTextToText
AutoModelForImageTextToText.from_pretrained(sys.argv[1])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 1
    assert "quant_method" in done.stderr.splitlines()[-1]
    told = json.loads((tmp_path / "config.json").read_text())
    assert "import cmibq.integrations" in told["quantization_config"]["cm_ibq"]
    named = told.pop("cm_ibq")
    (tmp_path / "config.json").write_text(json.dumps(told | {"quantization_config": None}))
    with pytest.raises(ModelError, match="weights of the CM-IBQ layer are unexpected"):
        Llava.from_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    plain = {k: v for k, v in weights.items() if ".cm_ibq." not in k}
    save_file(plain, tmp_path / "model.safetensors", metadata={"format": "pt"})
    check(Llava.from_pretrained(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(told | {"cm_ibq": named}))
    with pytest.raises(ModelError, match="weights of the CM-IBQ layer are missing"):
        Llava.from_pretrained(tmp_path)
    bare = make("llava")
    bare.config.cm_ibq = named
    with pytest.raises(ModelError, match="would run unquantised"):
        check(bare)


def test_unregister_puts_everything_back() -> None:
    from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

    from cmibq.integrations import glue

    names = [
        (PreTrainedModel, "post_init"),
        (PreTrainedModel, "from_pretrained"),
        (PretrainedConfig, "from_dict"),
        (PretrainedConfig, "to_dict"),
        (GenerationMixin, "generate"),
    ]
    glue.unregister()
    try:
        plain = [vars(owner)[name] for owner, name in names]
        glue.register()
        glue.register()
        assert all(vars(o)[n] is not p for (o, n), p in zip(names, plain, strict=True))
        glue.unregister()
        assert all(vars(o)[n] is p for (o, n), p in zip(names, plain, strict=True))
    finally:
        glue.register()


def test_a_layer_that_a_constructor_builds_starts_as_one_that_is_attached() -> None:
    """Hosts draw the weights of all linear layers anew at the end of their constructors."""
    attached = make("llava")
    want = attach_cm_ibq(attached, {"hidden_dim": 8, "mode": "task"})
    built = type(attached)(attached.config)
    found = bridge_of(built)
    assert found is not None
    layer, other = found.layer, want.layer
    assert torch.equal(layer.encoder.weight, other.encoder.weight)
    assert torch.equal(layer.encoder.weight, torch.eye(len(layer.encoder.weight)))
    assert layer.conditioner is not None
    assert bool((layer.conditioner.gates.channel.bias > 0).all())
