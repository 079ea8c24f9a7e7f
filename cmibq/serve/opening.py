"""Opening whatever can be talked to: a model folder, a composed model, a package."""

from __future__ import annotations

import os
from pathlib import Path

from cmibq.errors import ModelError
from cmibq.eval import open_model
from cmibq.models import LoadedModel
from cmibq.recipe.serve import ServeConfig
from cmibq.serve.presets import FILE, Preset, read_presets
from cmibq.serve.session import Panel
from cmibq.serve.voices import composed_tower, in_eight_bits, voices_of

__all__ = ["open_any", "open_panel"]


def open_any(path: str | os.PathLike[str]) -> LoadedModel:
    """Load a Hugging Face model folder, a composed model or a cmibq package.

    Args:
        path: the folder.

    Raises:
        ModelError: the folder is missing, or holds no vision-language model.
        PackageError: a package is truncated, altered or newer than this library.
    """
    return open_model(Path(path).expanduser())[0]


def _presets(config: ServeConfig) -> tuple[Preset, ...]:
    """Return the presets that were named, else those beside the model, else none."""
    if config.presets:
        return read_presets(Path(config.presets).expanduser())
    beside = Path(config.model_path).expanduser() / FILE
    return read_presets(beside) if beside.is_file() else ()


def open_panel(config: ServeConfig) -> tuple[Panel, tuple[Preset, ...]]:
    """Open who answers on the page of the web demo, and what it begins with.

    Presets are read first, so that a mistake in them is told before models are opened.

    Args:
        config: the folders; see `ServeConfig`.

    Raises:
        DataError: presets are damaged.
        ModelError: a folder is missing or `model_path` holds no composed model.
        PackageError: a package is truncated, altered or newer than this library.
    """
    if not config.model_path:
        raise ModelError("model_path is empty; name a composed model: --model-path DIR")
    presets = _presets(config)
    composed = open_any(config.model_path)
    composed_tower(composed)
    others = {
        name: open_any(path) if path else None
        for name, path in (
            ("anchor", config.anchor_path),
            ("augmenting", config.augmenting_path),
            ("int8", config.int8_path),
        )
    }
    if others["int8"] is None and config.int8:
        others["int8"] = in_eight_bits(composed)
    return Panel(voices_of(composed, **others), config.max_new_tokens), presets
