"""Which recipes must give the same result: a hash of what changes it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmibq.recipe.base import parse_model_args
from cmibq.recipe.places import local_path
from cmibq.recipe.quant import QuantRecipe

__all__ = ["fingerprint", "weights_hash"]

_NO_EFFECT = frozenset(  # on what comes out
    "name model_args data_path image_folder text_data_path scale_path output_path run_process"
    " threads max_memory overwrite verify".split()
)


@functools.lru_cache(maxsize=4096)
def _digest(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _content(path: Path) -> Any:
    """Hash a file, or the files of a folder (not those below it), by content."""
    if path.is_dir():
        return {p.name: _content(p) for p in sorted(path.iterdir()) if p.is_file()}
    if not path.is_file():
        return None
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


def weights_hash(folder: Path) -> str:
    """Return a sha256 of the weights of a model folder, wherever it lies and whatever else it has.

    Args:
        folder: model folder with ``*.safetensors``.
    """
    found = {p.name: _content(p) for p in sorted(folder.glob("*.safetensors"))}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def fingerprint(recipe: QuantRecipe, inputs: Mapping[str, str] | None = None) -> str:
    """Return a sha256 that is equal exactly when two recipes must give the same result.

    It covers the fields that change the result and the *content* of the model folder and data
    files; where these lie, names, threads and outputs do not count.

    Args:
        recipe: the recipe.
        inputs: content hashes of other inputs, such as the images used, by name.

    Example:
        >>> a, b = QuantRecipe(name="a"), QuantRecipe(name="b")
        >>> fingerprint(a) == fingerprint(b) != fingerprint(QuantRecipe(w_bit=3))
        True
    """
    from cmibq import __version__

    fields = dataclasses.asdict(recipe).items()
    facts: dict[str, Any] = {k: v for k, v in fields if k not in _NO_EFFECT}
    if recipe.model_args:
        facts["model_files"] = _content(parse_model_args(recipe.model_args))
    for name in ("data_path", "text_data_path"):
        if getattr(recipe, name):
            facts[f"{name}_content"] = _content(local_path(getattr(recipe, name), "dataset"))
    if recipe.scale_path and not recipe.run_process:
        facts["scale_file"] = _content(Path(recipe.scale_path).expanduser())
    facts |= {"inputs": dict(inputs or {}), "cmibq": __version__}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
