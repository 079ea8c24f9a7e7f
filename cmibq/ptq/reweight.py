"""How much the answer depends on image and on answer tokens: MBQ's two gradients per block.

Only the gradients of two outputs per block are looked at, so nothing else is kept: parameters take
no gradient, and blocks are run again one by one from the last, each in memory alone.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cmibq.errors import DataError
from cmibq.models import LoadedModel
from cmibq.ptq.capture import first
from cmibq.ptq.stream import BatchStream, float32_block

__all__ = ["Means", "add_gradients_", "used_ratios"]


@dataclass
class Means:
    """Sums over samples of mean absolute output gradients.

    Args:
        total: float64 [blocks, kinds, 2], vision and answer.
        samples: float64 [2], samples that have tokens of the modality.
    """

    total: Tensor
    samples: Tensor

    @classmethod
    def zero(cls, blocks: int, kinds: int) -> Means:
        """Return sums over no sample."""
        return cls(
            torch.zeros(blocks, kinds, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        )

    def averages(self) -> Tensor:
        """Return the means over samples, float64 [blocks, kinds, 2].

        Raises:
            DataError: no sample has image tokens, or none has answer tokens.
        """
        for name, count in zip(("image", "answer"), self.samples.tolist(), strict=True):
            if not count:
                raise DataError(
                    f"reweight is set but no calibration sample has {name} tokens; calibrate on"
                    " items with images, or leave reweight out"
                )
        return self.total / self.samples


def used_ratios(means: Tensor) -> Tensor:
    """Return the weight of image tokens per block: vision / answer, at least the median of blocks.

    Args:
        means: float64 [blocks, kinds, 2], vision and answer.

    Returns:
        float64 [blocks, kinds].

    References:
        Li et al., "MBQ", CVPR 2025, section 4.2; the floor as in the published code (image tokens
        of the last block reach no loss, their gradient is 0).

    Example:
        >>> used_ratios(torch.tensor([[[0.2, 1.0]], [[0.1, 1.0]], [[0.0, 1.0]]]).double())
        tensor([[0.2000],
                [0.1000],
                [0.1000]], dtype=torch.float64)
    """
    vision, answer = means.unbind(-1)
    ratio = torch.where(answer > 0, vision / answer, 0.0)  # nothing to compare with: the floor
    floor = [statistics.median(kind.tolist()) for kind in ratio.T]
    return torch.maximum(ratio, torch.tensor(floor, dtype=torch.float64))


def _per_sample(gradient: Tensor, mask: Tensor) -> Tensor:
    """Sum over samples of the mean |gradient| over masked tokens and channels; float64 scalar."""
    size = gradient.abs().mean(-1, dtype=torch.float64)
    return ((size * mask).sum(1) / mask.sum(1).clamp(min=1)).sum()


@contextlib.contextmanager
def _watched(
    block: nn.Module, endings: Sequence[str], note: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Call note(kind, gradient) for the output gradients of some layers of a block."""

    def hook(kind: int) -> Callable[..., None]:
        return lambda _, args, out: out.register_hook(lambda g: note(kind, g)) and None

    hooks = [
        block.get_submodule(ending).register_forward_hook(hook(kind))
        for kind, ending in enumerate(endings)
    ]
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


@contextlib.contextmanager
def _in_float32(modules: Iterable[nn.Module]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(float32_block(module))
        yield


@contextlib.contextmanager
def _frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Switch gradients of parameters off, and back as they were."""
    were = [(p, p.requires_grad) for p in parameters]
    for p, _ in were:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p, flag in were:
            p.requires_grad_(flag)


def _tail(loaded: LoadedModel) -> tuple[nn.Module, nn.Module]:
    """Return what follows the last block: norm and output layer."""
    adapter, model = loaded.adapter, loaded.model
    return adapter.decoder(model).get_submodule(adapter.norm), adapter.lm_head(model)


def _loss(loaded: LoadedModel, hidden: Tensor, labels: Tensor) -> Tensor:
    """Sum over samples of the mean cross-entropy of answer tokens; logits there only, float32."""
    norm, head = _tail(loaded)
    told = labels[:, 1:] != -100
    rows = norm(hidden[:, :-1][told])
    each = cross_entropy(head(rows), labels[:, 1:][told], reduction="none")
    share = told / told.sum(1, keepdim=True).clamp(min=1)
    return (each * share[told]).sum()


def add_gradients_(means: Means, loaded: LoadedModel, stream: BatchStream) -> None:
    """Add the samples of one batch to the sums; samples do not touch each other.

    Args:
        means: sums to add to.
        loaded: the model; left as it was.
        stream: the batch, with the inputs of its blocks.
    """
    blocks = [b for _, b in loaded.adapter.blocks(loaded.model)]
    endings = [ending for ending, _ in loaded.adapter.gradient_of]
    masks = (stream.vision, stream.answer)
    behind: Tensor | None = None
    with _frozen(loaded.model.parameters()), torch.enable_grad():
        for i in reversed(range(len(blocks))):

            def note(kind: int, gradient: Tensor, i: int = i) -> None:
                for side, mask in enumerate(masks):
                    means.total[i, kind, side] += _per_sample(gradient, mask)

            x = stream.inputs[i].detach().float().requires_grad_()
            with float32_block(blocks[i]), _watched(blocks[i], endings, note):
                out = first(blocks[i](x, **stream.calls[i]))
                if behind is None:
                    with _in_float32(_tail(loaded)):
                        _loss(loaded, out, stream.labels).backward()
                else:
                    out.backward(behind)
            behind = x.grad
    means.samples += torch.tensor([float(m.any(1).sum()) for m in masks], dtype=torch.float64)
