"""Integer codes of a grid and back, per row or per token, as torch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmibq.ops.library import LIBRARY, call, direct, empty_like, kernel_ready, put, view
from cmibq.runtime import kernels

__all__ = [
    "codes",
    "codes_token",
    "decode",
    "fakequant_token",
    "reference",
    "reference_decode",
    "reference_fakequant_token",
    "reference_token",
]

LIBRARY.define("codes(Tensor x, Tensor scale, Tensor zero, int bits) -> Tensor")
LIBRARY.define("decode(Tensor codes, Tensor scale, Tensor zero) -> Tensor")
LIBRARY.define("codes_token(Tensor x) -> (Tensor, Tensor)")
LIBRARY.define("fakequant_token(Tensor x, int bits) -> Tensor")


def reference(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return ``rint(clamp(x / scale, -zero, 2**bits - 1 - zero)) + zero`` as uint8; NaN is 0."""
    z = zero[:, None].to(x.dtype)
    top = float(2**bits - 1)
    code = torch.round(torch.clamp(x / scale[:, None], -z, top - z)) + z
    return torch.nan_to_num(code, nan=0.0).to(torch.uint8)


def reference_decode(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return ``(codes - zero) * scale + 0`` in the dtype of `scale`."""
    return (codes.to(scale.dtype) - zero[:, None].to(scale.dtype)) * scale[:, None] + 0.0


def _token_scale(x: Tensor, bits: int) -> Tensor:
    return x.abs().amax(1).clamp(min=1e-5) / float((1 << (bits - 1)) - 1)


def reference_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 ``rint(clamp(x / scale, -128, 127))`` and ``scale = max(max|x|, 1e-5) / 127``."""
    scale = _token_scale(x, 8)
    code = torch.round(torch.clamp(x / scale[:, None], -128.0, 127.0))
    return torch.nan_to_num(code, nan=0.0).to(torch.int8), scale


def reference_fakequant_token(x: Tensor, bits: int) -> Tensor:
    """Return ``rint(clamp(x / s, -2**(bits-1), 2**(bits-1) - 1)) * s + 0`` with s of each row."""
    s, half = _token_scale(x, bits)[:, None], float(1 << (bits - 1))
    return torch.round(torch.clamp(x / s, -half, half - 1)) * s + 0.0


def _cpu(x: Tensor, scale: Tensor, zero: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    if not kernel_ready(x, scale):
        return put(reference(x, scale, zero, bits), out)
    out = empty_like(x, torch.uint8) if out is None else out
    kernels().codes_row(view(x), view(scale), view(zero), bits, view(out))
    return out


def _decode_cpu(codes: Tensor, scale: Tensor, zero: Tensor, out: Tensor | None = None) -> Tensor:
    if not kernel_ready(scale):
        return put(reference_decode(codes, scale, zero), out)
    out = empty_like(codes, scale.dtype) if out is None else out
    kernels().decode_row(view(codes), view(scale), view(zero), view(out))
    return out


def _token_cpu(x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    if not kernel_ready(x):
        made, scale = reference_token(x)
        return put(made, out), scale
    out, scale = empty_like(x, torch.int8) if out is None else out, x.new_empty(x.shape[0])
    kernels().codes_token_s8(view(x), view(out), view(scale))
    return out, scale


def _fakequant_token_cpu(x: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    if not kernel_ready(x):
        return put(reference_fakequant_token(x, bits), out)
    out = empty_like(x) if out is None else out
    kernels().fakequant_token(view(x), bits, view(out))
    return out


def _token_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[0])


def _straight_through(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
    return g, None


LIBRARY.impl("codes", _cpu, "CPU")
LIBRARY.impl("codes", reference, "CUDA")
LIBRARY.impl("decode", _decode_cpu, "CPU")
LIBRARY.impl("decode", reference_decode, "CUDA")
LIBRARY.impl("codes_token", _token_cpu, "CPU")
LIBRARY.impl("codes_token", reference_token, "CUDA")
LIBRARY.impl("fakequant_token", _fakequant_token_cpu, "CPU")
LIBRARY.impl("fakequant_token", reference_fakequant_token, "CUDA")
torch.library.register_fake(
    "cmibq::codes",
    lambda x, scale, zero, bits: torch.empty_like(x, dtype=torch.uint8),
    lib=LIBRARY,
)
torch.library.register_fake(
    "cmibq::decode",
    lambda codes, scale, zero: torch.empty_like(codes, dtype=scale.dtype),
    lib=LIBRARY,
)
torch.library.register_fake("cmibq::codes_token", _token_fake, lib=LIBRARY)
torch.library.register_fake(
    "cmibq::fakequant_token", lambda x, bits: torch.empty_like(x), lib=LIBRARY
)
torch.library.register_autograd("cmibq::fakequant_token", _straight_through, lib=LIBRARY)


def codes(
    x: Tensor, scale: Tensor, zero: Tensor, *, bits: int, out: Tensor | None = None
) -> Tensor:
    """Return the codes of `x` on a grid per row.

    Args:
        x: [R, C], contiguous. float32 on the CPU runs in C; other dtypes and devices use
            `reference`.
        scale: [R], > 0, dtype of `x`.
        zero: uint8 [R], a code.
        bits: 1..8.
        out: uint8 [R, C] to write to.

    Returns:
        uint8 [R, C], 0 .. 2**bits - 1. NaN becomes 0, infinity saturates.

    Raises:
        ValueError: a shape does not fit, a scale is not finite and > 0, a zero point is no code.

    Example:
        >>> grid = (torch.tensor([0.5]), torch.tensor([2], dtype=torch.uint8))
        >>> codes(torch.tensor([[-9.0, 0.0, 0.3, 9.0]]), *grid, bits=3)
        tensor([[0, 2, 3, 7]], dtype=torch.uint8)
    """
    made: Tensor = call(_cpu, torch.ops.cmibq.codes, (x, scale, zero), bits, out=out)
    return made


def decode(codes: Tensor, scale: Tensor, zero: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the values of codes; equals `fakequant` bit for bit on codes made by `codes`.

    Args:
        codes: uint8 [R, C], contiguous.
        scale: [R], > 0.
        zero: uint8 [R].
        out: [R, C] in the dtype of `scale` to write to.

    Returns:
        [R, C] in the dtype of `scale`: ``(codes - zero) * scale``, never -0.

    Raises:
        ValueError: a shape does not fit, a scale is not finite and > 0.

    Example:
        >>> grid = (torch.tensor([0.5]), torch.tensor([2], dtype=torch.uint8))
        >>> decode(torch.tensor([[0, 2, 7]], dtype=torch.uint8), *grid)
        tensor([[-1.0000,  0.0000,  2.5000]])
    """
    made: Tensor = call(_decode_cpu, torch.ops.cmibq.decode, (codes, scale, zero), out=out)
    return made


def codes_token(x: Tensor, *, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return signed 8-bit codes and scales of activations, one scale per token.

    Args:
        x: [T, C], contiguous.
        out: int8 [T, C] to write the codes to.

    Returns:
        (codes, scale): int8 [T, C] and [T] in the dtype of `x`, ``max(max|x|, 1e-5) / 127``. A
        token with NaN or infinity keeps that scale and gets codes 0, so its products are NaN.

    Example:
        >>> codes_token(torch.tensor([[127.0, -3.4, 0.0]]))
        (tensor([[127,  -3,   0]], dtype=torch.int8), tensor([1.]))
    """
    if out is None or direct(x, out):
        made, scale = call(_token_cpu, torch.ops.cmibq.codes_token, (x,), out=out)
        return made, scale
    made, scale = torch.ops.cmibq.codes_token(x)
    return put(made, out), scale


def fakequant_token(x: Tensor, *, bits: int, out: Tensor | None = None) -> Tensor:
    """Round activations to a signed grid per token and back; the gradient is straight-through.

    Args:
        x: [T, C], contiguous.
        bits: 2..16.
        out: [T, C] to write to, may be `x` itself; only where no gradient is recorded.

    Returns:
        [T, C] in the dtype of `x`. The grid of a token reaches its largest magnitude, so nothing
        saturates and the gradient is that of the identity. A token with NaN or infinity becomes
        NaN.

    Raises:
        ValueError: bits out of range.

    Example:
        >>> fakequant_token(torch.tensor([[7.0, -3.4, 0.2]]), bits=4)
        tensor([[ 7., -3.,  0.]])
    """
    made: Tensor = call(
        _fakequant_token_cpu, torch.ops.cmibq.fakequant_token, (x,), bits, out=out, grad=True
    )
    return made
