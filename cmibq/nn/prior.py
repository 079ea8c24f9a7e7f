"""The learned discrete prior of the codes of every channel, at every width."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cmibq.errors import ConfigError
from cmibq.nn.ib_maps import HostIntegers
from cmibq.ops.channel_bits import MOST_BITS, TABLE
from cmibq.ops.peers import all_gather_rows

__all__ = ["DiscretePrior"]

_LEAST = 2.0**-16  # what every code has, as in the integer tables: none costs more than 16 bits
_TINY = 1e-9
_WIDTHS = range(1, MOST_BITS + 1)


class DiscretePrior(HostIntegers):
    """Probabilities of codes: a mixture of logistics over the range of a channel, and corrections.

    One density serves all widths, so bits can change while training; what it cannot say, logits of
    single codes add. Every code has at least 1/65536.

    Args:
        channels: C.
        mixtures: logistics per channel.

    References:
        Balle et al., "Variational image compression with a scale hyperprior", ICLR 2018,
        appendix 6.1.

    Example:
        >>> tables = DiscretePrior(2).tables().detach()
        >>> round(float((0.5 ** tables[0, 3:7]).sum()), 5)  # the four codes of two bits
        1.0
    """

    def __init__(self, channels: int, mixtures: int = 3) -> None:
        super().__init__()
        start = torch.linspace(0.3, 0.7, mixtures)
        self.weight = nn.Parameter(torch.zeros(channels, mixtures))
        self.mean = nn.Parameter(start.repeat(channels, 1))
        self.log_scale = nn.Parameter(torch.full((channels, mixtures), math.log(0.1)))
        self.logits = nn.Parameter(torch.zeros(channels, TABLE))
        self.register_buffer("started", torch.zeros((), dtype=torch.int64))

    @property
    def fresh(self) -> bool:
        """Whether no data have been seen, see `start_`."""
        return self._read("started") == 0

    @torch.no_grad()
    def start_(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Begin with mean and spread of data, of all processes, once.

        Args:
            x: [R, C]; R may be 0 in some process, not in all.
            low: [C], lowest level.
            high: [C], highest.
        """
        if not self.fresh:
            return
        u = ((x.detach() - low) / (high - low).clamp(min=_TINY)).to(self.mean)
        moments = torch.cat([u.sum(0), u.square().sum(0), u.new_tensor([len(u)])])
        whole = all_gather_rows(moments[None]).sum(0)
        mean, square = (whole[:-1] / whole[-1]).chunk(2)
        spread = (square - mean.square()).clamp(min=1e-6).sqrt()
        offsets = torch.linspace(-1, 1, self.mean.shape[1], device=mean.device)
        good = (mean + spread).isfinite()[:, None]
        found = mean[:, None] + spread[:, None] * offsets, (0.35 * spread).log()[:, None]
        for held, new in zip((self.mean, self.log_scale), found, strict=True):
            held.copy_(torch.where(good, new, held))
        self._write("started", 1)

    @torch.no_grad()
    def fit_(self, counts: Tensor) -> None:
        """Take the shares of counted codes, exactly, for all widths that were counted.

        Args:
            counts: [C, 511], of every code of every width, as `cmibq.ops.channel_bits.offset` says
                where; half a code is added to each.

        Raises:
            ConfigError: another shape.
        """
        if list(counts.shape) != list(self.logits.shape):
            raise ConfigError(
                f"counts has shape {list(counts.shape)}; give {list(self.logits.shape)}"
            )
        blocks = [torch.zeros_like(self.logits[:, :1])]
        for b in _WIDTHS:
            part = slice(2**b - 1, 2 ** (b + 1) - 1)
            some = counts[:, part].to(self.logits)
            share = (some + 0.5) / (some + 0.5).sum(1, keepdim=True)
            told = share.log() - self._mass(b, None).log()
            blocks.append(torch.where(some.sum(1, keepdim=True) > 0, told, 0.0))
        self.logits.copy_(torch.cat(blocks, 1))

    def _mass(self, bits: int, rows: Tensor | None) -> Tensor:
        """Return what the mixture gives to every code of a width, [C or rows, 2^bits]."""
        held = (t if rows is None else t[rows] for t in (self.weight, self.log_scale, self.mean))
        weight, log_scale, mean = (t.double() for t in held)
        share, slope = weight.softmax(1), torch.exp(-log_scale)
        edges = (torch.arange(2**bits - 1, device=mean.device) + 0.5) / (2**bits - 1)
        start, cdf = slope * mean, slope.new_zeros(())
        for k in range(mean.shape[1]):
            at = slope[:, k, None] * edges.to(mean) - start[:, k, None]
            cdf = cdf + share[:, k, None] * at.sigmoid()
        above = nn.functional.pad(cdf, (0, 1), value=1.0)
        return (above - nn.functional.pad(cdf, (1, 0))).clamp(min=0) + _TINY

    def _block(self, bits: int, used: Tensor | None) -> Tensor:
        """Return the bits of the codes of a width, [C, 2^bits]; 0 for channels not in `used`."""
        size, channels = 2**bits, len(self.mean)
        rows = None if used is None or bool(used.all()) else used.nonzero()[:, 0]
        if bits == 0 or (rows is not None and not len(rows)):
            return self.mean.new_zeros(channels, size)
        logits = self.logits[:, size - 1 : 2 * size - 1]
        logits = (logits if rows is None else logits[rows]).double()
        weight = self._mass(bits, rows) * logits.exp()
        p = weight * ((1 - size * _LEAST) / weight.sum(1, keepdim=True)) + _LEAST
        bits_of: Tensor = (-p.log2()).to(self.mean.dtype)
        if rows is None:
            return bits_of
        return self.mean.new_zeros(channels, size).index_copy(0, rows, bits_of)

    def tables(self, bits: Tensor | None = None) -> Tensor:
        """Return the bits that each code takes, [C, 511]: those of every width, one by one.

        Args:
            bits: [G, C], widths that are in use, fractions allowed; only their tables and those of
                the next width are made then, and the others are 0. None: all. It waits for a GPU.
        """
        if bits is None:
            return torch.cat([self._block(b, None) for b in range(MOST_BITS + 1)], 1)
        whole = bits.detach().long().clamp(0, MOST_BITS - 1).mT
        used = torch.zeros(len(self.mean), MOST_BITS + 1, dtype=torch.bool, device=bits.device)
        used = used.scatter(1, whole, True).scatter(1, whole + 1, True)
        return torch.cat([self._block(b, used[:, b]) for b in range(MOST_BITS + 1)], 1)
