"""Activations times packed low-bit weights, as torch operators (inference only, no gradient)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from cmibq.ops.library import LIBRARY, call, empty, kernel_ready, put, refuse_grad, view
from cmibq.ops.pack import reference_unpack
from cmibq.runtime import kernels
from cmibq.strips import Bits, check_bits, packed_bytes, runs, single

__all__ = ["by_width", "qgemm", "qgemm_s8", "reference", "reference_s8"]

_WEIGHT = "Tensor packed, Tensor scale, Tensor? zero, Tensor? bias, int bits) -> Tensor"
LIBRARY.define(f"qgemm(Tensor x, {_WEIGHT}")
LIBRARY.define(f"qgemm_s8(Tensor x, Tensor xscale, {_WEIGHT}")


def _levels(packed: Tensor, groups: int, zero: Tensor | None, bits: int, cols: int) -> Tensor:
    """Return ``code - zero`` of a packed weight: int16 [N, G, K / G]."""
    shape = (len(packed), groups, cols // groups)
    codes = reference_unpack(packed, bits, cols).to(torch.int16).reshape(shape)
    if zero is None:
        return codes - (1 << (bits - 1))
    return codes - reference_unpack(zero, bits, groups).to(torch.int16)[:, :, None]


def reference(
    x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor | None, bits: int
) -> Tensor:
    """Return ``x @ w.T + bias`` with ``w = (code - zero) * scale``, in the dtype of `x`."""
    levels = _levels(packed, scale.shape[1], zero, bits, x.shape[1])
    w = (levels.to(x.dtype) * scale.to(x.dtype)[:, :, None]).flatten(1)
    return torch.nn.functional.linear(x, w, bias)


def by_width(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    bits: Bits,
    cols: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor | None, int]]:
    """Yield the parts of a weight whose codes have one width, as `reference` takes them.

    Args:
        packed: uint8 [N, bytes of a row]; with mixed bits [bytes], the rows one after the other.
        scale: [N, G].
        zero: packed likewise, or None.
        bias: [N] or None.
        bits: a width, or one for every 16 outputs.
        cols: inputs K.

    Raises:
        ValueError: bytes of another number.
    """
    outs, groups = scale.shape
    if not isinstance(bits, int):
        check_bits(bits, outs)
    one = single(bits)
    if one is not None:
        yield packed, scale, zero, bias, one
        return
    for name, t, count in (("packed", packed, cols), ("zero", zero, groups)):
        want = packed_bytes(bits, outs, count)
        if t is not None and t.shape != (want,):
            raise ValueError(f"qgemm: {name} is {list(t.shape)}, expected [{want}] for mixed bits")
    codes = zeros = 0
    for start, stop, width in runs(bits, outs):
        rows, row, zrow = stop - start, (cols * width + 7) // 8, (groups * width + 7) // 8
        part = packed.narrow(0, codes, rows * row).view(rows, row)
        z = None if zero is None else zero.narrow(0, zeros, rows * zrow).view(rows, zrow)
        codes, zeros = codes + rows * row, zeros + rows * zrow
        yield part, scale[start:stop], z, None if bias is None else bias[start:stop], width


def _add_once(p: Tensor, c: Tensor) -> Tensor:
    """Return the float64 sum of exact numbers, rounded once to float32."""
    s = p + c
    rest = (p - (s - (s - p))) + (c - (s - p))  # what the sum lost, exactly
    toward = torch.where(rest > 0, torch.inf, -torch.inf).to(s.dtype)
    inexact = (rest != 0) & (s.view(torch.int64) & 1 == 0) & s.isfinite()
    return torch.where(inexact, torch.nextafter(s, toward), s).float()


def reference_s8(
    x: Tensor,
    xscale: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    bits: int,
) -> Tensor:
    """Return ``sum_g scale_g * (x_g . (code - zero)_g) * xscale + bias``, groups in order.

    A group is added by an FMA: its product is exact in float64, the sum is rounded to odd there
    and then to float32, which gives what one rounding does.
    """
    levels = _levels(packed, scale.shape[1], zero, bits, x.shape[1]).to(torch.float64)
    inputs = x.to(torch.float64).reshape(len(x), *levels.shape[1:])
    acc = xscale.new_zeros(len(x), len(packed))
    for g in range(scale.shape[1]):
        dot = inputs[:, g] @ levels[:, g].T  # integers, exact in float64
        acc = _add_once(dot.to(acc.dtype).double() * scale[:, g].double(), acc.double())
    acc = acc * xscale[:, None]
    return acc if bias is None else acc + bias


def _multiply(
    name: str,
    inputs: tuple[Tensor, ...],
    packed: Tensor,
    bits: int,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    """Call the kernel; sizes are read from the NumPy views, which is several times quicker."""
    core, x, w = kernels(), [view(t) for t in inputs], view(packed)
    halves = view(scale).view(np.uint16)  # float16 crosses as uint16
    extra = [None if t is None else view(t) for t in (zero, bias)]
    sizes = (x[0].shape[0], w.shape[0], x[0].shape[-1], halves.shape[-1])
    work = np.empty(core.qgemm_workspace(*sizes, bits), np.uint8)
    out = empty(sizes[:2]) if out is None else out
    getattr(core, name)(*x, w, bits, halves, *extra, view(out), work)
    return out


def _cpu(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    bits: int,
    out: Tensor | None = None,
) -> Tensor:
    if not kernel_ready(x) or scale.dtype != torch.float16:
        return put(reference(x, packed, scale, zero, bias, bits), out)
    return _multiply("qgemm_f32", (x,), packed, bits, scale, zero, bias, out)


def _s8_cpu(
    x: Tensor,
    xscale: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bias: Tensor | None,
    bits: int,
    out: Tensor | None = None,
) -> Tensor:
    if not kernel_ready(xscale) or scale.dtype != torch.float16:
        return put(reference_s8(x, xscale, packed, scale, zero, bias, bits), out)
    return _multiply("qgemm_s8", (x, xscale), packed, bits, scale, zero, bias, out)


LIBRARY.impl("qgemm", _cpu, "CPU")
LIBRARY.impl("qgemm", reference, "CUDA")
LIBRARY.impl("qgemm_s8", _s8_cpu, "CPU")
LIBRARY.impl("qgemm_s8", reference_s8, "CUDA")
torch.library.register_fake(
    "cmibq::qgemm",
    lambda x, packed, scale, zero, bias, bits: x.new_empty(x.shape[0], packed.shape[0]),
    lib=LIBRARY,
)
torch.library.register_fake(
    "cmibq::qgemm_s8",
    lambda x, xscale, packed, *rest: xscale.new_empty(x.shape[0], packed.shape[0]),
    lib=LIBRARY,
)


def _each_width(
    cpu: Callable[..., Tensor],
    op: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    weight: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    bits: Bits,
    out: Tensor | None,
) -> Tensor:
    """Multiply by the parts of a weight that have one width, side by side."""
    parts = list(by_width(*weight, bits, inputs[0].shape[-1]))
    if len(parts) == 1:
        packed, scale, *rest = parts[0]
        made: Tensor = call(cpu, op, (*inputs, packed, scale), *rest, out=out)
        return made
    if out is not None:
        refuse_grad(out)
        if not out.is_contiguous():
            raise ValueError("qgemm: out must be contiguous; write to a new tensor and copy that")
    return put(torch.cat([op(*inputs, *part) for part in parts], 1), out)


def qgemm(
    x: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    bits: Bits,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply float activations by a packed weight: ``x @ w.T + bias``.

    The C code puts the weight into tiles on every call; a layer that is used again keeps them, see
    `cmibq.ops.qlinear`, and has the same bits.

    Args:
        x: [M, K], contiguous. float32 on the CPU runs in C, where no float copy of the weight is
            made; other dtypes and devices use `reference`, which makes one.
        packed: uint8 [N, ceil(K * bits / 8)], codes as `cmibq.ops.pack` packs them; with mixed
            bits [bytes], the rows one after the other (`zero` likewise).
        scale: float16 [N, G], > 0; G equal groups of successive inputs, multiples of 8
            or one.
        zero: uint8 [N, ceil(G * bits / 8)], zero points packed like the codes; None means
            ``2**(bits - 1)`` everywhere (symmetric).
        bias: [N], dtype of `x`, added last.
        bits: 2..8, or one width for every 16 outputs (mixed bits).
        out: [M, N] to write to, dtype of `x`.

    Returns:
        [M, N] in the dtype of `x`: `out` or a new tensor. In C a row does not depend on the other
        rows, on the thread count or on the ISA.

    Raises:
        ValueError: a shape does not fit, a scale is not finite and > 0.
        TypeError: an array has another dtype.

    Example:
        >>> from cmibq.ops import pack
        >>> packed = pack(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), bits=2)
        >>> qgemm(torch.ones(1, 4), packed, torch.tensor([[0.5]], dtype=torch.float16), bits=2)
        tensor([[-1.]])
    """
    return _each_width(_cpu, torch.ops.cmibq.qgemm, (x,), (packed, scale, zero, bias), bits, out)


def qgemm_s8(
    x: Tensor,
    xscale: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    bits: Bits,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply 8-bit activations with one scale per row by a packed weight.

    The dot products of a group are integers; their sum over groups, in order, is
    ``fma(scale, dot, acc)`` in float32; the result is ``acc * xscale + bias``. The same
    bits on every ISA and in `reference_s8`.

    Args:
        x: int8 [M, K], contiguous, as `cmibq.ops.codes_token` makes them.
        xscale: float32 [M].
        packed: as in `qgemm`.
        scale: as in `qgemm`; groups of at most 65793 inputs.
        zero: as in `qgemm`.
        bias: float32 [N], added last.
        bits: as in `qgemm`.
        out: float32 [M, N] to write to.

    Returns:
        float32 [M, N]: `out` or a new tensor.

    Raises:
        ValueError: as `qgemm`.
        TypeError: as `qgemm`.

    Example:
        >>> from cmibq.ops import codes_token, pack
        >>> packed = pack(torch.tensor([[0, 1, 2, 3]], dtype=torch.uint8), bits=2)
        >>> x = codes_token(torch.tensor([[1.27, 0.0, 0.0, 0.5]]))
        >>> qgemm_s8(*x, packed, torch.tensor([[1.0]], dtype=torch.float16), bits=2)
        tensor([[-2.0400]])
    """
    weight = (packed, scale, zero, bias)
    return _each_width(_s8_cpu, torch.ops.cmibq.qgemm_s8, (x, xscale), weight, bits, out)
