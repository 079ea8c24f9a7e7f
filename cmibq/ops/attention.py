"""Cross-attention with its projections, residual and layer norm as one torch operator."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cmibq.errors import ConfigError, check_tokens
from cmibq.ops.attention_reference import reference, reference_backward
from cmibq.ops.library import LIBRARY, direct, kernel_ready, put, view, wants_grad
from cmibq.runtime import kernels

__all__ = ["PRECISIONS", "Attended", "attention", "reference", "reference_backward"]

PRECISIONS = {"medium": 1, "high": 2, "highest": 3}
"""Name, as in torch.set_float32_matmul_precision -> parts of an operand (csrc/core/attention.h)."""
_IN_PLACE = 1024  # widest block that needs no buffer for its queries (csrc/ops/attention.c)

LIBRARY.define(
    "attention(Tensor xq, Tensor xk, Tensor wq, Tensor? bq, Tensor wk, Tensor? bk, Tensor wv,"
    " Tensor? bv, Tensor wo, Tensor? bo, Tensor? gamma, Tensor? beta, Tensor? mask, int heads,"
    " bool residual, float eps, int planes, bool save, bool entropy, bool weights)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "attention_backward(Tensor g, Tensor xq, Tensor xk, Tensor wq, Tensor wk, Tensor wv,"
    " Tensor wo, Tensor? gamma, Tensor? mask, Tensor q, Tensor k, Tensor v, Tensor ctx, Tensor y,"
    " Tensor lse, Tensor stat, int heads, bool residual, int planes, bool[12] wanted)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,"
    " Tensor)"
)


class Attended(NamedTuple):
    """What `attention` returns."""

    out: Tensor
    """[B, Lq, Do]."""
    entropy: Tensor | None
    """[B, H, Lq], entropy of every row of attention in nats, where wanted; no gradient."""
    weights: Tensor | None
    """[B, Lq, Lk], attention averaged over the heads, where wanted; no gradient."""


def _sizes(xq: Tensor, xk: Tensor, wq: Tensor, wo: Tensor) -> tuple[int, ...]:
    return (*xq.shape[:2], xk.shape[1], xq.shape[2], xk.shape[2], wq.shape[0], wo.shape[0])


def _columns(save: bool, batch: int, keys: int, width: int, heads: int) -> int:
    """Columns of k and v held at a time: a quarter of them where that saves more than 4 MiB."""
    parts = 4 if heads % 4 == 0 else 2 if heads % 2 == 0 else 1
    return width // parts if not save and batch * keys * width >= 1 << 20 else width


def _empty(like: Tensor, save: bool, *shape: int) -> Tensor:
    return like.new_empty(shape if save else (0,))


def _outputs(
    xq: Tensor, xk: Tensor, wq: Tensor, wo: Tensor, norm: bool, heads: int, *flags: bool
) -> tuple[Tensor, ...]:
    save, entropy, weights = flags
    batch, rows, keys, _, _, width, out = _sizes(xq, xk, wq, wo)
    return (
        xq.new_empty(batch, rows, out),
        _empty(xq, save, batch, rows, width),
        _empty(xq, save, batch, keys, width),
        _empty(xq, save, batch, keys, width),
        _empty(xq, save, batch, rows, width),
        _empty(xq, save and norm, batch, rows, out),
        xq.new_empty(batch, heads, rows),
        xq.new_empty(batch, rows, 2),
        _empty(xq, entropy, batch, heads, rows),
        _empty(xq, weights, batch, rows, keys),
    )


def _gradients(*args: Any) -> tuple[Tensor, ...]:
    *tensors, wanted = args
    shapes = [t.shape for t in tensors[:2]]
    for w in tensors[2:]:
        shapes += [w.shape, w.shape[:1]]
    shapes += [tensors[-1].shape[:1]] * 2
    return tuple(
        tensors[0].new_empty(s if w else (0,)) for s, w in zip(shapes, wanted, strict=True)
    )


def _opt(t: Tensor | None) -> Any:
    return None if t is None or t.shape == (0,) else view(t)


def _forward_cpu(*args: Any, to: Tensor | None = None) -> tuple[Tensor, ...]:
    tensors, mask = args[:12], args[12]
    heads, residual, eps, planes, save, entropy, weights = args[13:]
    if not kernel_ready(*(t for t in tensors if t is not None)):
        first, *rest = reference(*args)
        return (put(first, to), *rest)
    xq, xk, wq, wo, gamma = (args[i] for i in (0, 1, 2, 8, 10))
    made = _outputs(xq, xk, wq, wo, gamma is not None, heads, save, entropy, weights)
    made = made if to is None else (to, *made[1:])
    out, q, k, v, ctx, y, lse, stat, *seen = made
    batch, rows, keys, *_, width, wide = _sizes(xq, xk, wq, wo)
    columns = _columns(save, batch, keys, width, heads)
    held = (k, v) if save else (xq.new_empty(batch, keys, columns) for _ in range(2))
    spare = xq.new_empty(batch, rows, width) if not (wide == width <= _IN_PLACE) else None
    kernel: Any = kernels()
    planes = planes or PRECISIONS[torch.get_float32_matmul_precision()]
    size = kernel.attention_workspace(*_sizes(xq, xk, wq, wo), heads, int(residual), planes, 0)
    work = torch.empty(size, dtype=torch.uint8)
    kernel.attention(
        *(None if t is None else view(t) for t in tensors),
        None if mask is None else view(mask),
        heads, int(residual), eps, planes,
        view(out), _opt(q) if save else _opt(spare), *map(view, held), _opt(ctx), _opt(y),
        view(lse), view(stat), *map(_opt, seen), view(work),
    )  # fmt: skip
    return made


def _backward_cpu(*args: Any) -> tuple[Tensor, ...]:
    g, xq, xk, wq, wk, wv, wo, gamma, mask, *saved = args[:16]
    heads, residual, planes, wanted = args[16:]
    floats = (g, xq, xk, wq, wk, wv, wo, *saved)
    if not kernel_ready(*floats):
        return reference_backward(*args)
    grads = _gradients(xq, xk, wq, wk, wv, wo, wanted)
    kernel: Any = kernels()
    planes = planes or PRECISIONS[torch.get_float32_matmul_precision()]
    size = kernel.attention_workspace(
        *_sizes(xq, xk, wq, wo), heads, int(residual), planes, 2 if wanted[0] else 1
    )
    work = torch.empty(size, dtype=torch.uint8)
    kernel.attention_bwd(
        view(g.contiguous()), *map(view, (xq, xk, wq, wk, wv, wo)),
        None if gamma is None else view(gamma), None if mask is None else view(mask),
        *map(view, saved[:4]), view(saved[4]) if gamma is not None else None,
        *map(view, saved[5:]), heads, int(residual), planes,
        *(view(t) if w else None for t, w in zip(grads, wanted, strict=True)), view(work),
    )  # fmt: skip
    return grads


def _fake(*args: Any) -> tuple[Tensor, ...]:
    return _outputs(args[0], args[1], args[2], args[8], args[10] is not None, args[13], *args[17:])


def _fake_backward(*args: Any) -> tuple[Tensor, ...]:
    return _gradients(*args[1:7], args[19])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    xq, xk, wq, _, wk, _, wv, _, wo, _, gamma, _, mask, ctx.heads, ctx.residual = inputs[:15]
    ctx.planes, ctx.saves = inputs[16], inputs[17]
    ctx.set_materialize_grads(False)  # zeros for q, k, v, ctx and y would be five large tensors
    ctx.biases = [t is not None for t in inputs[:12]]
    ctx.save_for_backward(xq, xk, wq, wk, wv, wo, gamma, mask, *output[1:8])


def _autograd(ctx: Any, g: Tensor | None, *others: Tensor) -> tuple[Tensor | None, ...]:
    if g is None:
        return (None,) * 20
    if not ctx.saves:
        raise RuntimeError("attention: save is False, so there is nothing to go back from")
    wanted = [n and b for n, b in zip(ctx.needs_input_grad[:12], ctx.biases, strict=True)]
    grads = torch.ops.cmibq.attention_backward(
        g, *ctx.saved_tensors, ctx.heads, ctx.residual, ctx.planes, wanted
    )
    return (*(t if w else None for t, w in zip(grads, wanted, strict=True)), *[None] * 8)


def _no_second(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    raise RuntimeError("attention: there is no gradient of its gradient; use `reference` for that")


LIBRARY.impl("attention", _forward_cpu, "CPU")
LIBRARY.impl("attention", reference, "CUDA")
LIBRARY.impl("attention_backward", _backward_cpu, "CPU")
LIBRARY.impl("attention_backward", reference_backward, "CUDA")
torch.library.register_fake("cmibq::attention", _fake, lib=LIBRARY)
torch.library.register_fake("cmibq::attention_backward", _fake_backward, lib=LIBRARY)
torch.library.register_autograd("cmibq::attention", _autograd, setup_context=_setup, lib=LIBRARY)
torch.library.register_autograd("cmibq::attention_backward", _no_second, lib=LIBRARY)


def _planes(precision: str | None, dtype: torch.dtype) -> int:
    if precision is None:
        halved = dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
        return PRECISIONS["medium"] if halved else 0
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is {precision!r}; allowed are {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _call(args: tuple[Any, ...], dtype: torch.dtype, out: Tensor | None) -> tuple[Any, ...]:
    """Call the op; its first result in `dtype`, in `out` if there is one."""
    if out is not None and (args[17] or wants_grad(out)):
        raise ConfigError("out is given where a gradient is recorded; leave it out, or use no_grad")
    present = [t for t in args[:12] if t is not None]
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
    need_entropy: bool = False,
    need_weights: bool = False,
    out: Tensor | None = None,
) -> Attended:
    """Return ``layer_norm(xq + attend(xq wq^T, xk wk^T, xk wv^T) wo^T)``, differentiable.

    Scores exist for 32 rows at a time; the backward pass makes them again. float32 on the CPU runs
    in C, bfloat16 too (computed in float32 storage); anything else runs in `reference`.

    Args:
        xq: [B, Lq, Dq], queries; contiguous.
        xk: [B, Lk, Dk], source of keys and values; contiguous.
        wq: [E, Dq], as in `torch.nn.Linear`; `heads` divides E.
        wk: [E, Dk].
        wv: [E, Dk].
        wo: [Do, E].
        heads: number of heads.
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
        precision: of products of float32 on the CPU: ``"highest"`` (float32), ``"high"`` (two
            bfloat16 parts per operand where the CPU multiplies bfloat16 tiles, 2^-16) or
            ``"medium"`` (bfloat16 operands, float32 sums). None follows bfloat16 inputs and CPU
            autocast (medium), else `torch.get_float32_matmul_precision`.
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
    tensors = [xq, xk, wq, bq, wk, bk, wv, bv, wo, bo, gamma, beta]
    if planes == 1 or dtype == torch.bfloat16:
        tensors = [t.float() if t is not None and t.dtype == torch.bfloat16 else t for t in tensors]
    mask = None if key_mask is None else key_mask.to(torch.uint8)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    args = (*tensors, mask, heads, residual, eps, planes, save, need_entropy, need_weights)
    made, *_, entropy, weights = _call(args, dtype, out)
    entropy = entropy.detach() if need_entropy else None
    return Attended(made, entropy, weights.detach() if need_weights else None)
