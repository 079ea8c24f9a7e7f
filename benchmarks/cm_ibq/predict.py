"""What theory says that bits by sensitivity save over the same bits for all channels."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.cm_ibq.coded import Layer
from benchmarks.cm_ibq.vlm import Material, frozen

__all__ = ["coding_gain", "predicted_gain"]


def coding_gain(importance: Tensor) -> float:
    """Return ``1/2 log2(arithmetic mean / geometric mean)``, bits per element.

    Args:
        importance: [L], sensitivity times variance of every channel, above 0.

    Example:
        >>> coding_gain(torch.tensor([1.0, 16.0]))  # mean 8.5 over 4
        0.5437...
    """
    x = importance.double()
    return float(0.5 * (x.mean().log2() - x.log2().mean()))


def predicted_gain(coder: Layer, model: str, seen: Material, pictures: int = 256) -> float:
    """Return the bits per element that unequal widths save where rounding is fine.

    The sensitivity of a channel is the mean square of the gradient of the log-loss of all answers
    of a picture; the loss then grows by half of that times the mean square error.

    Args:
        coder: trained.
        model: name of the frozen model.
        seen: pictures.
        pictures: how many of them.

    References:
        Jayant and Noll, "Digital Coding of Waveforms", 1984, chapter 11 (transform coding gain).
    """
    with torch.no_grad():
        z = coder.layer.encoder(seen.features[:pictures])
    z.requires_grad_()
    asked = seen.asked[: len(z)]
    judge = frozen(model)
    answers = sum(len(judge.packer._ids(told)) + 1 for pairs in asked for _, told in pairs)
    (judge.loss(coder.layer.decoder(z), asked) * answers).backward()
    assert z.grad is not None
    sensitivity = z.grad.flatten(0, 1).square().mean(0)
    return coding_gain(sensitivity * z.detach().flatten(0, 1).var(0))
