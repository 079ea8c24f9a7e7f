"""The package: a folder with packed weights, a manifest and everything needed to use the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

import cmibq
from cmibq.errors import DataError, ModelError, PackageError
from cmibq.fileio import atomic_dir, read_json, sha256_file, write_json
from cmibq.io.compressed_tensors import METHOD, refusal
from cmibq.io.environment import environment
from cmibq.io.layout import (
    CONFIG,
    LAYOUTS,
    Layout,
    copy_companions,
    layout_of,
    model_config,
    without_copies,
)
from cmibq.io.manifest import MANIFEST, FileInfo, LayerSpec, Manifest, read_manifest
from cmibq.io.probe import ProbeCheck, align_, answer, compare
from cmibq.io.restore import assign_, check_scales, follow_dtype_, share_, shared_layers, swap_
from cmibq.io.tensors import read_tensors, write_tensors
from cmibq.nn import PackedEmbedding, PackedLinear, iter_packed
from cmibq.recipe import MOST_THREADS

__all__ = [
    "WEIGHTS",
    "Package",
    "ProbeCheck",
    "add_metadata",
    "best_layout",
    "check_probe",
    "is_package",
    "load",
    "save",
]

WEIGHTS: Final = LAYOUTS["cmibq"].weights
BUFFERS: Final = "buffers.safetensors"
PROBE: Final = "probe.safetensors"


@dataclass(frozen=True)
class Package:
    """A package on disk whose files have been checked.

    Args:
        path: the folder.
        manifest: its manifest.
        config: its ``config.json``.
    """

    path: Path
    manifest: Manifest
    config: Mapping[str, Any]

    @property
    def layout(self) -> Layout:
        """How the layers are written."""
        return LAYOUTS[self.manifest.layout]

    def fill_(self, model: nn.Module) -> nn.Module:
        """Give a model of the right architecture the layers and tensors of the package.

        Quantised layers become `PackedLinear`. No float copy of a packed weight is made if `model`
        was built on the ``meta`` device.

        Args:
            model: as its configuration makes it, on the CPU or the ``meta`` device; changed.

        Returns:
            The model, in evaluation mode, without gradients.

        Raises:
            PackageError: tensors are missing or left over, or a shape or scale cannot be.
        """
        for name, spec in self.manifest.layers.items():
            swap_(model, name, spec, self.path)
        shared = {a: b for a, b in self.manifest.tied.items() if b in self.manifest.layers}
        for name, first in shared.items():
            share_(model, name, first, self.path)
        found, _ = read_tensors(self.path / self.layout.weights)
        tensors = self.layout.read(found, self.manifest.layers)
        buffers, _ = read_tensors(self.path / BUFFERS)
        check_scales(tensors, self.manifest, self.path)
        tied = {a: b for a, b in self.manifest.tied.items() if a not in shared}
        assign_(model, tensors | buffers, tied, self.path)
        follow_dtype_(model)
        return model.requires_grad_(False).eval()


def is_package(folder: str | Path) -> bool:
    """Return whether a folder has a manifest."""
    return (Path(folder) / MANIFEST).is_file()


def save(
    model: nn.Module,
    source: str | Path,
    out: str | Path,
    *,
    recipe: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    probe: Mapping[str, Tensor] | None = None,
    layout: str = "cmibq",
    overwrite: bool = False,
) -> Package:
    """Write a model with packed layers as a package; the folder appears when it is complete.

    Args:
        model: with `PackedLinear` layers; its ``config`` (if any) replaces that of `source`. Its
            tensors may be moved in memory; their values stay.
        source: folder of the model it was made from: tokenizer and processor files are copied.
        out: folder to make.
        recipe: how it was made, JSON values.
        metadata: anything else to keep, JSON values.
        probe: inputs of one forward pass; they are saved with the logits that `model` computes, so
            that a reload can be compared bit for bit.
        layout: ``"cmibq"``, or ``"compressed-tensors"``, which programs without cmibq open and
            which holds symmetric layers with one width each.
        overwrite: replace a folder that is not empty.

    Returns:
        The package.

    Raises:
        ModelError: `model` has no packed layer, or one that the layout cannot hold.
        ConfigError: no such layout.
        StorageError: disk full, not permitted, or `out` exists and `overwrite` is not set.
    """
    layers = {name: _describe(layer) for name, layer in iter_packed(model)}
    if not layers:
        raise ModelError("the model has no packed layer; run convert_ before it is saved")
    form = _layout_for(model, layout)
    align_(model)
    shared = shared_layers(model)
    parts, tied = _contents(model, layers, shared, form, probe)
    end = ".qweight"
    again = {n.removesuffix(end): a.removesuffix(end) for n, a in tied.items() if n.endswith(end)}
    config = model_config(model, Path(source), layers, {**shared, **again}, form)
    with atomic_dir(out, overwrite=overwrite) as folder:
        files = {name: _write(folder / name, tensors) for name, tensors in parts.items()}
        write_json(folder / CONFIG, config)
        for name in (CONFIG, *copy_companions(Path(source), folder)):
            files[name] = FileInfo(sha256_file(folder / name), (folder / name).stat().st_size)
        manifest = Manifest(
            cmibq=cmibq.__version__,
            files=files,
            layers=layers,
            tied=tied,
            recipe=dict(recipe),
            metadata=dict(metadata or {}),
            environment=environment(),
            layout=layout,
        )
        write_json(folder / MANIFEST, manifest.to_json())
    return load(out, verify=False)


def load(folder: str | Path, *, verify: bool = True) -> Package:
    """Open a package and check it: version, manifest, size and SHA-256 of every file.

    Args:
        folder: the package.
        verify: also read every file to compare its hash.

    Raises:
        PackageError: a file is missing, truncated or altered (named), or the package is newer than
            this library.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    form = LAYOUTS[manifest.layout]
    for name in (form.weights, BUFFERS, PROBE, CONFIG):
        if name not in manifest.files:
            raise PackageError(f"{path / MANIFEST} does not list {name}; make the package again")
    for name, info in manifest.files.items():
        _verify(path / name, info, content=verify)
    config = _read_config(path / CONFIG)
    told = config["quantization_config"]
    if form is LAYOUTS[METHOD]:
        agree = told == form.config(manifest.layers, {})
    else:
        agree = told.get("layers") == {n: spec.to_json() for n, spec in manifest.layers.items()}
    if not agree:
        raise PackageError(f"{path}: {CONFIG} and {MANIFEST} disagree on the quantised layers")
    return Package(path, manifest, config)


def add_metadata(package: Package, **values: Any) -> Package:
    """Add entries to the metadata of a package on disk, such as what a check of it gave.

    Raises:
        StorageError: the manifest cannot be written; the old one is then still there.
    """
    known = {**package.manifest.metadata, **values}
    manifest = dataclasses.replace(package.manifest, metadata=known)
    write_json(package.path / MANIFEST, manifest.to_json())
    return dataclasses.replace(package, manifest=manifest)


def check_probe(model: nn.Module, package: Package) -> ProbeCheck | None:
    """Run the saved inputs through a reloaded model and compare with the saved logits.

    Uses as many threads as when they were saved, because float sums of other libraries depend on
    that.

    Returns:
        The comparison, or None if the package was saved without a probe.
    """
    threads = package.manifest.environment.get("threads")
    sane = type(threads) is int and 1 <= threads <= MOST_THREADS
    return compare(model, package.path / PROBE, threads if sane else None)


def _contents(
    model: nn.Module,
    layers: Mapping[str, LayerSpec],
    shared: Mapping[str, str],
    form: Layout,
    probe: Mapping[str, Tensor] | None,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Return the tensors of every file, and name -> name of the tensor that is the same."""
    state = {n: t for n, t in model.state_dict().items() if n.rpartition(".")[0] not in shared}
    weights, tied = without_copies(state)
    known = {*weights, *tied, *(f"{name}.tiles" for name in layers)}  # tiles: another form of codes
    buffers = {n: t for n, t in model.named_buffers() if n not in known}
    parts = {form.weights: form.write(weights, layers), BUFFERS: buffers}
    parts[PROBE] = {} if probe is None else answer(model, probe)
    return parts, tied | dict(shared)


def best_layout(model: nn.Module) -> str:
    """Return the layout of `save` that most programs open and that can hold a model."""
    layers = {name: _describe(layer) for name, layer in iter_packed(model)}
    portable = refusal(layers) is None and not shared_layers(model) and not _packed_table(model)
    return METHOD if portable else "cmibq"


def _layout_for(model: nn.Module, name: str) -> Layout:
    form = layout_of(name)
    if form is LAYOUTS[METHOD] and (table := _packed_table(model)):
        raise ModelError(
            f"{table} is a packed embedding, which transformers cannot open; write it with format"
            " cmibq"
        )
    return form


def _packed_table(model: nn.Module) -> str | None:
    return next((n for n, m in iter_packed(model) if isinstance(m, PackedEmbedding)), None)


def _describe(module: PackedLinear) -> LayerSpec:
    return LayerSpec(
        shape=(module.out_features, module.in_features),
        bits=module.bits,
        group_size=module.group_size,
        symmetric=module.symmetric,
        act_bits=module.act_bits,
        bias=module.bias is not None,
    )


def _write(path: Path, tensors: Mapping[str, Tensor]) -> FileInfo:
    with path.open("xb") as file:
        return FileInfo(*write_tensors(file, tensors))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path)
    except DataError as error:
        raise PackageError(f"{error}; copy or make the package again") from error
    if not isinstance(config, dict) or not isinstance(config.get("quantization_config"), dict):
        raise PackageError(f"{path} has no quantization_config; make the package again")
    return config


def _verify(path: Path, info: FileInfo, *, content: bool) -> None:
    try:
        size = path.stat().st_size
        if size != info.bytes:
            what = "truncated" if size < info.bytes else "altered"
            raise PackageError(
                f"{path} is {what}: {size} bytes, the manifest says {info.bytes}; copy it again"
            )
        if content and sha256_file(path) != info.sha256:
            raise PackageError(f"{path} is altered: its SHA-256 differs from the manifest's")
    except OSError as error:
        raise PackageError(f"{path} cannot be read ({error.strerror}); copy it again") from error
