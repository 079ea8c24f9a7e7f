"""Quantising whole tensors under a spec: what searches, modules and packing share."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from cmibq.errors import ConfigError, ModelError
from cmibq.ops.codes import fakequant_token
from cmibq.ops.fakequant import fakequant
from cmibq.quant.observers import OBSERVERS
from cmibq.quant.spec import QParams, QuantSpec

__all__ = ["fake_quantize_tokens", "fake_quantize_weight", "quantize_weight"]


def _matrix(w: Tensor, spec: QuantSpec, name: str) -> tuple[Tensor, Tensor | None]:
    """Return the matrix of a weight, and the width of each row where they differ."""
    try:
        m = spec.granularity.to_matrix(w)
        bits = None if isinstance(spec.bits, int) else spec.row_bits(w.shape)
    except ConfigError as error:
        raise ModelError(f"{name}: {error}") from error
    return m.to(torch.float32), bits


def _observe_mixed(m: Tensor, spec: QuantSpec, bits: Tensor) -> QParams:
    """Observe the rows of each width together."""
    scale, zero = m.new_empty(len(m)), torch.empty(len(m), dtype=torch.uint8, device=m.device)
    bits = bits.to(m.device)
    for width in bits.unique().tolist():
        at = (bits == width).nonzero().flatten()
        one = dataclasses.replace(spec, bits=width)
        found = OBSERVERS[spec.observer](one).observe(m[at])
        scale[at], zero[at] = found.scale, found.zero_point
    return QParams(scale, zero, bits)


def _observe(m: Tensor, spec: QuantSpec, bits: Tensor | None, name: str) -> QParams:
    if m.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(m)):
        bad = int((~torch.isfinite(m)).sum())
        raise ModelError(
            f"{name}: {bad} of {m.numel()} values are NaN or infinite; a quantised model needs "
            "finite weights, so check the checkpoint"
        )
    try:
        if bits is None:
            return OBSERVERS[spec.observer](spec).observe(m)
        return _observe_mixed(m, spec, bits)
    except ConfigError:
        raise
    except ValueError as error:  # a scale too large for float16
        raise ModelError(f"{name}: {error}") from error


def quantize_weight(w: Tensor, spec: QuantSpec, *, name: str = "weight") -> QParams:
    """Return the grids of a weight, one per row of its matrix.

    Args:
        w: any shape the granularity takes, [N, K] for a Linear; finite. Computed in float32, to
            which other dtypes are converted.
        spec: bits, granularity, range mode, observer.
        name: name of the layer, for messages.

    Returns:
        `QParams` with float32 scales; the rows are those of ``spec.granularity.matrix(w.shape)``.

    Raises:
        ModelError: NaN or infinite values, a group size that does not divide, another number of
            widths than there are strips of 16 outputs, a scale that overflows float16; names the
            layer.

    Example:
        >>> from cmibq.quant.spec import PerGroup, RangeMode
        >>> w = torch.tensor([[0.0, 1.0, 2.0, 3.0], [-4.0, 0.0, 4.0, 8.0]])
        >>> quantize_weight(w, QuantSpec(2, PerGroup(4), mode=RangeMode.ZERO_IN_RANGE)).scale
        tensor([1., 4.])
    """
    with torch.no_grad():
        m, bits = _matrix(w.detach(), spec, name)
        return _observe(m, spec, bits, name)


def fake_quantize_weight(w: Tensor, spec: QuantSpec, *, name: str = "weight") -> Tensor:
    """Return a weight rounded to its grids, as the packed layer will compute with it.

    Differentiable in `w` (straight-through, the grids held constant).

    Args:
        w: as in `quantize_weight`.
        spec: as in `quantize_weight`.
        name: as in `quantize_weight`.

    Returns:
        Tensor of the shape and dtype of `w`; the arithmetic is float32.

    Raises:
        ModelError: as `quantize_weight`.

    Example:
        >>> from cmibq.quant.spec import PerGroup
        >>> fake_quantize_weight(torch.tensor([[0.0, 1.2, 1.7, 3.0]]), QuantSpec(2, PerGroup(4)))
        tensor([[0., 1., 2., 3.]])
    """
    m, bits = _matrix(w, spec, name)
    q = _observe(m.detach(), spec, bits, name)
    out = fakequant(m, q.scale, q.lo(), q.hi())
    return spec.granularity.from_matrix(out, w.shape).to(w.dtype)


def fake_quantize_tokens(x: Tensor, bits: int) -> Tensor:
    """Return activations rounded to a signed grid per token (vector of the last axis).

    Args:
        x: [..., C]; the arithmetic is float32, to which other dtypes are converted.
        bits: 2..16.

    Returns:
        Tensor of the shape and dtype of `x`; the gradient is that of the identity. A token with
        NaN or infinity becomes NaN.

    Raises:
        ValueError: bits out of range.

    References:
        Dettmers et al., "LLM.int8()", NeurIPS 2022, section 2 (absmax per token), as MBQ uses it.

    Example:
        >>> fake_quantize_tokens(torch.tensor([[7.0, -3.4, 0.2]]), 4)
        tensor([[ 7., -3.,  0.]])
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous().to(torch.float32)
    return fakequant_token(rows, bits=bits).reshape(x.shape).to(x.dtype)
