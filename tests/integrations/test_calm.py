"""A composed vision tower inside Hugging Face models."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cmibq import models
from cmibq.errors import ConfigError, ModelError
from cmibq.integrations.calm import attach_calm, calm_of, check_calm, detach_calm
from cmibq.integrations.transformers import attach_cm_ibq, check
from cmibq.models.composed import CALMVisionTower
from cmibq.models.load import save_float
from cmibq.recipe.calm import CALMConfig
from tests.fixtures import make_processor, write_llava
from tests.integrations.hosts import batch, make, prompt_of
from tests.models.towers import dino, processors, tower

ROOT = Path(__file__).parents[2]
TWO = CALMConfig(composition_layers=2, attention_heads=4)


def composed(family: str = "llava", config: CALMConfig = TWO, **options: Any) -> Any:
    """Return a host whose fusions do something."""
    model = make(family)
    attach_calm(model, options.pop("augmenting", None) or dino(), config, **options)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in calm_of(model).calm_modules.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def gradients(model: Any, inputs: dict[str, Any]) -> list[torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return [p.grad.clone() for p in calm_of(model).calm_modules.parameters()]


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision"])
def test_hosts_start_as_they_were_train_save_and_reload(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model, inputs = make(family).eval(), batch(family)
    with torch.no_grad():
        before = model(**prompt_of(inputs)).logits
        attach_calm(model, dino(), TWO)
        assert torch.equal(model(**prompt_of(inputs)).logits, before)
    model = composed(family)
    assert all(g.any() for g in gradients(model, inputs)[:3])
    model.eval()
    with torch.no_grad():
        want = model(**prompt_of(inputs)).logits
        assert not torch.allclose(want, before)
        model.save_pretrained(tmp_path)
        again, info = AutoModelForImageTextToText.from_pretrained(
            tmp_path, output_loading_info=True
        )
        assert not any(info.values())
        check(again)
        assert calm_of(again).calm_config == calm_of(model).calm_config
        assert torch.equal(again(**prompt_of(inputs)).logits, want)
        one = prompt_of(batch(family, images=(1,)))
        made = again.generate(
            **one,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        assert torch.equal(made.logits[0], again(**one, logits_to_keep=1).logits[:, -1])
        again.save_pretrained(tmp_path / "second")
        second = AutoModelForImageTextToText.from_pretrained(tmp_path / "second")
        assert torch.equal(second(**prompt_of(inputs)).logits, want)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_gradient_checkpointing_in_either_mode_changes_nothing() -> None:
    inputs = batch("llava")
    want = gradients(composed(), inputs)
    for reentrant in (True, False):
        model = composed()
        kind = {"use_reentrant": reentrant}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)
        assert calm_of(model).gradient_checkpointing
        found = gradients(model, inputs)
        for a, b in zip(found, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        model.gradient_checkpointing_disable()
        assert not calm_of(model).gradient_checkpointing


def test_the_layer_that_the_host_reads_decides() -> None:
    model = make("llava")
    model.config.vision_feature_layer = -2
    with pytest.raises(ConfigError, match="tower has 1 layers"):
        attach_calm(model, dino(), TWO)
    with pytest.raises(ConfigError, match=r"select_layer is -3, but Llava\w+ reads layer -2"):
        attach_calm(model, dino(), CALMConfig(select_layer=-3))
    made = attach_calm(model, dino(), CALMConfig(composition_layers=1, attention_heads=4))
    assert (made.layers, made.calm_config.select_layer) == ((0,), -2)
    model(**batch("llava")).loss.backward()
    assert made.calm_modules[0].gate.grad.any()
    listed = make("llava")
    listed.config.vision_feature_layer = [0, 2]
    assert attach_calm(listed, dino(), TWO).calm_config.select_layer == -1


def test_a_folder_and_its_processor(tmp_path: Path) -> None:
    """The saved model opens without the augmenting tower's folder, processors included."""
    there = dino()
    there.save_pretrained(tmp_path / "dino")
    processors()[1].save_pretrained(tmp_path / "dino")
    loaded = models.load(write_llava(tmp_path / "llava"))
    text = "USER : <image> which digit ?"
    image = Image.effect_noise((20, 30), 80).convert("RGB")
    plain = loaded.processor(text=text, images=image, return_tensors="pt")
    made = attach_calm(loaded.model, tmp_path / "dino", TWO, processor=loaded.processor)
    both = loaded.processor(text=text, images=image, return_tensors="pt")
    assert both["pixel_values"].shape == (1, 3, 58, 42)
    assert torch.equal(both["input_ids"], plain["input_ids"])
    assert loaded.processor._get_num_multimodal_tokens([(20, 30)]).num_image_tokens == [4]
    with pytest.raises(ConfigError, match=r"\(16, 16\) pixels; give \(58, 42\)"):
        loaded.model(**plain)
    with torch.no_grad():
        for p in made.calm_modules.parameters():
            p.add_(0.05 * torch.randn_like(p))
        want = loaded.model(**both).logits
        (tmp_path / "float").mkdir()
        save_float(loaded, tmp_path / "float")
        loaded.model.save_pretrained(tmp_path / "hugging")
        loaded.processor.save_pretrained(tmp_path / "hugging")
        (tmp_path / "dino" / "config.json").unlink()
        for name in ("float", "hugging"):
            again = models.load(tmp_path / name)
            given = again.processor(text=text, images=image, return_tensors="pt")
            assert torch.equal(given["pixel_values"], both["pixel_values"])
            assert torch.equal(again.model(**given).logits, want)
    assert type(again.processor).__name__ == "LlavaProcessor"
    tower_ = calm_of(again.model)
    assert tower_ is not None
    assert tower_.processors is not None
    detach_calm(again.model, again.processor)
    alone = again.processor(text=text, images=image, return_tensors="pt")
    assert torch.equal(alone["pixel_values"], plain["pixel_values"])


def test_detached_hosts_are_what_they_were(tmp_path: Path) -> None:
    plain, model, inputs = make("llava").eval(), composed().eval(), prompt_of(batch("llava"))
    anchor = detach_calm(model)
    assert model.model.vision_tower is anchor
    assert calm_of(model) is None
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
    model.save_pretrained(tmp_path)
    assert "calm" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ModelError, match="no composed tower; nothing to detach"):
        detach_calm(model)


def test_half_checkpoints_keep_float_fusions(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = composed()
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    found = calm_of(half)
    assert found is not None
    assert {p.dtype for p in found.calm_modules.parameters()} == {torch.float32}
    assert {p.dtype for p in found.augmenting_tower.parameters()} == {torch.bfloat16}
    weight: Any = calm_of(model).calm_modules[0].gate
    assert torch.equal(found.calm_modules[0].get_parameter("gate"), weight)
    assert half(**prompt_of(batch("llava"))).logits.dtype == torch.bfloat16


def test_beside_a_bottleneck(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    model = composed()
    attach_cm_ibq(model, {"hidden_dim": 16, "min_bits": 1})
    model(**batch("llava")).loss.backward()
    assert calm_of(model).calm_modules[0].gate.grad.any()
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    check(again)
    inputs = prompt_of(batch("llava"))
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_copy_is_independent() -> None:
    model, inputs = composed().eval(), prompt_of(batch("llava"))
    other = copy.deepcopy(model)
    with torch.no_grad():
        want = model(**inputs).logits
        calm_of(other).calm_modules[0].gate.zero_()
        assert torch.equal(model(**inputs).logits, want)
        assert not torch.equal(other(**inputs).logits, want)


def test_processes_without_us_refuse(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlavaForConditionalGeneration as Llava

    composed().save_pretrained(tmp_path)
    code = (
        "import sys, transformers as t; t.AutoModelForImageTextToText.from_pretrained(sys.argv[1])"
    )
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
    assert "import cmibq.integrations" in told["quantization_config"]["calm"]
    named = told.pop("calm")
    (tmp_path / "config.json").write_text(json.dumps(told | {"quantization_config": None}))
    with pytest.raises(
        ModelError, match=r"composed tower are (missing|unexpected) .*save the model"
    ):
        Llava.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(told | {"calm": named}))
    weights = load_file(tmp_path / "model.safetensors")
    less = {k: v for k, v in weights.items() if not k.endswith("gate")}
    save_file(less, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="2 weights of the composed tower are missing"):
        Llava.from_pretrained(tmp_path)
    bare = make("llava")
    bare.config.calm = named
    with pytest.raises(ModelError, match="would run uncomposed"):
        check(bare)
    model = composed()
    del model.config.calm
    with pytest.raises(ModelError, match="its configuration lacks"):
        check_calm(model)


def test_wrong_pairs() -> None:
    model = make("llava")
    mine, theirs = make_processor(), processors()[1]
    with pytest.raises(ConfigError, match="augmenting is None"):
        attach_calm(model, dino(), TWO, processor=mine)
    with pytest.raises(ConfigError, match="augmenting processor makes images of 42 x 42"):
        attach_calm(model, dino(image_size=56), TWO, processor=mine, augmenting_processor=theirs)
    assert type(mine).__name__ == "LlavaProcessor"
    assert "crop_size" in mine.image_processor.to_dict()
    assert not isinstance(model.model.vision_tower, CALMVisionTower)
    with pytest.raises(ModelError, match="no folder of a vision tower"):
        attach_calm(model, "/nowhere", TWO)
    with pytest.raises(ModelError, match="no vision_tower"):
        attach_calm(torch.nn.Linear(2, 2), dino(), TWO)
    with pytest.raises(ModelError, match="no vision_tower"):
        attach_calm(make("qwen2_vl"), dino(), TWO)
    attach_calm(model, dino(), TWO)
    with pytest.raises(ConfigError, match="composed tower already"):
        attach_calm(model, dino(), TWO)
    maps = make("llava")
    maps.model.vision_tower = tower("convnext")
    with pytest.raises(ModelError, match=r"ConvNextModel gives maps.*augmenting tower"):
        attach_calm(maps, dino(), TWO)
