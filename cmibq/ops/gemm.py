"""Products of float matrices, with what follows them, as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmibq.ops.library import LIBRARY, call, empty, kernel_ready, put, view
from cmibq.products import activation_code, multiply, multiply_bf16, planes, product_shape
from cmibq.runtime import isa_level

__all__ = ["gemm", "reference"]

LIBRARY.define(
    "gemm(Tensor a, Tensor b, Tensor? bias, Tensor? residual, float scale, int act,"
    " int split, bool wide=False) -> Tensor"
)
_NO_TUNED_KERNEL = ("scalar", "neon", "neondot")


def _activate(z: Tensor, act: int) -> Tensor:
    if act == 0:
        return z
    if act == 3:
        return torch.nn.functional.silu(z)
    if act == 4:
        return z * torch.sigmoid(1.702 * z)
    return torch.nn.functional.gelu(z, approximate="none" if act == 1 else "tanh")


def reference(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: float,
    act: int,
    split: int = 0,
    wide: bool = False,
) -> Tensor:
    """Return ``activation(a @ b * scale + bias) + residual`` in the dtype of `a`, by torch.

    Args:
        a: [..., M, K] on any device.
        b: [..., K, N].
        bias: [N] or None.
        residual: [..., M, N] or None.
        scale: factor of the product.
        act: 0 none, 1 gelu, 2 gelu by tanh, 3 silu, 4 quick gelu.
        split: 1 rounds the operands to bfloat16, others change nothing.
        wide: compute in float32, and return it.
    """
    if wide:
        a, b = a.float(), b.float()
    dtype = a.dtype
    if split == 1:
        a, b = (t.to(torch.bfloat16).to(t.dtype) for t in (a, b))
    z = torch.matmul(a, b)
    z = z if scale == 1.0 else z * scale
    z = _activate(z if bias is None else (z + bias).to(dtype), act)
    return z if residual is None else (z + residual).to(dtype)


def _bf16_ready(a: Tensor, b: Tensor, more: list[Tensor]) -> bool:
    """Tell whether the C kernels take these bfloat16 operands."""
    halves = all(t.is_cpu and t.dtype is torch.bfloat16 for t in (a, b))
    return halves and all(t.is_cpu and t.dtype in (torch.bfloat16, torch.float32) for t in more)


def _cpu(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: float,
    act: int,
    split: int,
    wide: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    given = [t for t in (a, b, bias, residual) if t is not None]
    halves = _bf16_ready(a, b, given[2:])
    if not (halves or kernel_ready(*given)) or isa_level() in _NO_TUNED_KERNEL:
        return put(reference(a, b, bias, residual, scale, act, split, wide), out)
    dtype = torch.bfloat16 if halves and not wide else torch.float32
    out = empty(product_shape(tuple(a.shape), tuple(b.shape)), dtype) if out is None else out
    more = None if residual is None else view(residual.contiguous())
    plus = None if bias is None else view(bias.float().contiguous())
    if halves:
        multiply_bf16(view(a), view(b), scale, plus, act, more, view(out))
        return out
    multiply(view(a), view(b), split, scale, plus, act, more, view(out))
    return out


def _fake(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: float,
    act: int,
    split: int = 0,
    wide: bool = False,
) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    dtype = torch.float32 if wide else a.dtype
    return a.new_empty((*batch, a.shape[-2], b.shape[-1]), dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, bias, residual, ctx.scale, ctx.act, ctx.split, ctx.wide = inputs
    ctx.residual = None if residual is None else residual.dtype
    ctx.save_for_backward(a, b, bias)


def _through(ctx: Any, g: Tensor, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """Return the gradient in front of the activation, whose argument is computed again."""
    if ctx.act == 0:
        return g
    z = torch.ops.cmibq.gemm(a, b, bias, None, ctx.scale, 0, ctx.split, ctx.wide)
    if ctx.act in (3, 4):  # the quick one is silu(1.702 z) / 1.702
        made: Tensor = torch.ops.aten.silu_backward(g, z if ctx.act == 3 else 1.702 * z)
        return made
    made = torch.ops.aten.gelu_backward(g, z, approximate="none" if ctx.act == 1 else "tanh")
    return made


def _autograd(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, bias = ctx.saved_tensors  # once: gradient checkpointing allows no second time
    need = ctx.needs_input_grad
    full = _through(ctx, g, a, b, bias)
    inner = full.to(a.dtype)
    product = torch.ops.cmibq.gemm
    ga = (
        product(inner, b.mT, None, None, ctx.scale, 0, ctx.split).sum_to_size(a.shape)
        if need[0]
        else None
    )
    gb = (
        product(a.mT, inner, None, None, ctx.scale, 0, ctx.split).sum_to_size(b.shape)
        if need[1]
        else None
    )
    gbias = full.sum_to_size(full.shape[-1:]).to(bias.dtype) if need[2] else None
    more = g.to(ctx.residual) if need[3] else None
    return ga, gb, gbias, more, None, None, None, None


LIBRARY.impl("gemm", _cpu, "CPU")
LIBRARY.impl("gemm", reference, "CUDA")
torch.library.register_fake("cmibq::gemm", _fake, lib=LIBRARY)
torch.library.register_autograd("cmibq::gemm", _autograd, setup_context=_setup, lib=LIBRARY)


def _wide(a: Tensor, dtype: torch.dtype | None, out: Tensor | None) -> bool:
    """Tell whether bfloat16 operands give float32."""
    if dtype not in (None, a.dtype) and (a.dtype, dtype) != (torch.bfloat16, torch.float32):
        raise ValueError(
            f"gemm: dtype is {dtype} for operands of {a.dtype}; leave it out, or ask for float32 "
            "of bfloat16 operands"
        )
    if out is not None and out.dtype is not (dtype or a.dtype):
        raise ValueError(f"gemm: out has dtype {out.dtype}, expected {dtype or a.dtype}")
    return dtype not in (None, a.dtype)


def gemm(
    a: Tensor,
    b: Tensor,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    precision: str = "float32",
    scale: float = 1.0,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Multiply matrices: ``activation(a @ b * scale + bias) + residual``; differentiable.

    float32 on the CPU runs in C, without copies of transposed or batched views and with the same
    bits on every ISA and thread count. bfloat16 too: sums and what follows them are in float32 and
    are rounded once, the same on every thread count. Other dtypes and devices, and CPUs for which
    there is no tuned kernel, use `reference`, so `torch.matmul`.

    Args:
        a: [..., M, K].
        b: [..., K, N]; the batch dimensions of `a` and `b` broadcast.
        trans_a: take `a` as [..., K, M].
        trans_b: take `b` as [..., N, K], as a linear layer keeps its weight.
        precision: "float32"; "bfloat16": operands rounded to it, sums in float32; "bfloat16x2"
            and "bfloat16x3": operands split into two or three bfloat16, errors near 2^-16 and no
            larger than float32's. On CPUs with AMX these are faster; they are exact only within
            their bounds (csrc/kernels/gemm/scalar_bf16.c), and CPUs without bfloat16 products
            take float32 for the split ones. All are the same for bfloat16 operands.
        scale: factor of the product.
        bias: [N].
        activation: None, "gelu" (exact), "gelu_tanh", "silu" or "quick_gelu".
        residual: [..., M, N], added last.
        dtype: of the result: None for that of `a`, or float32 for bfloat16 operands.
        out: [..., M, N], contiguous, to write to; only where no gradient is recorded.

    Returns:
        [..., M, N]: `out` or a new tensor.

    Raises:
        ValueError: a shape or `dtype` does not fit, or there is no such activation.
        ConfigError: `out` where a gradient is recorded.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> gemm(x, x, trans_b=True, bias=torch.ones(1))
        tensor([[6.]])
    """
    a = a.mT if trans_a else a
    b = b.mT if trans_b else b
    product_shape(tuple(a.shape), tuple(b.shape))
    code, wide = activation_code(activation), _wide(a, dtype, out)
    tensors = tuple(t for t in (a, b, bias, residual) if t is not None)

    def cpu(*args: Any) -> Tensor:
        return _cpu(a, b, bias, residual, *args[len(tensors) :])

    def op(*args: Any) -> Tensor:
        made: Tensor = torch.ops.cmibq.gemm(a, b, bias, residual, *args[len(tensors) :])
        return made

    done: Tensor = call(cpu, op, tensors, scale, code, planes(precision), wide, out=out, grad=True)
    return done
