"""Putting the tensors of a package into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cmibq.errors import CmibqError, PackageError
from cmibq.io.manifest import LayerSpec, Manifest
from cmibq.nn import PackedEmbedding, PackedLinear, iter_packed

__all__ = [
    "assign_",
    "check_scales",
    "follow_dtype_",
    "packed_like",
    "share_",
    "shared_layers",
    "swap_",
]


def packed_like(spec: LayerSpec, old: nn.Module | None = None) -> PackedLinear:
    """Return a layer of the right shape on the ``meta`` device, without content.

    Args:
        spec: how the layer is stored.
        old: what it takes the place of; an embedding becomes a `PackedEmbedding`.
    """
    with torch.device("meta"):
        if isinstance(old, nn.Embedding):
            return PackedEmbedding(
                *spec.shape,
                bits=spec.bits,
                group_size=spec.group_size,
                symmetric=spec.symmetric,
                act_bits=spec.act_bits,
                bias=spec.bias,
                dtype=old.weight.dtype,
            )
        return PackedLinear(
            spec.shape[1],
            spec.shape[0],
            bits=spec.bits,
            group_size=spec.group_size,
            symmetric=spec.symmetric,
            act_bits=spec.act_bits,
            bias=spec.bias,
        )


def swap_(model: nn.Module, name: str, spec: LayerSpec, where: Path) -> None:
    """Replace the linear layer or embedding `name` of a model by an empty packed one.

    Raises:
        PackageError: the model has no such layer, or it has another shape.
    """
    old = _layer(model, name, where)
    found = _shape(old)
    if found != tuple(spec.shape):
        raise PackageError(
            f"{where}: layer {name} is {found} in the model and {tuple(spec.shape)} in the package"
        )
    try:
        new = packed_like(spec, old)
    except CmibqError as error:
        raise PackageError(f"{where}: layer {name}: {error}") from error
    model.set_submodule(name, new)


def shared_layers(model: nn.Module) -> dict[str, str]:
    """Return further name -> first name of every packed layer that a model has more than once."""
    first: dict[int, str] = {}
    shared = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, PackedLinear) and first.setdefault(id(module), name) != name:
            shared[name] = first[id(module)]
    return shared


def share_(model: nn.Module, name: str, first: str, where: Path) -> None:
    """Put the packed layer `first` of a model also at `name`.

    Raises:
        PackageError: the model has no layer `name`, or it has another shape.
    """
    layer = model.get_submodule(first)
    old = _layer(model, name, where)
    found, wanted = _shape(old), _shape(layer)
    if found != wanted:
        raise PackageError(
            f"{where}: layer {name} is {found} in the model, but it is tied to {first}, {wanted}"
        )
    model.set_submodule(name, layer)


def _layer(model: nn.Module, name: str, where: Path) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise PackageError(f"{where}: the model has no layer {name}; check config.json") from error


def _shape(layer: nn.Module) -> tuple[object, object]:
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    return getattr(layer, "out_features", None), getattr(layer, "in_features", None)


def check_scales(tensors: Mapping[str, Tensor], manifest: Manifest, where: Path) -> None:
    """Check that every scale is finite and > 0, so that no result can be NaN because of one.

    Mixed widths must be those of the manifest.

    Raises:
        PackageError: a scale is not, or a layer has none; widths differ.
    """
    for name, spec in manifest.layers.items():
        widths = tensors.get(f"{name}.strip_bits")
        if widths is not None and tuple(widths.flatten().tolist()) != spec.bits:
            raise PackageError(f"{where}: strip_bits of layer {name} are not those of the manifest")
        own = f"{name}.scales"
        scales = tensors.get(manifest.tied.get(own, own))
        if scales is None or not bool((torch.isfinite(scales) & (scales > 0)).all()):
            raise PackageError(f"{where}: layer {name} lacks scales that are finite and > 0")


def follow_dtype_(model: nn.Module) -> None:
    """Let packed embeddings give the data type that the float parameters of the model have."""
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
    for layer in model.modules():
        if isinstance(layer, PackedEmbedding) and floats:
            layer.dtype = max(set(floats), key=floats.count)


def assign_(
    model: nn.Module, tensors: Mapping[str, Tensor], tied: Mapping[str, str], where: Path
) -> None:
    """Make the tensors those of the model, without a copy.

    Args:
        model: its parameters and buffers are replaced.
        tensors: of every parameter and buffer, by name.
        tied: name -> name of the tensor that it is the same as.
        where: the package, for messages.

    Raises:
        PackageError: a tensor is missing or left over, or has another shape or kind.
    """
    expected: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
    expected.update(model.named_parameters(remove_duplicate=False))
    packed = dict(iter_packed(model))
    shared = shared_layers(model)  # a layer that is there twice has its tensors once
    expected = {n: t for n, t in expected.items() if n.rpartition(".")[0] not in shared}
    missing = expected.keys() - tensors.keys() - tied.keys()
    extra = tensors.keys() - expected.keys()
    if missing or extra:
        what = f"lacks {min(missing)}" if missing else f"has {min(extra)}, unknown to the model"
        raise PackageError(f"{where}: the package {what}; it does not fit its config.json")
    for name, old in expected.items():
        source = tied.get(name, name)
        if source not in tensors:
            raise PackageError(f"{where}: {name} is tied to {source}, which is missing")
        new = tensors[source]
        exact = name.rpartition(".")[0] in packed
        kind = (
            new.dtype == old.dtype if exact else new.is_floating_point() == old.is_floating_point()
        )
        if new.shape != old.shape or not kind:
            raise PackageError(
                f"{where}: {name} is {new.dtype} {list(new.shape)}, the model has {old.dtype} "
                f"{list(old.shape)}"
            )
    made: dict[str, nn.Parameter] = {}
    for name, old in expected.items():
        parent, _, leaf = name.rpartition(".")
        module, source = model.get_submodule(parent), tied.get(name, name)
        if isinstance(old, nn.Parameter):
            made.setdefault(source, nn.Parameter(tensors[source], requires_grad=False))
            module._parameters[leaf] = made[source]
        else:
            module._buffers[leaf] = tensors[source]
