"""Rounding the weights of a float model in memory, to measure without packing."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from cmibq.errors import ModelError
from cmibq.io import ScaleEntry, load_scales
from cmibq.io.manifest import LayerSpec
from cmibq.models import LoadedModel
from cmibq.nn import prepare_
from cmibq.quant import PerGroup, fake_quantize_weight
from cmibq.recipe import EvalConfig
from cmibq.search import LinearGroup, SearchConfig, apply_scales_, weight_spec

__all__ = ["pseudo_quantize_"]


def _apply_file_(loaded: LoadedModel, path: str) -> None:
    """Fuse the scales of a file into the model."""
    adapter, modules = loaded.adapter, dict(loaded.model.named_modules())
    groups: dict[tuple[str, ...], LinearGroup] = {
        ScaleEntry(group.prev, group.linears, torch.ones(1)).place: group
        for name, block in adapter.blocks(loaded.model)
        for group in adapter.groups(name, block)
    }
    for entry in load_scales(Path(path).expanduser()).entries:
        group = groups.get(entry.place)
        if group is None:
            raise ModelError(
                f"{path}: the model has no group {entry.prev} -> {', '.join(entry.linears)}; the "
                "scales belong to another model"
            )
        apply_scales_(modules, group, entry.scales)


@torch.no_grad()
def pseudo_quantize_(loaded: LoadedModel, cfg: EvalConfig) -> dict[str, LayerSpec]:
    """Apply scales and round the weights of the decoder's linear layers, all in float.

    Weights only: they are rounded in place. With quantised activations the layers become
    `QuantLinear`, which rounds its inputs per token.

    Args:
        loaded: its model is changed.
        cfg: bits, group, variant and file of scales.

    Returns:
        How each layer would be stored.

    Raises:
        ModelError: NaN weights, a group size that does not divide, scales of another model.
        PackageError: the file of scales is missing or damaged.
    """
    model, names = loaded.model, loaded.adapter.targets(loaded.model)
    acts = cfg.a_bit if cfg.a_bit < 16 else None
    spec = weight_spec(
        SearchConfig(
            cfg.w_bit, cfg.w_group, symmetric=acts is not None, act_bits=acts, variant=cfg.variant
        )
    )
    if cfg.scale_path:
        _apply_file_(loaded, cfg.scale_path)
    if acts is not None:
        prepare_(model, dict.fromkeys(names, spec), acts)
    else:
        for name in names:
            weight = model.get_parameter(f"{name}.weight")
            weight.copy_(fake_quantize_weight(weight.float(), spec, name=name))
    size = spec.granularity.size if isinstance(spec.granularity, PerGroup) else 0
    return {
        name: LayerSpec(_shape(model.get_submodule(name)), spec.bits, size, spec.symmetric)
        for name in names
    }


def _shape(linear: nn.Module) -> tuple[int, int]:
    return int(getattr(linear, "out_features", 0)), int(getattr(linear, "in_features", 0))
