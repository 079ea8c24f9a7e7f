"""Rounding the weights of a float model in memory, to measure without packing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from cmibq.errors import ModelError
from cmibq.io import ScaleEntry, check_made_for, load_scales
from cmibq.io.manifest import LayerSpec
from cmibq.models import LoadedModel, fitting_group
from cmibq.nn import prepare_
from cmibq.quant import PerGroup, QuantSpec, fake_quantize_weight
from cmibq.recipe import EvalConfig, weights_hash
from cmibq.search import LinearGroup, SearchConfig, apply_scales_, weight_spec

__all__ = ["check_scales", "groups_of_entries", "pseudo_quantize_"]


def check_scales(cfg: EvalConfig, folder: Path) -> None:
    """Refuse a file of scales that says it was made for other settings or another model.

    Args:
        cfg: bits, group, method and file of scales.
        folder: the float model.

    Raises:
        ConfigError: a setting or the model differs; names it.
        PackageError: the file of scales is missing or damaged.
    """
    names = ("w_bit", "w_group", "a_bit", *(["method"] if cfg.method else []))
    wanted = {name: getattr(cfg, name) for name in names}
    check_made_for(Path(cfg.scale_path).expanduser(), wanted, weights_hash(folder))


def groups_of_entries(
    loaded: LoadedModel, entries: Sequence[ScaleEntry], scope: str
) -> Iterator[tuple[int, LinearGroup, ScaleEntry]]:
    """Yield the entries of a file of scales with their group and the number of its block.

    Args:
        loaded: the model.
        entries: what the file has.
        scope: parts of the model, see `Adapter.targets`.

    Raises:
        ModelError: an entry belongs to no group in scope.
    """
    places = {}
    for index, name, block in loaded.adapter.numbered(loaded.model, scope):
        for group in loaded.adapter.groups(name, block):
            key = ScaleEntry(group.prev, group.linears, torch.ones(1)).place
            width = loaded.model.get_parameter(f"{group.linears[0]}.weight").shape[1]
            places[key, width] = (index, group)
    for entry in entries:
        if (entry.place, len(entry.scales)) not in places:
            raise ModelError(
                f"the scales of {entry.prev} -> {', '.join(entry.linears)} belong to no group of"
                f" this model in scope {scope!r}; scale_path was made for another model or scope"
            )
        yield *places[entry.place, len(entry.scales)], entry


@torch.no_grad()
def pseudo_quantize_(loaded: LoadedModel, cfg: EvalConfig) -> dict[str, LayerSpec]:
    """Apply scales and round the weights of the linear layers in scope, all in float.

    Weights are rounded to the nearest level, as `cmibq.quantize` does with ``clip=False``: what it
    chooses by calibration data (clip, compensate) is in its result and not in a file of scales.

    Weights only: they are rounded in place. With quantised activations the layers become
    `QuantLinear`, which rounds its inputs per token.

    Args:
        loaded: its model is changed.
        cfg: bits, group, scope, variant and file of scales.

    Returns:
        How each layer would be stored.

    Raises:
        ModelError: NaN weights, a group size that does not divide, scales of another model.
        PackageError: the file of scales is missing or damaged.
    """
    model = loaded.model
    specs = _specs(loaded, cfg)
    if cfg.scale_path:
        modules = dict(model.named_modules())
        entries = load_scales(Path(cfg.scale_path).expanduser()).entries
        for _, group, entry in groups_of_entries(loaded, entries, cfg.scope):
            apply_scales_(modules, group, entry.scales)
    if cfg.a_bit < 16:
        prepare_(model, specs, cfg.a_bit)
    else:
        for name, spec in specs.items():
            weight = model.get_parameter(f"{name}.weight")
            weight.copy_(fake_quantize_weight(weight.float(), spec, name=name))
    return {
        name: LayerSpec(_shape(model.get_submodule(name)), spec.bits, _group(spec), spec.symmetric)
        for name, spec in specs.items()
    }


def _specs(loaded: LoadedModel, cfg: EvalConfig) -> dict[str, QuantSpec]:
    """Return how each layer in scope is rounded, as `cmibq.ptq` would do it."""
    adapter, model = loaded.adapter, loaded.model
    acts = cfg.a_bit if cfg.a_bit < 16 else None
    config = SearchConfig(
        cfg.w_bit, cfg.w_group, symmetric=acts is not None, act_bits=acts, variant=cfg.variant
    )
    decoder = set(adapter.targets(model))
    made = {}
    for name in adapter.targets(model, cfg.scope):
        width = model.get_parameter(f"{name}.weight").shape[1]
        size = cfg.w_group if name in decoder else fitting_group(width, cfg.w_group)
        made[name] = weight_spec(replace(config, group_size=size))
    return made


def _group(spec: QuantSpec) -> int:
    return spec.granularity.size if isinstance(spec.granularity, PerGroup) else 0


def _shape(linear: nn.Module) -> tuple[int, int]:
    return int(getattr(linear, "out_features", 0)), int(getattr(linear, "in_features", 0))
