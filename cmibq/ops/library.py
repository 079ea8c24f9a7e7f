"""The torch library that all operators are defined in, and the way to their NumPy views."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from cmibq import memory
from cmibq.errors import ConfigError

__all__ = [
    "LIBRARY",
    "call",
    "direct",
    "empty",
    "empty_like",
    "kernel_ready",
    "no_second",
    "once",
    "put",
    "recorded",
    "refuse_grad",
    "torch_threads",
    "view",
    "wants_grad",
]

LIBRARY = torch.library.Library("cmibq", "FRAGMENT")
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def view(t: torch.Tensor) -> NDArray[Any]:
    """Return a NumPy view of a CPU tensor; no copy (bfloat16 crosses as uint16)."""
    if t.requires_grad:
        t = t.detach()
    if t.dtype is torch.bfloat16:
        t = t.view(torch.uint16)
    return t.numpy()


def kernel_ready(*tensors: torch.Tensor) -> bool:
    """Tell whether the C kernels take these tensors: CPU, float32 (others use the reference)."""
    for t in tensors:  # a loop, for all() over a generator takes three times as long
        if not t.is_cpu or t.dtype is not torch.float32:
            return False
    return True


def direct(*tensors: torch.Tensor) -> bool:
    """Tell whether an op may call its CPU function at once, without torch's dispatcher.

    True for plain CPU tensors in eager mode: nothing compiles, traces, transforms or profiles. The
    dispatcher would then only find the same function, which costs 15 us. Gradients are for the
    caller to look after.

    Example:
        >>> direct(torch.ones(2))
        True
        >>> from torch._subclasses.fake_tensor import FakeTensorMode
        >>> with FakeTensorMode():
        ...     direct(torch.ones(2))
        False
    """
    if torch.compiler.is_compiling():
        return False
    c = torch._C
    if c._len_torch_dispatch_stack() or c._len_torch_function_stack():
        return False
    if c._are_functorch_transforms_active() or c._get_tracing_state() is not None:
        return False
    if c._autograd._profiler_enabled():
        return False
    for t in tensors:
        if type(t) not in _PLAIN or not t.is_cpu:
            return False
    return True


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a backward function that autograd may not differentiate, as `once_differentiable`.

    Torch's own wrapper sets and restores the gradient mode, 3 us, also where nobody asked for a
    second derivative; this one calls the function at once there.
    """
    careful = once_differentiable(backward)

    def plain_or_careful(ctx: Any, *grads: Any) -> Any:
        return (careful if torch.is_grad_enabled() else backward)(ctx, *grads)

    return plain_or_careful


def wants_grad(*tensors: torch.Tensor) -> bool:
    """Tell whether autograd is to record an op on these tensors."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t.requires_grad:
                return True
    return False


def call(
    cpu: Callable[..., Any],
    op: Callable[..., Any],
    tensors: tuple[torch.Tensor, ...],
    *rest: object,
    out: torch.Tensor | None = None,
    grad: bool = False,
) -> Any:
    """Call an op: its CPU function at once where `direct` holds and no gradient is recorded.

    Args:
        cpu: its CPU function, which takes `out` last where there is one.
        op: the registered operator, which returns a new tensor.
        tensors: its tensor arguments.
        rest: its other arguments.
        out: where the result is to go.
        grad: it has a gradient, so autograd may want to record it.

    Raises:
        ConfigError: `out` where a gradient is recorded, tensors with and without values together.
    """
    record = grad and wants_grad(*tensors)
    if out is None:
        if not record and direct(*tensors):
            return cpu(*tensors, *rest)
        _refuse_meta(tensors)
        return op(*tensors, *rest)
    refuse_grad(out, record=record)
    if direct(*tensors, out):
        made = cpu(*tensors, *rest, out)
        torch.autograd.graph.increment_version(out)  # who saved its old values must find out
        return made
    _refuse_meta((*tensors, out))
    return put(op(*tensors, *rest), out)


def recorded(
    name: str,
    cpu: Callable[..., Any],
    backward_cpu: Callable[..., Any],
    setup: Callable[[Any, tuple[Any, ...], Any], None],
    gradients: Callable[..., tuple[torch.Tensor | None, ...]],
) -> Callable[..., Any]:
    """Register the gradient of an op and return what calls it, without the dispatcher if it can.

    Args:
        name: of the op; its backward is another one, ``<name>_backward``.
        cpu: the op's CPU function.
        backward_cpu: that of its backward.
        setup: ``(ctx, operands, output)``, notes what the backward needs.
        gradients: ``(backward, ctx, *grads)``, gradients of all operands by that function.

    Returns:
        ``(tensors, *operands)``: `tensors` are those among the operands.
    """
    op, back = (getattr(torch.ops.cmibq, n) for n in (name, f"{name}_backward"))
    through = functools.partial(gradients, back)
    torch.library.register_autograd(f"cmibq::{name}", through, setup_context=setup, lib=LIBRARY)
    no_second(name)

    class _Eager(torch.autograd.Function):
        """What autograd records where the dispatcher is left out; the same two functions."""

        @staticmethod
        def forward(ctx: Any, *operands: Any) -> Any:
            out = cpu(*operands)
            setup(ctx, operands, out)
            return out

        @staticmethod
        @once
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            return gradients(backward_cpu, ctx, *grads)

    def run(tensors: tuple[torch.Tensor, ...], *operands: Any) -> Any:
        if not direct(*tensors):
            return op(*operands)
        if wants_grad(*tensors):
            return _Eager.apply(*operands)  # type: ignore[no-untyped-call]
        return cpu(*operands)

    return run


def refuse_grad(*outs: torch.Tensor, record: bool = False) -> None:
    """Refuse to write where a gradient is recorded.

    Raises:
        ConfigError: `record`, or autograd records what happens to one of `outs`.
    """
    if record or wants_grad(*outs):
        raise ConfigError("out is given where a gradient is recorded; leave it out, or use no_grad")


def _refuse_meta(tensors: tuple[torch.Tensor, ...]) -> None:
    """Refuse tensors of the meta device beside others: torch would take the fake, so no values."""
    places = {t.device.type for t in tensors}
    if "meta" in places and len(places) > 1:
        raise ConfigError(f"tensors are on {', '.join(sorted(places))}; give them all values")


def no_second(name: str) -> None:
    """Register that the backward of an op has no gradient, so that asking for one is an error.

    Without that torch warns, and leaves the gradient out.
    """

    def refuse(ctx: Any, *grads: torch.Tensor) -> None:
        raise RuntimeError(
            f"{name}: there is no gradient of its gradient; use its `reference` for that"
        )

    torch.library.register_autograd(f"cmibq::{name}_backward", refuse, lib=LIBRARY)


def put(made: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """Return a result, copied to `out` if there is one.

    Raises:
        ValueError: `out` has another shape; copying would repeat the result.
        TypeError: `out` has another dtype; copying would convert it.
    """
    if out is None:
        return made
    if out.shape != made.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, expected {tuple(made.shape)}")
    if out.dtype != made.dtype:
        raise TypeError(f"out has dtype {out.dtype}, expected {made.dtype}")
    return out.copy_(made)


def empty(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return a CPU tensor whose values are not set, large ones over `cmibq.memory`.

    Args:
        shape: its sizes.
        dtype: its type; floating point or integer.

    Example:
        >>> empty((2, 3), torch.uint8).shape
        torch.Size([2, 3])
    """
    size = math.prod(shape) * dtype.itemsize
    if size < memory.LARGE:
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.float32:  # at once: after a large kernel each call of torch takes 30 us
        return torch.from_numpy(memory.empty(shape))
    return torch.from_numpy(memory.empty(size, np.uint8)).view(dtype).view(shape)


def empty_like(t: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return `empty` of the shape of a tensor, and of its type unless another is given."""
    if t.numel() * (dtype or t.dtype).itemsize < memory.LARGE and t.is_contiguous():
        return torch.empty_like(t, dtype=dtype)
    return empty(t.shape, dtype or t.dtype)


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[int]:
    """Set torch's thread count, which kernels follow, for a while.

    Args:
        count: threads; None leaves the count as it is.

    Yields:
        The count in force.

    Example:
        >>> with torch_threads(1) as count:
        ...     count
        1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
