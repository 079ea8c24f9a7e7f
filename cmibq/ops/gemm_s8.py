"""Exact products of int8 matrices as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmibq.ops.library import LIBRARY, call, empty, view
from cmibq.products import MOST_INPUTS, multiply_s8

__all__ = ["gemm_s8", "reference"]

LIBRARY.define(
    "gemm_s8(Tensor a, Tensor b, Tensor? bias, Tensor? multiplier, Tensor? shift,"
    " int zero_point, int lo, int hi) -> Tensor"
)


def reference(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    multiplier: Tensor | None,
    shift: Tensor | None,
    zero_point: int,
    lo: int,
    hi: int,
) -> Tensor:
    """Return what `gemm_s8` returns, by torch; float64 products and sums are exact here.

    Args:
        a: int8 [M, K] on any device.
        b: int8 [N, K].
        bias: int32 [N] or None.
        multiplier: int32 [N], or None for an int32 result.
        shift: int32 [N] or None.
        zero_point: added after rounding.
        lo: least code.
        hi: largest code.
    """
    acc = (a.double() @ b.double().mT).long()
    acc = acc if bias is None else acc + bias
    if multiplier is None or shift is None:
        return acc.int()
    product, e = acc * multiplier.long(), shift.long()
    whole = product >> e
    rest = product - (whole << e)
    whole = whole + (2 * rest + (whole & 1) > torch.ones_like(e) << e)
    return (whole.clamp(lo - zero_point, hi - zero_point) + zero_point).to(torch.int8)


def _cpu(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    multiplier: Tensor | None,
    shift: Tensor | None,
    zero_point: int,
    lo: int,
    hi: int,
    out: Tensor | None = None,
) -> Tensor:
    kind = torch.int32 if multiplier is None else torch.int8
    out = empty((a.shape[0], b.shape[0]), kind) if out is None else out
    x, w = (view(t if t.stride(1) == 1 else t.contiguous()) for t in (a, b))
    plus, m, e = (None if t is None else view(t.contiguous()) for t in (bias, multiplier, shift))
    multiply_s8(x, w, plus, m, e, zero_point, lo, hi, view(out))
    return out


def _fake(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    multiplier: Tensor | None,
    shift: Tensor | None,
    zero_point: int,
    lo: int,
    hi: int,
) -> Tensor:
    kind = torch.int32 if multiplier is None else torch.int8
    return a.new_empty((a.shape[0], b.shape[0]), dtype=kind)


def _check(a: Tensor, b: Tensor, multiplier: Tensor | None, shift: Tensor | None) -> None:
    """Refuse what the reference would take in other ways than the kernel."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"gemm_s8: a and b have shapes {shapes}, expected [M, K] and [N, K]")
    if a.dtype is not torch.int8 or b.dtype is not torch.int8:
        raise TypeError(f"gemm_s8: a and b are {a.dtype} and {b.dtype}, expected torch.int8")
    if a.shape[1] > MOST_INPUTS:
        raise ValueError(f"gemm_s8: {a.shape[1]} inputs, at most {MOST_INPUTS}; split the inputs")
    if (multiplier is None) != (shift is None):
        raise ValueError("gemm_s8: multiplier and shift go together; give both or neither")


LIBRARY.impl("gemm_s8", _cpu, "CPU")
LIBRARY.impl("gemm_s8", reference, "CUDA")
torch.library.register_fake("cmibq::gemm_s8", _fake, lib=LIBRARY)


def gemm_s8(
    a: Tensor,
    b: Tensor,
    *,
    bias: Tensor | None = None,
    multiplier: Tensor | None = None,
    shift: Tensor | None = None,
    zero_point: int = 0,
    lo: int = -128,
    hi: int = 127,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply int8 matrices exactly: ``a @ b.T``, as int32 or requantised to int8.

    With `multiplier` and `shift` (the dyadic numbers ``multiplier / 2**shift`` of I-BERT, one per
    output) the result is ``clamp(rint((a @ b.T + bias) * multiplier / 2**shift) + zero_point, lo,
    hi)``, computed in integers, ties to even. Without them it is ``a @ b.T + bias`` in int32. The
    same bits on every ISA and thread count.

    Args:
        a: int8 [M, K], activations; rows may be strided.
        b: int8 [N, K], weights as a linear layer keeps them; rows may be strided.
        bias: int32 [N]. For int32 results its magnitude is at most ``2**31 - 1 - 16384 * K``, so
            that no sum overflows.
        multiplier: int32 [N].
        shift: int32 [N], 0..62.
        zero_point: -128..127, added after rounding.
        lo: least code, -128..127.
        hi: largest code, at least `lo`.
        out: int32 or int8 [M, N], contiguous, to write to.

    Returns:
        [M, N], int8 with `multiplier`, otherwise int32: `out` or a new tensor.

    Raises:
        ValueError: a shape or value does not fit, or K is above 131071, where int32 sums could
            overflow.
        TypeError: a tensor has another dtype.

    Example:
        >>> x = torch.tensor([[100, -3]], dtype=torch.int8)
        >>> gemm_s8(x, x)
        tensor([[10009]], dtype=torch.int32)
        >>> m, e = (torch.tensor([v], dtype=torch.int32) for v in (5, 10))
        >>> gemm_s8(x, x, multiplier=m, shift=e)
        tensor([[49]], dtype=torch.int8)
    """
    _check(a, b, multiplier, shift)
    given = (bias, multiplier, shift)
    tensors = tuple(t for t in (a, b, *given) if t is not None)

    def cpu(*args: Any) -> Tensor:
        return _cpu(a, b, *given, *args[len(tensors) :])

    def op(*args: Any) -> Tensor:
        made: Tensor = torch.ops.cmibq.gemm_s8(a, b, *given, *args[len(tensors) :])
        return made

    done: Tensor = call(cpu, op, tensors, zero_point, lo, hi, out=out)
    return done
