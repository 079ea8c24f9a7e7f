"""Run by the Python of `make hosts`: the unmodified upstream LLaVA, tiny, through our adapter."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


def tower(folder: Path) -> None:
    """Write a CLIP vision tower of two blocks."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    square = {"height": 8, "width": 8}
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_attention_heads=2,
            num_hidden_layers=2,
            image_size=8,
            patch_size=4,
        )
    ).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=square).save_pretrained(folder)


def upstream(folder: Path) -> Any:
    """Return a random `LlavaLlamaForCausalLM` with its vision modules."""
    from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM

    config = LlavaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=40,
        initializer_range=0.2,
        pad_token_id=0,
        mm_vision_tower=str(folder),
        mm_hidden_size=16,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        use_mm_proj=True,
    )
    torch.manual_seed(0)
    model = LlavaLlamaForCausalLM(config)
    model.get_vision_tower().load_model()
    return model.eval()


class Words:
    """A tokenizer of few words; begins with 1 as Llama's does."""

    bos_token_id, pad_token_id, eos_token = 1, 0, "</s>"
    bos_token = "<s>"
    all_special_tokens = ("<s>", "</s>")
    known = ("USER:", "ASSISTANT:", "what", "is", "here", "red", "blue", "and", "two")

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [1] * add_special_tokens
        for word in text.replace("</s>", " </s>").split():
            ids.append(2 if word == "</s>" else 3 + self.known.index(word))
        return {"input_ids": ids}


def samples(folder: Path, tool: Any) -> list[Any]:
    """Return encoded samples with one, two and no image."""
    from PIL import Image

    from cmibq.data import CalibSample, Message, encode

    rng, files = np.random.default_rng(0), []
    for n in range(3):
        files.append(folder / f"{n}.png")
        Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8)).save(files[-1])
    asked = [("<image>\nwhat is here", 1), ("<image> and <image>", 2), ("what is red", 0)]
    made = []
    for n, (text, images) in enumerate(asked):
        turns = (Message("user", text), Message("assistant", "red and two"))
        made.append(CalibSample(tuple(files[n : n + images]), turns, str(n), where=f"item {n}"))
    return encode(made, tool)


@torch.no_grad()
def own_logits(model: Any, tool: Any, sample: Any) -> torch.Tensor:
    """Return what the model's own forward computes, given one -200 per image."""
    from cmibq.data import load_images

    vision = torch.from_numpy(sample.vision)
    first = vision & ~torch.cat([torch.tensor([False]), vision[:-1]])
    starts = [i for i in range(len(vision)) if vision[i]][::4]  # four tokens an image
    assert bool(first[starts[0]]) if starts else not vision.any()
    keep = [i for i in range(len(vision)) if not vision[i] or i in starts]
    ids = torch.from_numpy(sample.ids)[keep][None]
    pixels = [one["pixel_values"] for one in load_images(sample.pictures, tool)]
    images = torch.cat(pixels) if pixels else None
    out: torch.Tensor = model(input_ids=ids, images=images).logits[0]
    return out


def main(folder: Path) -> None:
    """Compare logits, fuse scales, quantise, write and read a scale file."""
    from transformers import CLIPImageProcessor

    from cmibq.data import collate
    from cmibq.io import load_scales, save_scales
    from cmibq.models import HostProcessor, LoadedModel, verify_groups
    from cmibq.models.hosts import LLAVA_LLAMA
    from cmibq.ptq import quantize_
    from cmibq.recipe import QuantRecipe

    tower(folder / "tower")
    model = upstream(folder / "tower")
    images = CLIPImageProcessor.from_pretrained(folder / "tower")
    tool = HostProcessor(
        Words(), lambda image: images(image, return_tensors="pt")["pixel_values"], tokens=4
    )
    loaded = LoadedModel(model, tool, LLAVA_LLAMA, folder)
    verify_groups(LLAVA_LLAMA, model)
    encoded = samples(folder, tool)
    wanted = [own_logits(model, tool, sample) for sample in encoded]

    def logits() -> list[torch.Tensor]:
        batch = collate(encoded, tool)
        with torch.no_grad():
            out = LLAVA_LLAMA.decoder(model)(
                inputs_embeds=LLAVA_LLAMA.embed(model, batch), attention_mask=batch.attention_mask
            )
            made = model.lm_head(out.last_hidden_state)
        return [m[k.bool()] for m, k in zip(made, batch.attention_mask, strict=True)]

    for got, want in zip(logits(), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    recipe = QuantRecipe(
        method="mbq",
        reweight=True,
        w_bit=8,
        w_group=8,
        n_grid=3,
        pseudo_quant=True,
        scope="lm,projector,vision",
    )
    entries = quantize_(loaded, encoded, recipe)
    assert len(entries) == 8 + 6, len(entries)
    save_scales(folder / "scales.pt", entries)
    assert len(load_scales(folder / "scales.pt").entries) == len(entries)
    for got, want in zip(logits(), wanted, strict=True):
        assert 0 < float((got - want).norm() / want.norm()) < 0.05
    sys.stdout.write("same logits, quantised\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
