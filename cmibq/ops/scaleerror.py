"""What channel scales and rounding do to a weight and to activations, as torch operators.

The parts of `cmibq.ops.scaleloss`, for modules whose output is more than one product: the error of
a layer ``Q(x / s) Q(w s)^T - x w^T`` is ``[hat | err_x] [err_w | w s]^T``, a sum of small terms, so
that none loses digits in bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.ops.codes import fakequant_token
from cmibq.ops.library import LIBRARY, call, empty, kernel_ready, put, view
from cmibq.ops.scaleloss import fake_weight
from cmibq.runtime import kernels

__all__ = ["reference", "reference_token", "token_error", "weight_error"]

LIBRARY.define(
    "weight_error(Tensor w, Tensor s, int bits, int group, int mode, bool act, bool half) -> Tensor"
)
LIBRARY.define("token_error(Tensor x, Tensor s, int bits, bool half) -> Tensor")


def reference(
    w: Tensor, s: Tensor, bits: int, group: int, mode: int, act: bool, half: bool
) -> Tensor:
    """Return ``Q(w s) / s - w``, or with `act` ``[Q(w s) - w s | w s]``."""
    v = w * s
    q = fake_weight(v, bits, group, mode)
    made = torch.cat([q - v, v], 1) if act else q / s - w
    return made.to(torch.bfloat16) if half else made


def reference_token(x: Tensor, s: Tensor, bits: int, half: bool) -> Tensor:
    """Return ``[Q_token(x / s) | Q_token(x / s) - x / s]``."""
    v = x / s
    hat = fakequant_token(v, bits=bits)
    made = torch.cat([hat, hat - v], 1)
    return made.to(torch.bfloat16) if half else made


def _run(kernel: Any, x: Tensor, s: Tensor, how: Any, parts: int, half: bool, out: Any) -> Tensor:
    """Let a kernel write its result, `parts` times as wide as x, in one of two dtypes."""
    shape, dtype = (x.shape[0], parts * x.shape[1]), torch.bfloat16 if half else torch.float32
    made: Tensor = empty(shape, dtype) if out is None else out
    wide, narrow = (None, view(made)) if half else (view(made), None)
    work = np.empty(kernels().scaleerror_workspace(*x.shape) if half else 0, np.float32)
    kernel(view(x), view(s), *how, wide, narrow, work)
    return made


def _weight_cpu(
    w: Tensor, s: Tensor, bits: int, group: int, mode: int, act: bool, half: bool,
    out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    if not kernel_ready(w, s):
        return put(reference(w, s, bits, group, mode, act, half), out)
    how = (bits, group, mode)
    return _run(kernels().scaleerror_weight, w, s, how, 1 + act, half, out)


def _token_cpu(x: Tensor, s: Tensor, bits: int, half: bool, out: Tensor | None = None) -> Tensor:
    if not kernel_ready(x, s):
        return put(reference_token(x, s, bits, half), out)
    return _run(kernels().scaleerror_token, x, s, (bits,), 2, half, out)


def _fake(x: Tensor, parts: int, half: bool) -> Tensor:
    shape = (x.shape[0], parts * x.shape[1])
    return x.new_empty(shape, dtype=torch.bfloat16 if half else x.dtype)


LIBRARY.impl("weight_error", _weight_cpu, "CPU")
LIBRARY.impl("weight_error", reference, "CUDA")
LIBRARY.impl("token_error", _token_cpu, "CPU")
LIBRARY.impl("token_error", reference_token, "CUDA")
torch.library.register_fake(
    "cmibq::weight_error",
    lambda w, s, bits, group, mode, act, half: _fake(w, 1 + act, half),
    lib=LIBRARY,
)
torch.library.register_fake(
    "cmibq::token_error", lambda x, s, bits, half: _fake(x, 2, half), lib=LIBRARY
)


def _half(op: str, dtype: torch.dtype, shape: tuple[int, ...], out: Tensor | None) -> bool:
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"{op}: dtype is {dtype}; allowed are float32, bfloat16")
    if out is not None and (out.dtype is not dtype or tuple(out.shape) != shape):
        raise ConfigError(
            f"{op}: out is {out.dtype} {list(out.shape)}; pass {dtype} {list(shape)}, or leave it"
            " out"
        )
    return dtype is torch.bfloat16


def weight_error(
    w: Tensor,
    s: Tensor,
    *,
    bits: int,
    mode: int,
    group_size: int = 0,
    act: bool = False,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Return the error that rounding ``w * s`` makes.

    Args:
        w: float32 [N, K], contiguous.
        s: float32 [K], finite and > 0.
        bits: bits of the weight, 1..8.
        mode: bits of `cmibq.quant.spec.RangeMode`.
        group_size: weights per grid along K; <= 0 is one grid per row.
        act: False = the error of the weight, ``Q(w s) / s - w``. True = for activations divided
            by s: ``Q(w s) - w s``, and beside it ``w s``.
        dtype: of the result: float32, or bfloat16 (rounded once).
        out: where to write it.

    Returns:
        [N, K], with `act` [N, 2 K]: `out` or a new tensor.

    Raises:
        ConfigError: another dtype, an `out` that does not fit.
        ValueError: a group size that does not divide, a bad scale.

    Example:
        >>> w, s = torch.tensor([[4.0, 1.0]]), torch.tensor([0.5, 1.0])
        >>> weight_error(w, s, bits=2, mode=1)
        tensor([[ 0., -1.]])
    """
    half = _half("weight_error", dtype, (w.shape[0], (1 + act) * w.shape[1]), out)
    rest = (bits, group_size, mode, act, half)
    made: Tensor = call(_weight_cpu, torch.ops.cmibq.weight_error, (w, s), *rest, out=out)
    return made


def token_error(
    x: Tensor,
    s: Tensor,
    *,
    bits: int,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    """Return activations divided by s and rounded per token, beside the error that this makes.

    Args:
        x: float32 [T, K], contiguous.
        s: float32 [K], finite and > 0.
        bits: 2..8.
        dtype: of the result: float32, or bfloat16 (rounded once).
        out: where to write it.

    Returns:
        [T, 2 K], ``hat = Q(x / s)`` and ``hat - x / s``: `out` or a new tensor.

    Raises:
        ConfigError: another dtype, an `out` that does not fit.
        ValueError: a bad scale.

    Example:
        >>> token_error(torch.tensor([[7.0, -3.5]]), torch.tensor([1.0, 1.0]), bits=4)
        tensor([[ 7.0000, -4.0000,  0.0000, -0.5000]])
    """
    half = _half("token_error", dtype, (x.shape[0], 2 * x.shape[1]), out)
    made: Tensor = call(_token_cpu, torch.ops.cmibq.token_error, (x, s), bits, half, out=out)
    return made
