"""Swapping the linear layers of a model for quantised ones, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from cmibq.errors import ModelError, nearest
from cmibq.nn.embedding import PackedEmbedding
from cmibq.nn.linear import QuantLinear
from cmibq.nn.packed import PackedLinear
from cmibq.quant.spec import QParams, QuantSpec

__all__ = ["convert_", "iter_packed", "prepare_"]

Progress = Callable[[Iterable[str]], Iterable[str]]


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = _layer(model, name)
    if not isinstance(module, nn.Linear):
        raise ModelError(f"{name}: is a {type(module).__name__}; only nn.Linear can be quantised")
    return module


def _layer(model: nn.Module, name: str) -> nn.Linear | nn.Embedding:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        raise ModelError(f"the model has no layer {name!r}; {nearest(name, linears)}") from error
    if not isinstance(module, nn.Linear | nn.Embedding):
        raise ModelError(
            f"{name}: is a {type(module).__name__}; only nn.Linear and nn.Embedding can be packed"
        )
    return module


def _places(model: nn.Module, targets: Mapping[str, QuantSpec]) -> dict[str, list[str]]:
    """Return target -> all names that get its new layer: a layer that is shared stays shared.

    That is a module under several names, or several modules with the same parameters and spec.
    """
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    specs: dict[int, tuple[str, QuantSpec]] = {}
    first: dict[tuple[object, ...], str] = {}
    places: dict[str, list[str]] = {}
    for name, spec in targets.items():
        linear = _layer(model, name)
        other, known = specs.setdefault(id(linear), (name, spec))
        if known != spec:
            raise ModelError(f"{name}: is the same layer as {other}, but has another spec")
        own = id(linear) if isinstance(linear, QuantLinear) else 0  # it may have learned its grids
        kind = (
            isinstance(linear, nn.Embedding),
            id(linear.weight),
            id(getattr(linear, "bias", None)),
        )
        head = first.setdefault((*kind, own, spec), name)
        found = places.setdefault(head, [])
        found += [place for place in names[id(linear)] if place not in found]
    return places


def prepare_(
    model: nn.Module,
    targets: Mapping[str, QuantSpec],
    act_bits: int = 16,
    *,
    quantizer: str = "affine",
) -> None:
    """Replace linear layers by `QuantLinear` in state fake; parameters stay the same objects.

    A layer that the model has under several names is replaced under all of them by one. All
    layers are quantised before the first is replaced, so an error leaves the model as it was.

    Args:
        model: changed in place.
        targets: name of a linear layer in the model -> how its weight is quantised.
        act_bits: bits of the activations, 2..8 or 16.
        quantizer: name in `cmibq.quant.quantizers.QUANTIZERS`.

    Raises:
        ModelError: no such layer, NaN weights, a group size that does not divide; names the layer.

    Example:
        >>> from cmibq.quant import PerGroup
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> prepare_(model, {"0": QuantSpec(3, PerGroup(8))})
        >>> [type(m).__name__ for m in model]
        ['QuantLinear', 'ReLU', 'Linear']
    """
    places = _places(model, targets)
    new = {
        name: QuantLinear.from_linear(
            _linear(model, name), targets[name], act_bits=act_bits, quantizer=quantizer, name=name
        )
        for name in places
    }
    for name, module in new.items():
        for place in places[name]:
            model.set_submodule(place, module)


def convert_(
    model: nn.Module,
    targets: Mapping[str, QuantSpec],
    act_bits: int = 16,
    *,
    grids: Mapping[str, QParams] | None = None,
    progress: Progress | None = None,
) -> None:
    """Replace linear layers by `PackedLinear`, one at a time, so that float weights can be freed.

    A `QuantLinear` with grids is packed on those grids, another layer on those of its spec. A layer
    that the model has under several names, and layers that share their parameters and have the same
    spec, become one packed layer. An embedding becomes a `PackedEmbedding`.

    Args:
        model: changed in place.
        targets: name of a linear layer (or embedding) in the model -> how its weight is quantised.
        act_bits: 8 or 16, of the linear layers.
        grids: target -> grids of its weight that are known already, from `cmibq.quant.round_weight`
            for example.
        progress: wraps the names while they are worked on, for example `tqdm.tqdm`.

    Raises:
        ModelError: no such layer, NaN weights, groups that cannot be packed; names the layer. The
            layers before it are replaced by then; the names are checked before the first is.

    Example:
        >>> from cmibq.quant import PerGroup
        >>> model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> convert_(model, {"0": QuantSpec(3, PerGroup(8))})
        >>> [name for name, _ in iter_packed(model)]
        ['0']
    """
    places = _places(model, targets)
    for name in progress(places) if progress else places:
        linear, spec = _layer(model, name), targets[name]
        new: PackedLinear
        if isinstance(linear, nn.Embedding):
            new = PackedEmbedding.from_embedding(linear, spec, name=name)
        elif isinstance(linear, QuantLinear) and linear.weight_quantizer is not None:
            found = linear.qparams()
            new = PackedLinear.from_qparams(
                linear, linear.spec, found, act_bits=act_bits, name=name
            )
        elif grids is not None and name in grids:
            new = PackedLinear.from_qparams(linear, spec, grids[name], act_bits=act_bits, name=name)
        else:
            new = PackedLinear.from_linear(linear, spec, act_bits=act_bits, name=name)
        for place in places[name]:
            model.set_submodule(place, new)


def iter_packed(model: nn.Module) -> Iterator[tuple[str, PackedLinear]]:
    """Yield (name, layer) of every packed layer.

    Example:
        >>> list(iter_packed(nn.Linear(2, 2)))
        []
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            yield name, module
