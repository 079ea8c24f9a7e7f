"""Packages in other formats, each read back after it was written."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from cmibq.errors import ConfigError, ModelError, PackageError
from cmibq.eval.loading import open_model
from cmibq.fileio import atomic_dir, write_json
from cmibq.io import Package, save
from cmibq.io.gguf import check_file, open_gguf, summary, write_language_model
from cmibq.io.gguf_vision import write_projector
from cmibq.io.tensors import read_tensors
from cmibq.io.tokens import read_vocabulary
from cmibq.models import LoadedModel
from cmibq.ptq.job import check_foreign, is_result
from cmibq.recipe.tools import ExportConfig

__all__ = ["export"]

_LANGUAGE, _VISION, _NOTE = "model.gguf", "mmproj.gguf", "export.json"
_MOST_OFF = 0.004  # of the largest weight; rounding minima to float16 stays far below
_logger = logging.getLogger(__name__)


def _as_package(package: Package, loaded: LoadedModel, config: ExportConfig) -> dict[str, Any]:
    """Write the same model in another layout, with the probe of the first one."""
    manifest = package.manifest
    probe, _ = read_tensors(package.path / "probe.safetensors")
    probe.pop("logits", None)
    made = save(
        loaded.model,
        package.path,
        config.output_path,
        recipe=manifest.recipe,
        metadata=manifest.metadata,
        probe=probe or None,
        layout=config.format,
        overwrite=config.overwrite,
    )
    return {"layers": len(made.manifest.layers), "exact": len(made.manifest.layers)}


def _vision(loaded: LoadedModel, path: Path) -> None:
    model: Any = loaded.model
    inner = getattr(model, "model", model)
    images = loaded.processor.image_processor
    told = {"image_mean": images.image_mean, "image_std": images.image_std}
    write_projector(inner.vision_tower, inner.multi_modal_projector, model.config, told, path)


def _as_gguf(loaded: LoadedModel, config: ExportConfig) -> dict[str, Any]:
    model: Any = loaded.model
    adapter, text = loaded.adapter, model.config.get_text_config()
    decoder = adapter.decoder(model)
    vocabulary = read_vocabulary(loaded.path, int(text.vocab_size))
    if vocabulary.problem:
        _logger.warning("%s; the file has no tokenizer, give token ids", vocabulary.problem)
    if config.mmproj and adapter.family != "llava":
        raise ModelError(
            f"mmproj is not written for family {adapter.family!r} yet, only for llava; pass"
            " --no_mmproj for the language model alone"
        )
    with atomic_dir(config.output_path, overwrite=config.overwrite) as folder:
        file = folder / _LANGUAGE
        written = write_language_model(
            decoder,
            adapter.lm_head(model),
            text,
            vocabulary,
            file,
            name=loaded.path.name,
            exact=config.exact,
        )
        differences = check_file(file, written)
        facts = summary(written, differences)
        wrong = [n for n, d in differences.items() if d > _MOST_OFF and n not in written.anew]
        if wrong:
            raise PackageError(f"{file}: {wrong[0]} is not the layer that was written; try again")
        if config.mmproj:
            _vision(loaded, folder / _VISION)
        write_json(folder / _NOTE, facts | {"tokenizer": vocabulary.model})
    if written.anew:
        _logger.warning(
            "%d layers fit no block of llama.cpp and were rounded anew (%s ...); choose groups of"
            " 32 weights or a multiple",
            len(written.anew),
            written.anew[0],
        )
    return facts


def _check_output(config: ExportConfig) -> None:
    """Refuse to replace anything but an earlier result; the package itself may be."""
    out, source = (Path(p).expanduser().resolve() for p in (config.output_path, config.path))
    if not config.overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    if source != out and source.is_relative_to(out):
        raise ConfigError(f"output_path {str(out)!r} holds the package; choose another folder")
    if not is_result(out) and not (out / _NOTE).is_file():
        raise ConfigError(
            f"output_path {str(out)!r} holds something that cmibq did not write; choose another"
            " folder"
        )
    check_foreign(out)


def export(config: ExportConfig) -> dict[str, Any]:
    """Write a package in another format, read it back and compare the weights.

    Args:
        config: what to write.

    Returns:
        ``layers``, ``exact`` (how many have the very same weights), and for GGUF ``kinds`` of
        blocks, layers rounded ``anew`` or with ``rounded`` minima, and the ``largest_difference``
        as a share of the largest weight.

    Raises:
        ConfigError: the folder is no package, the package ``gguf`` is not installed, or what is to
            be replaced is no result.
        ModelError: the format cannot hold the model.
        PackageError: what was read back is not what was written.
        StorageError: the folder cannot be written.
    """
    if config.format == "gguf":
        open_gguf()
    _check_output(config)
    loaded, package = open_model(config.path)
    if package is None:
        raise ConfigError(f"{config.path} is no package; quantise the model first")
    if config.format == "gguf":
        return _as_gguf(loaded, config)
    return _as_package(package, loaded, config)
