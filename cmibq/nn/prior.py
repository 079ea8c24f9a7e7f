"""The learned discrete prior of the codes of every channel, at every width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmibq.ops.channel_bits import MOST_BITS

__all__ = ["DiscretePrior"]

_FLOOR = 2.0**-12  # share of a uniform distribution, so that no code costs infinitely much


class DiscretePrior(nn.Module):
    """Probabilities of codes: a mixture of logistics over the range of a channel, and corrections.

    One density serves all widths, so bits can change while training; what it cannot say, logits of
    single codes add.

    Args:
        channels: C.
        mixtures: logistics per channel.

    References:
        Balle et al., "Variational image compression with a scale hyperprior", ICLR 2018,
        appendix 6.1.

    Example:
        >>> tables = DiscretePrior(2).tables()
        >>> round(float((0.5 ** tables[0, 3:7]).sum()), 5)  # the four codes of two bits
        1.0
    """

    edges: Tensor

    def __init__(self, channels: int, mixtures: int = 3) -> None:
        super().__init__()
        start = torch.linspace(0.3, 0.7, mixtures)
        self.weight = nn.Parameter(torch.zeros(channels, mixtures))
        self.mean = nn.Parameter(start.repeat(channels, 1))
        self.log_scale = nn.Parameter(torch.full((channels, mixtures), math.log(0.1)))
        edges = [(torch.arange(2**b - 1) + 0.5) / (2**b - 1) for b in range(1, MOST_BITS + 1)]
        self.sizes = [len(e) for e in edges]
        self.register_buffer("edges", torch.cat(edges), persistent=False)
        self.logits = nn.Parameter(torch.zeros(channels, 2 ** (MOST_BITS + 1) - 1))

    def tables(self) -> Tensor:
        """Return the bits that each code takes, [C, 511]: those of every width, one by one."""
        share = self.weight.softmax(1)
        below = (self.edges[:, None] - self.mean[:, None]) * torch.exp(-self.log_scale)[:, None]
        cdf = (below.sigmoid() * share[:, None]).sum(2)  # [C, edges]
        found, at = [torch.zeros_like(cdf[:, :1])], 1
        for part in cdf.split(self.sizes, 1):
            ends = (
                torch.nn.functional.pad(part, (1, 0)),
                torch.nn.functional.pad(part, (0, 1), value=1.0),
            )
            p = (ends[1] - ends[0]) * (1 - _FLOOR) + _FLOOR / (part.shape[1] + 1)
            told = p.log() + self.logits[:, at : at + p.shape[1]]
            found.append(-told.log_softmax(1) / math.log(2.0))
            at += p.shape[1]
        return torch.cat(found, 1)
