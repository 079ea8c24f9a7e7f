"""Products of float matrices, with what follows them, as a torch operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cmibq.ops.library import LIBRARY, call, empty, kernel_ready, put, view
from cmibq.products import activation_code, multiply, planes, product_shape
from cmibq.runtime import isa_level

__all__ = ["gemm", "reference"]

LIBRARY.define(
    "gemm(Tensor a, Tensor b, Tensor? bias, Tensor? residual, float scale, int act,"
    " int split) -> Tensor"
)
_NO_TUNED_KERNEL = ("scalar", "neon", "neondot")


def _activate(z: Tensor, act: int) -> Tensor:
    if act == 0:
        return z
    if act == 3:
        return torch.nn.functional.silu(z)
    return torch.nn.functional.gelu(z, approximate="none" if act == 1 else "tanh")


def reference(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: float,
    act: int,
    split: int = 0,
) -> Tensor:
    """Return ``activation(a @ b * scale + bias) + residual`` in the dtype of `a`, by torch.

    Args:
        a: [..., M, K] on any device.
        b: [..., K, N].
        bias: [N] or None.
        residual: [..., M, N] or None.
        scale: factor of the product.
        act: 0 none, 1 gelu, 2 gelu by tanh, 3 silu.
        split: 1 rounds the operands to bfloat16, others change nothing.
    """
    if split == 1:
        a, b = (t.to(torch.bfloat16).to(t.dtype) for t in (a, b))
    z = torch.matmul(a, b)
    z = z if scale == 1.0 else z * scale
    z = _activate(z if bias is None else z + bias, act)
    return z if residual is None else z + residual


def _cpu(
    a: Tensor,
    b: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: float,
    act: int,
    split: int,
    out: Tensor | None = None,
) -> Tensor:
    given = [t for t in (a, b, bias, residual) if t is not None]
    if not kernel_ready(*given) or isa_level() in _NO_TUNED_KERNEL:
        return put(reference(a, b, bias, residual, scale, act, split), out)
    out = empty(product_shape(tuple(a.shape), tuple(b.shape))) if out is None else out
    more = None if residual is None else view(residual.contiguous())
    plus = None if bias is None else view(bias.contiguous())
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
) -> Tensor:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return a.new_empty((*batch, a.shape[-2], b.shape[-1]))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, bias, _, ctx.scale, ctx.act, ctx.split = inputs
    ctx.save_for_backward(a, b, bias)


def _through(ctx: Any, g: Tensor) -> Tensor:
    """Return the gradient in front of the activation, whose argument is computed again."""
    a, b, bias = ctx.saved_tensors
    if ctx.act == 0:
        return g
    z = torch.ops.cmibq.gemm(a, b, bias, None, ctx.scale, 0, ctx.split)
    if ctx.act == 3:
        made: Tensor = torch.ops.aten.silu_backward(g, z)
        return made
    made = torch.ops.aten.gelu_backward(g, z, approximate="none" if ctx.act == 1 else "tanh")
    return made


def _autograd(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    a, b, _ = ctx.saved_tensors
    need = ctx.needs_input_grad
    inner = _through(ctx, g)
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
    gbias = inner.sum_to_size(inner.shape[-1:]) if need[2] else None
    return ga, gb, gbias, g if need[3] else None, None, None, None


LIBRARY.impl("gemm", _cpu, "CPU")
LIBRARY.impl("gemm", reference, "CUDA")
torch.library.register_fake("cmibq::gemm", _fake, lib=LIBRARY)
torch.library.register_autograd("cmibq::gemm", _autograd, setup_context=_setup, lib=LIBRARY)


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
    out: Tensor | None = None,
) -> Tensor:
    """Multiply matrices: ``activation(a @ b * scale + bias) + residual``; differentiable.

    float32 on the CPU runs in C, without copies of transposed or batched views and with the same
    bits on every ISA and thread count. Other dtypes and devices, and CPUs for which there is no
    tuned kernel, use `reference`, so `torch.matmul`.

    Args:
        a: [..., M, K].
        b: [..., K, N]; the batch dimensions of `a` and `b` broadcast.
        trans_a: take `a` as [..., K, M].
        trans_b: take `b` as [..., N, K], as a linear layer keeps its weight.
        precision: "float32"; "bfloat16": operands rounded to it, sums in float32; "bfloat16x2"
            and "bfloat16x3": operands split into two or three bfloat16, errors near 2^-16 and no
            larger than float32's. On CPUs with AMX these are faster; they are exact only within
            their bounds (csrc/kernels/gemm/scalar_bf16.c), and CPUs without bfloat16 products
            take float32 for the split ones.
        scale: factor of the product.
        bias: [N].
        activation: None, "gelu" (exact), "gelu_tanh" or "silu".
        residual: [..., M, N], added last.
        out: [..., M, N], contiguous, to write to; only where no gradient is recorded.

    Returns:
        [..., M, N]: `out` or a new tensor.

    Raises:
        ValueError: a shape does not fit, or there is no such activation.
        ConfigError: `out` where a gradient is recorded.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> gemm(x, x, trans_b=True, bias=torch.ones(1))
        tensor([[6.]])
    """
    a = a.mT if trans_a else a
    b = b.mT if trans_b else b
    product_shape(tuple(a.shape), tuple(b.shape))
    code = activation_code(activation)
    tensors = tuple(t for t in (a, b, bias, residual) if t is not None)

    def cpu(*args: Any) -> Tensor:
        return _cpu(a, b, bias, residual, *args[len(tensors) :])

    def op(*args: Any) -> Tensor:
        made: Tensor = torch.ops.cmibq.gemm(a, b, bias, residual, *args[len(tensors) :])
        return made

    done: Tensor = call(cpu, op, tensors, scale, code, planes(precision), out=out, grad=True)
    return done
