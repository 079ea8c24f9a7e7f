"""A quantised model against the float model it was made from, at any later time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from cmibq.data import Encoded, check_images, encode, read_items
from cmibq.errors import ConfigError
from cmibq.eval.answers import ask, random_text
from cmibq.eval.loading import open_model
from cmibq.eval.verify import LIMITS, Verification, compare
from cmibq.fileio import write_json
from cmibq.io import Package, check_probe
from cmibq.models import LoadedModel, load
from cmibq.ops.library import torch_threads
from cmibq.recipe import parse_model_args
from cmibq.recipe.tools import VerifyConfig

__all__ = ["verify"]


def _float_folder(config: VerifyConfig, package: Package | None) -> Path:
    if config.against:
        return Path(config.against).expanduser()
    source = str(package.manifest.recipe.get("model_args", "")) if package else ""
    if not source:
        raise ConfigError(
            f"{config.path} does not say what it was made from; pass --against FLOAT_FOLDER"
        )
    return parse_model_args(source)


def _samples(config: VerifyConfig, loaded: LoadedModel) -> list[Encoded]:
    if not config.data_path:
        return random_text(loaded)
    items = read_items(config.data_path, config.image_folder)[: config.n_samples]
    check_images(items)
    return encode(items, loaded.processor)


def verify(config: VerifyConfig) -> Verification:
    """Compare a quantised model with the float model: KL, top tokens, captions, its own probe.

    The two are in memory one after the other.

    Args:
        config: what to compare.

    Raises:
        ConfigError: the float model is not known.
        ModelError: a model cannot be opened.
        PackageError: the package is damaged.
        DataError: the samples cannot be used.
    """
    with torch_threads(config.threads):
        loaded, package = open_model(config.path)
        probe = check_probe(loaded.model, package) if package else None
        samples = _samples(config, loaded)
        after = ask(loaded, samples)
        del loaded
        before = ask(load(_float_folder(config, package)), samples)
    bits = package.manifest.fewest_bits if package else 8
    asked: dict[str, Any] = {"kl": config.max_kl, "top1": config.min_top1}
    given = {name: value for name, value in asked.items() if value is not None}
    found = compare(
        before,
        after,
        bits=bits,
        samples=len(samples),
        held_out=True,
        reload_exact=probe.exact if probe else None,
        limit=dataclasses.replace(LIMITS[bits], **given),
    )
    if config.output_path:
        write_json(Path(config.output_path).expanduser(), found.to_json())
    return found
