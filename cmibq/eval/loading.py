"""Opening what is to be measured: a float model folder or a package."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

from cmibq import io, models
from cmibq.models import LoadedModel

__all__ = ["load", "open_model"]


def open_model(
    path: str | os.PathLike[str], *, model: str = "auto"
) -> tuple[LoadedModel, io.Package | None]:
    """Load a Hugging Face model folder or a cmibq package.

    A package is checked (hashes of all files) and its weights stay packed: the model is built
    without memory for them first.

    Args:
        path: the folder.
        model: family it must be of, or ``"auto"``.

    Returns:
        The model with processor and adapter, and the package it came from (None for a folder).

    Raises:
        ModelError: the folder is missing or of an unsupported family.
        PackageError: the package is truncated, altered or newer than this library.
    """
    folder = Path(path).expanduser()
    if not io.is_package(folder):
        return models.load(folder, model=model), None
    package = io.load(folder)
    adapter = models.read_family(folder, model=model)
    network = package.fill_(copy.deepcopy(models.skeleton(folder)))
    _set_generation(network, folder)
    models.accelerate_(network)
    return LoadedModel(network, models.load_processor(folder), adapter, folder), package


def _set_generation(network: object, folder: Path) -> None:
    """Take the defaults of ``generate`` from the folder, as ``from_pretrained`` does."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        setattr(  # noqa: B010  # the skeleton's type does not know the attribute
            network, "generation_config", GenerationConfig.from_pretrained(folder)
        )


def load(path: str | os.PathLike[str]) -> Any:
    """Return the model of a folder, packed if it is a package of either layout.

    Raises:
        ModelError: as `open_model`.
        PackageError: as `open_model`.
    """
    return open_model(path)[0].model
