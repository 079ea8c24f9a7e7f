"""Swapping the linear layers of a model for quantised ones, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from torch import nn

from cmibq.errors import ModelError, nearest
from cmibq.nn.linear import QuantLinear
from cmibq.nn.packed import PackedLinear
from cmibq.quant.spec import QuantSpec

__all__ = ["convert_", "iter_packed", "prepare_"]

Progress = Callable[[Iterable[str]], Iterable[str]]


def _linear(model: nn.Module, name: str) -> nn.Linear:
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
        raise ModelError(f"the model has no layer {name!r}; {nearest(name, linears)}") from error
    if not isinstance(module, nn.Linear):
        raise ModelError(f"{name}: is a {type(module).__name__}; only nn.Linear can be quantised")
    return module


def prepare_(
    model: nn.Module,
    targets: Mapping[str, QuantSpec],
    act_bits: int = 16,
    *,
    quantizer: str = "affine",
) -> None:
    """Replace linear layers by `QuantLinear` in state fake; parameters stay the same objects.

    All layers are quantised before the first is replaced, so an error leaves the model as it was.

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
    new = {
        name: QuantLinear.from_linear(
            _linear(model, name), spec, act_bits=act_bits, quantizer=quantizer, name=name
        )
        for name, spec in targets.items()
    }
    for name, module in new.items():
        model.set_submodule(name, module)


def convert_(
    model: nn.Module,
    targets: Mapping[str, QuantSpec],
    act_bits: int = 16,
    *,
    progress: Progress | None = None,
) -> None:
    """Replace linear layers by `PackedLinear`, one at a time, so that float weights can be freed.

    A `QuantLinear` with grids is packed on those grids, another layer on those of its spec.

    Args:
        model: changed in place.
        targets: name of a linear layer in the model -> how its weight is quantised.
        act_bits: 8 or 16.
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
    for name in targets:
        _linear(model, name)
    for name in progress(targets) if progress else targets:
        linear, spec = _linear(model, name), targets[name]
        if isinstance(linear, QuantLinear) and linear.weight_quantizer is not None:
            grids = linear.qparams()
            new = PackedLinear.from_qparams(
                linear, linear.spec, grids, act_bits=act_bits, name=name
            )
        else:
            new = PackedLinear.from_linear(linear, spec, act_bits=act_bits, name=name)
        model.set_submodule(name, new)


def iter_packed(model: nn.Module) -> Iterator[tuple[str, PackedLinear]]:
    """Yield (name, layer) of every packed layer.

    Example:
        >>> list(iter_packed(nn.Linear(2, 2)))
        []
    """
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            yield name, module
