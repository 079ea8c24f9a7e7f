"""A random composed model in memory, and presets for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cmibq.integrations.calm import attach_calm
from cmibq.models import LoadedModel, save_float
from cmibq.recipe.calm import CALMConfig
from cmibq.serve.opening import open_any
from cmibq.serve.session import Panel
from cmibq.serve.voices import in_eight_bits, voices_of

QUESTION = "is red ?"  # the random model has more to say to it than to others
TOKENS = 8


def make_composed(folder: Path, **fields: Any) -> LoadedModel:
    """Return the model of a LLaVA folder, composed with a random DINOv2; gates are open."""
    from transformers import Dinov2Config, Dinov2Model

    loaded = open_any(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        other = Dinov2Model(
            Dinov2Config(
                hidden_size=24,
                num_hidden_layers=4,
                num_attention_heads=2,
                image_size=24,
                patch_size=8,
            )
        ).eval()
        config = CALMConfig(composition_layers=2, attention_heads=4, **fields)
        tower = attach_calm(loaded.model, other, config)
        for name, value in tower.calm_modules.named_parameters():
            value.data.normal_(std=0.5) if value.ndim else value.data.fill_(2.0)
            assert name
    loaded.model.eval()
    return loaded


def make_panel(composed: LoadedModel) -> Panel:
    """Return who answers on the page of the browser's tests."""
    return Panel(voices_of(composed, int8=in_eight_bits(composed)), TOKENS)


def write_composed(out: Path, folder: Path) -> Path:
    """Write a composed model of a LLaVA folder, and presets beside it."""
    out.mkdir()
    save_float(make_composed(folder), out)
    write_presets(out)
    return out


def write_presets(out: Path) -> Path:
    """Write two pictures and ``presets.json``."""
    items = []
    for colour, note in (("red", "CALM right"), ("blue", "CALM wrong")):
        corner = Image.new("RGB", (16, 16), colour)
        corner.paste("white", (0, 0, 8, 8))
        corner.save(out / f"{colour}.png")
        asked = {"image": f"{colour}.png", "question": QUESTION, "answer": "red red", "note": note}
        items.append(asked)
    path = out / "presets.json"
    path.write_text(json.dumps(items))
    return path
