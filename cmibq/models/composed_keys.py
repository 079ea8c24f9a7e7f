"""Names of weights in checkpoints of composed towers, ours and those of the public CALM fork."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

from cmibq.errors import ModelError

__all__ = ["check_modules", "module_state", "tower_state"]

T = TypeVar("T")
_MODULES = "calm_modules."
_TOWERS = ("anchor_tower.", "augmenting_tower.", _MODULES)
_DOUBLE = {
    ".projection.projection.": ".projection.",
    ".cross_attention.cross_attention.": ".cross_attention.",
}
"""The fork wraps both in a module of the same name."""
_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")
"""The fork's anchor is a whole CLIP model, text tower included."""


def _local(name: str) -> str:
    """Return a name without what hosts put before it (``vision_tower._vision_tower.``)."""
    at = min((i for i in map(name.find, _TOWERS) if i >= 0), default=-1)
    return name[at:] if at > 0 else name


def module_state(state: Mapping[str, T]) -> dict[str, T]:
    """Return the entries of the fusions under the names of `CALMVisionTower`.

    Args:
        state: of a composed tower, of a host that holds one, or of the public fork.

    Example:
        >>> module_state({"vision_tower.calm_modules.0.projection.projection.bias": 1})
        {'calm_modules.0.projection.bias': 1}
    """
    found = {}
    for name, value in state.items():
        local = _local(name)
        if local.startswith(_MODULES):
            for double, single in _DOUBLE.items():
                local = local.replace(double, single)
            found[local] = value
    return found


def tower_state(tower: nn.Module, state: Mapping[str, T]) -> dict[str, T]:
    """Return all entries of a composed tower under the names that `tower` has.

    ``vision_model.``, which transformers puts before the names of CLIP's layers or leaves out, is
    put right; CLIP's text tower is left out.

    Args:
        tower: a `CALMVisionTower`.
        state: of a composed tower, of a host that holds one, or of the public fork.

    Returns:
        Entries by name; what has no place in `tower` keeps its name.
    """
    own = set(tower.state_dict())
    found = module_state(state)
    for name, value in state.items():
        local = _local(name)
        part, _, rest = local.partition(".")
        if local.startswith(_MODULES) or not local.startswith(_TOWERS) or rest.startswith(_TEXT):
            continue
        other = f"{part}.{rest.removeprefix('vision_model.')}"
        longer = f"{part}.vision_model.{rest}"
        found[next((n for n in (local, other, longer) if n in own), local)] = value
    return found


def _advice(missing: list[str], extra: list[str], told: int, own: int) -> str:
    if told != own:
        return f"it was made with composition_layers = {told}; this tower has {own}"
    if missing and all(".norm." in n for n in missing):
        return "it has no layer norm, like those of the public fork; set norm to 'none'"
    if extra and all(".norm." in n for n in extra):
        return "it has a layer norm; set norm to 'post'"
    return "it was made with another fusion_strategy, dimension_mapping or pair of towers"


def check_modules(tower: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse fusions that are not those of a tower; needs the header of a file alone.

    Args:
        tower: a `CALMVisionTower`, which may be on the meta device.
        shapes: of `module_state`.
        where: file, for the message.

    Raises:
        ModelError: naming weights, and the configuration that would fit where it can be told.
    """
    own = {n: tuple(p.shape) for n, p in tower.state_dict().items() if n.startswith(_MODULES)}
    if not shapes:
        raise ModelError(
            f"{where} has no calm_modules; it is no checkpoint of a composed tower, pass the one"
            " that CALMVisionTower.save_pretrained or the public CALM fork wrote"
        )
    missing, extra = sorted(own.keys() - shapes.keys()), sorted(shapes.keys() - own.keys())
    other = sorted(n for n in own.keys() & shapes.keys() if own[n] != tuple(shapes[n]))
    if not missing and not extra and not other:
        return
    counts = [len({n.split(".")[1] for n in some}) for some in (shapes, own)]
    some = ", ".join(
        [f"{n} is missing" for n in missing[:2]]
        + [f"{n} is not known" for n in extra[:2]]
        + [f"{n} is {list(shapes[n])}, not {list(own[n])}" for n in other[:2]]
    )
    raise ModelError(
        f"{where} does not fit this composed tower ({some}); {_advice(missing, extra, *counts)}"
    )
