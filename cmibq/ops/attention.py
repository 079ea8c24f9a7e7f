"""Cross-attention with its projections, residual and layer norm as one torch operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmibq.errors import ConfigError, check_tokens
from cmibq.memory import scratch
from cmibq.ops.attention_reference import reference, reference_backward
from cmibq.ops.library import LIBRARY, direct, kernel_ready, no_second, put, view, wants_grad
from cmibq.runtime import kernels

__all__ = ["PRECISIONS", "Attended", "attention", "reference", "reference_backward"]

PRECISIONS = {"bfloat16": 1, "bfloat16x2": 2, "bfloat16x3": 3, "float32": 3}
"""Name, as in `cmibq.ops.gemm` -> parts of an operand (csrc/core/attention.h)."""
_OF_TORCH = {"medium": "bfloat16", "high": "bfloat16x2", "highest": "float32"}

LIBRARY.define(
    "attention(Tensor xq, Tensor xk, Tensor? wp, Tensor? bp, Tensor wq, Tensor? bq, Tensor wk,"
    " Tensor? bk, Tensor wv, Tensor? bv, Tensor wo, Tensor? bo, Tensor? gamma, Tensor? beta,"
    " Tensor? mask, int heads, bool residual, float eps, int planes, bool save, bool entropy,"
    " bool weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,"
    " Tensor, Tensor)"
)
LIBRARY.define(
    "attention_backward(Tensor g, Tensor xq, Tensor xk, Tensor? wp, Tensor? bp, Tensor wq,"
    " Tensor? bq, Tensor wk, Tensor? bk, Tensor wv, Tensor? bv, Tensor wo, Tensor? bo,"
    " Tensor? gamma, Tensor? beta, Tensor? mask, Tensor kv, Tensor q, Tensor k, Tensor v,"
    " Tensor ctx, Tensor y, Tensor lse, Tensor stat, int heads, bool residual, float eps,"
    " int planes, bool save, bool[14] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,"
    " Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class Attended(NamedTuple):
    """What `attention` returns."""

    out: Tensor
    """[B, Lq, Do]."""
    entropy: Tensor | None
    """[B, H, Lq], entropy of every row of attention in nats, where wanted; no gradient."""
    weights: Tensor | None
    """[B, Lq, Lk], attention averaged over the heads, where wanted; no gradient."""


def _sizes(xq: Tensor, xk: Tensor, wp: Tensor | None, wq: Tensor, wo: Tensor) -> tuple[int, ...]:
    """Return B, Lq, Lk, Dq, Dk, P (0 without a first projection), E, Do."""
    first = 0 if wp is None else wp.shape[0]
    return (*xq.shape[:2], xk.shape[1], xq.shape[2], xk.shape[2], first, wq.shape[0], wo.shape[0])


def _outputs(args: Any, save: bool, entropy: bool, weights: bool) -> tuple[Tensor, ...]:
    xq, norm, heads = args[0], args[12] is not None, args[15]
    batch, rows, keys, _, _, first, width, out = _sizes(xq, args[1], args[2], args[4], args[10])

    def made(wanted: bool, *shape: int) -> Tensor:
        fresh: Tensor = xq.new_empty(shape if wanted else (0,))
        return fresh

    return (
        made(True, batch, rows, out),
        made(save and first > 0, batch, keys, first),
        made(save, batch, rows, width),
        made(save, batch, keys, width),
        made(save, batch, keys, width),
        made(save, batch, rows, width),
        made(save and norm, batch, rows, out),
        made(True, batch, heads, rows),
        made(True, batch, rows, 2),
        made(entropy, batch, heads, rows),
        made(weights, batch, rows, keys),
    )


def _gradients(operands: Any, wanted: Any) -> tuple[Tensor, ...]:
    xq = operands[0]
    return tuple(
        t.new_empty(t.shape) if w and t is not None else xq.new_empty(0)
        for t, w in zip(operands, wanted, strict=True)
    )


def _opt(t: Tensor | None) -> Any:
    return None if t is None or t.shape == (0,) else view(t)


def _work(operands: Any, heads: int, residual: bool, planes: int, *how: int) -> Any:
    sizes = _sizes(*(operands[i] for i in (0, 1, 2, 4, 10)))
    kernel: Any = kernels()
    size = kernel.attention_workspace(*sizes, heads, int(residual), planes, *how)
    return scratch(size)


def _planes_now(planes: int) -> int:
    return planes or PRECISIONS[_OF_TORCH[torch.get_float32_matmul_precision()]]


def _forward_cpu(*args: Any, to: Tensor | None = None) -> tuple[Tensor, ...]:
    heads, residual, eps, planes, save, entropy, weights = args[15:]
    if not kernel_ready(*(t for t in args[:14] if t is not None)):
        first, *rest = reference(*args)
        return (put(first, to), *rest)
    made = _outputs(args, save, entropy, weights)
    made = made if to is None else (to, *made[1:])
    planes = _planes_now(planes)
    kernel: Any = kernels()
    kernel.attention(
        *(None if t is None else view(t) for t in args[:15]), heads, int(residual), eps, planes,
        view(made[0]), *map(_opt, made[1:7]), view(made[7]), view(made[8]), *map(_opt, made[9:]),
        _work(args, heads, residual, planes, int(save), -1),
    )  # fmt: skip
    return made


def _backward_cpu(*args: Any) -> tuple[Tensor, ...]:
    operands, saved = args[1:16], args[16:24]
    heads, residual, eps, planes, save, wanted = args[24:]
    if not kernel_ready(args[0], *(t for t in (*operands[:14], *saved) if t is not None)):
        return reference_backward(*args)
    grads = _gradients(operands[:14], wanted)
    planes = _planes_now(planes)
    kernel: Any = kernels()
    kernel.attention_bwd(
        view(args[0].contiguous()), *(None if t is None else view(t) for t in operands),
        heads, int(residual), eps, planes, *map(_opt, saved[:6]), view(saved[6]), view(saved[7]),
        *(view(t) if w else None for t, w in zip(grads, wanted, strict=True)),
        _work(operands, heads, residual, planes, int(save), wanted[0] + 2 * wanted[1]),
    )  # fmt: skip
    return grads


def _fake(*args: Any) -> tuple[Tensor, ...]:
    return _outputs(args, *args[19:])


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    return _gradients(args[1:15], args[29])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.options = inputs[15:20]
    ctx.set_materialize_grads(False)  # zeros for kv, q, k, v, ctx and y would be six large tensors
    ctx.given = [t is not None for t in inputs[:14]]
    ctx.save_for_backward(*inputs[:15], *output[1:9])


def _autograd(ctx: Any, g: Tensor | None, *others: Tensor) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 22
    wanted = [n and b for n, b in zip(ctx.needs_input_grad[:14], ctx.given, strict=True)]
    grads = torch.ops.cmibq.attention_backward(g, *ctx.saved_tensors, *ctx.options, wanted)
    return (*(t if w else None for t, w in zip(grads, wanted, strict=True)), *[None] * 8)


LIBRARY.impl("attention", _forward_cpu, "CPU")
LIBRARY.impl("attention", reference, "CUDA")
LIBRARY.impl("attention_backward", _backward_cpu, "CPU")
LIBRARY.impl("attention_backward", reference_backward, "CUDA")
torch.library.register_fake("cmibq::attention", _fake, lib=LIBRARY)
torch.library.register_fake("cmibq::attention_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("cmibq::attention", _autograd, setup_context=_setup, lib=LIBRARY)
no_second("attention")


def _planes(precision: str | None, dtype: torch.dtype) -> int:
    if precision is None:
        halved = dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        return PRECISIONS["bfloat16"] if halved else 0
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; allowed are {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _call(args: tuple[Any, ...], dtype: torch.dtype, out: Tensor | None) -> tuple[Any, ...]:
    """Call the op; its first result in `dtype`, in `out` if there is one."""
    present = [t for t in args[:14] if t is not None]
    if out is not None and wants_grad(out, *present):
        raise ConfigError("out is given where a gradient is recorded; leave it out, or use no_grad")
    if out is not None and dtype == torch.float32 and direct(*present):
        made = _forward_cpu(*args, to=out)
        torch.autograd.graph.increment_version(out)  # who saved its old values must find out
        return made
    first, *rest = torch.ops.cmibq.attention(*args)
    return (put(first.to(dtype), out), *rest)


def attention(
    xq: Tensor,
    xk: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    *,
    heads: int,
    wp: Tensor | None = None,
    bp: Tensor | None = None,
    bq: Tensor | None = None,
    bk: Tensor | None = None,
    bv: Tensor | None = None,
    bo: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    key_mask: Tensor | None = None,
    residual: bool = True,
    eps: float = 1e-5,
    precision: str | None = None,
    recompute: bool = False,
    need_entropy: bool = False,
    need_weights: bool = False,
    out: Tensor | None = None,
) -> Attended:
    """Return ``layer_norm(xq + attend(xq wq^T, kv wk^T, kv wv^T) wo^T)``, differentiable.

    ``kv = xk wp^T + bp``, or `xk` without `wp`. Scores exist for 32 rows at a time; the backward
    pass makes them again. float32 on the CPU runs
    in C, bfloat16 too (computed in float32 storage); anything else runs in `reference`.

    Args:
        xq: [B, Lq, Dq], queries; contiguous.
        xk: [B, Lk, Dk], source of keys and values; contiguous.
        wq: [E, Dq], as in `torch.nn.Linear`; `heads` divides E.
        wk: [E, P]; without `wp` P = Dk.
        wv: [E, P].
        wo: [Do, E].
        heads: number of heads.
        wp: [P, Dk] or None, projection in front of keys and values.
        bp: [P] or None.
        bq: [E] or None, as `bk` and `bv`.
        bk: see `bq`.
        bv: see `bq`.
        bo: [Do] or None.
        gamma: [Do], weight of the layer norm; None = no layer norm.
        beta: [Do], its bias; with `gamma` only.
        key_mask: bool [B, Lk], True = nobody looks at this key. A batch element without keys
            gets zeros from its attention (torch gives NaN or zeros, by version).
        residual: add `xq`; needs Do = Dq.
        eps: of the layer norm.
        precision: of products of float32 on the CPU, as in `cmibq.ops.gemm`: ``"float32"``,
            ``"bfloat16x3"`` (the same here: both have the accuracy of float32), ``"bfloat16x2"``
            (2^-16 where the CPU multiplies bfloat16 tiles, else float32) or ``"bfloat16"``. None
            follows bfloat16 inputs and CPU autocast (bfloat16), else
            `torch.get_float32_matmul_precision`.
        recompute: save next to nothing for the backward pass, which then repeats the forward pass
            for a few batch elements at a time: half the memory, 1.3 to 1.6 times the time. False
            saves q, k, v and three more matrices of that size.
        need_entropy: also return the entropy of each row of attention.
        need_weights: also return attention averaged over the heads.
        out: [B, Lq, Do] in the dtype of `xq`, to write to; not where a gradient is recorded.

    Returns:
        `Attended`: out [B, Lq, Do], entropy, weights.

    Raises:
        ConfigError: `precision` is unknown, only one of gamma and beta is given, or `out` where a
            gradient is recorded.
        ValueError: a shape does not fit.

    References:
        Dao et al., "FlashAttention", NeurIPS 2022 (scores made again in the backward pass).

    Example:
        >>> x, eye = torch.tensor([[[1.0, 0.0]]]), torch.eye(2)
        >>> attention(x, x, eye, eye, eye, eye, heads=1).out
        tensor([[[2., 0.]]])
    """
    if (gamma is None) != (beta is None):
        raise ConfigError("gamma and beta are given together or not at all")
    check_tokens("xq", xq.shape)
    check_tokens("xk", xk.shape)
    dtype, planes = xq.dtype, _planes(precision, xq.dtype)
    tensors = [xq, xk, wp, bp, wq, bq, wk, bk, wv, bv, wo, bo, gamma, beta]
    if planes == 1 or dtype == torch.bfloat16:
        tensors = [t.float() if t is not None and t.dtype == torch.bfloat16 else t for t in tensors]
    mask = None if key_mask is None else key_mask.to(torch.uint8)
    save = not recompute and wants_grad(*(t for t in tensors if t is not None))
    args = (*tensors, mask, heads, residual, eps, planes, save, need_entropy, need_weights)
    made, *_, entropy, weights = _call(args, dtype, out)
    entropy = entropy.detach() if need_entropy else None
    return Attended(made, entropy, weights.detach() if need_weights else None)
