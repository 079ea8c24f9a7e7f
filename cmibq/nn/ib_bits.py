"""Bits of an information-bottleneck layer: with fractions in training, whole ones to code with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cmibq.alloc.bottleneck import ALLOCATION_NETWORKS, IMPORTANCE
from cmibq.alloc.whole import budget
from cmibq.nn.ib_maps import BitMaps, HostIntegers
from cmibq.nn.ib_tokens import STEP, UNIT, TokenGain
from cmibq.ops.alloc import project_bits
from cmibq.quant.quantizers.channel_bits import DifferentiableQuantizer
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["BitPlan", "Budgeted"]

_BILLION = 10**9
_WIDEST = 1e30  # squared ranges above it overflow with what they are multiplied by


class BitPlan(NamedTuple):
    """Whole bits of features, and what a decoder must be told to have them too."""

    bits: Tensor
    """uint8 [G, L], G = 1 or B; with token gain [B * T, L]."""
    map_index: Tensor | None
    """int64 [G]: the kept map of each sample; None: not frozen, the bits are no kept map."""
    levels: Tensor | None
    """int64 [B, T]: level of the gain of each token; None without token gain."""


class Budgeted(HostIntegers):
    """The part of `IBQuantizedLayer` that shares bits out.

    Args:
        config: see `CMIBQConfig`.
    """

    quantizer: DifferentiableQuantizer

    def __init__(self, config: CMIBQConfig) -> None:
        super().__init__()
        c = self.config = config
        task = c.task_dim if c.mode == "task" else 0
        asks = task if c.n_maps > 1 else 0  # one map for all tasks hangs on none
        rule = ALLOCATION_NETWORKS[c.allocator]
        soft, sizes = c.budget == "soft", (c.latent_dim, c.hidden_dim, c.min_bits, c.max_bits)
        self.allocation = rule(*sizes, costs=c.costs, soft=soft)
        reads = c.importance if rule.reads is None else rule.reads
        sizes = (c.feature_dim, asks, c.hidden_dim, c.latent_dim)
        self.importance = IMPORTANCE[reads](*sizes) if reads else None
        self.token_gain = TokenGain(sizes[0], task, c.token_levels) if c.token_gain else None
        self._unit = UNIT if c.token_gain else 0
        levels = c.token_levels if c.token_gain else 1
        self.bit_maps = BitMaps(c.latent_dim, c.n_maps if asks else 1, levels)
        billionths = torch.tensor(round(c.stage1_bits * _BILLION))
        self.register_buffer("target_billionths", billionths)  # exact in every dtype of a model

    @property
    def target_bits(self) -> float:
        """The mean bits per element in force: the annealed value, or what was set last."""
        return self._read("target_billionths") / _BILLION

    @target_bits.setter
    def target_bits(self, value: float) -> None:
        self.config.check_target(value)
        self._write("target_billionths", round(value * _BILLION))

    @property
    def frozen(self) -> bool:
        """Whether integer maps are kept for the target in force; see `freeze_`."""
        return self.bit_maps.fits(self._total(self.target_bits))

    @property
    def maps(self) -> Tensor:
        """The kept maps, uint8 [M, L]; M = 0 before `freeze_`. With token gain those of gain 1."""
        return self.bit_maps.table[: self.bit_maps.kept(), self._unit]

    @property
    def level_maps(self) -> Tensor:
        """The kept maps of every level of the token gain, uint8 [M, levels, L]."""
        return self.bit_maps.table[: self.bit_maps.kept()]

    def _weight(self) -> int:
        return sum(self.config.costs) or self.config.latent_dim

    def _total(self, target: float) -> int:
        return budget(target, self._weight())

    def _importance(self, features: Tensor, task_embedding: Tensor | None) -> Tensor:
        """Return what squared errors of channels weigh, in the units of their levels, [G, L]."""
        low, high = (end.detach().to(features.dtype) for end in self.quantizer.ends())
        if self.importance is None:
            return torch.ones_like(low)[None]
        told: Tensor = self.importance(features, task_embedding)
        return told * (high - low).square().clamp(max=_WIDEST) if self.importance.ranged else told

    def freeze_(self) -> None:
        """Keep integer maps for the target in force; from now on every sample has one of them.

        Samples that share their bits have one map. Otherwise those of the samples seen lately in
        training are kept, of more than `n_maps` the ones that serve all best. Called again it does
        nothing until the target has changed; another ``target_bits`` is allotted afresh.

        Raises:
            ModelError: bits depend on the task, and the layer has seen no training data.
        """
        target = self.target_bits
        if self.frozen:
            return
        with torch.no_grad():
            if len(self.bit_maps.table) == 1:
                device = self.bit_maps.table.device
                none = torch.zeros(1, 1, self.config.feature_dim, device=device)
                wishes = self.allocation.wishes(self._importance(none, None))
            else:
                wishes = self.bit_maps.samples()
                own = self._whole(wishes, target)[:, self._unit]
                wishes = wishes[self.bit_maps.choose(wishes, own)]
            self.bit_maps.keep(self._whole(wishes, target), self._total(target))

    def thaw_(self) -> None:
        """Forget the kept maps."""
        self.bit_maps.keep(self.bit_maps.table[:0], 0)

    def _whole(self, wishes: Tensor, target: float) -> Tensor:
        """Return integer maps of every level of the token gain, uint8 [G, levels, L]."""
        if self.token_gain is None:
            return self.allocation.whole(wishes, self._total(target))[:, None]
        most = self.config.max_bits * self._weight()
        totals = [min(self._total(k * STEP * target), most) for k in range(self.token_gain.count)]
        return torch.stack([self.allocation.whole(wishes, n, least=0) for n in totals], 1)

    def _gains(self, x: Tensor, task_embedding: Tensor | None, target: float) -> Tensor | None:
        if self.token_gain is None:
            return None
        gains: Tensor = self.token_gain(x, task_embedding, target, self.config.max_bits)
        return gains

    def rows_of(self, maps: Tensor, levels: Tensor | None) -> Tensor:
        """Return the bits that rows have under maps of their samples.

        Args:
            maps: [G, levels, L] such as ``level_maps[index]``.
            levels: int64 [B, T], or None without token gain.

        Returns:
            [G, L], or [B * T, L] with token gain.
        """
        if levels is None:
            return maps[:, self._unit]
        samples = torch.arange(len(levels), device=levels.device)[:, None] % max(len(maps), 1)
        return maps[samples, levels].flatten(0, 1)

    def _levels(self, gains: Tensor | None, target: float) -> Tensor | None:
        if gains is None or self.token_gain is None:
            return None
        return self.token_gain.levels(gains, target, self.config.max_bits)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _now(self, target_bits: float | None) -> tuple[float, int]:
        """Return the target in force and how many maps are kept for it; all that is read back."""
        if target_bits is not None:
            self.config.check_target(target_bits)
        target = self.target_bits if target_bits is None else float(target_bits)
        return target, self.bit_maps.kept() if self.bit_maps.fits(self._total(target)) else 0

    def _plan(self, wishes: Tensor, gains: Tensor | None, target: float, kept: int) -> BitPlan:
        """Return the whole bits of wishes [G, L] and gains [B, T]."""
        levels = self._levels(gains, target)
        if kept:
            index = self.bit_maps.index(wishes, self._unit, kept)
            return BitPlan(self.rows_of(self.bit_maps.table[index], levels), index, levels)
        return BitPlan(self.rows_of(self._whole(wishes, target), levels), None, levels)

    def _bits(
        self, x: Tensor, task_embedding: Tensor | None, now: tuple[float, int], fresh: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return bits of rows and what the levels of the tokens cost, [B].

        In training bits have fractions until maps are kept. Then the networks that chose them stay
        in the graph with gradients of 0, so that distributed training finds all it waits for.
        """
        (target, kept), importance = now, self._importance(x, task_embedding)
        gains = self._gains(x, task_embedding, target)
        if kept or not self.training:
            wishes = self.allocation.wishes(importance)
            plan = self._plan(wishes, gains, target, kept)
            bits = plan.bits.to(x.dtype)
            if self.training:
                bits = bits + self._link()
            side = self._side(plan, now)
            if side is not None:
                return bits, side
            gains = None if plan.levels is None else plan.levels.to(x.dtype) * STEP
        else:
            noise = self._noise(importance, 1) if self.allocation.draws else None
            bits = self.allocation(importance, target, noise)
            if fresh and self.config.mode == "task":
                with torch.no_grad():
                    self.bit_maps.remember(self.allocation.wishes(importance))
            bits = bits if gains is None else self._spread(bits, gains, target)
        if gains is None or self.token_gain is None:
            return bits, None
        return bits, self.token_gain.cost(gains)

    def _side(self, plan: BitPlan, now: tuple[float, int]) -> Tensor | None:
        """Return what the stream says beside codes, in bits [G] or [B], where that is final."""
        return None

    def _link(self) -> Tensor | float:
        """Return 0 that hangs on the parameters of the networks that choose bits."""
        parts = (self.allocation, self.importance, self.token_gain)
        sums = [p.sum() for part in parts if part is not None for p in part.parameters()]
        return 0.0 * sum(sums)

    def _noise(self, like: Tensor, stream: int) -> Tensor:
        """Return normal noise of the shape [B, ..] of `like`."""
        raise NotImplementedError

    def _spread(self, bits: Tensor, gains: Tensor, target: float) -> Tensor:
        """Return gains times bits, [B * T, L]; what an upper limit cuts off, all others get."""
        product = gains[:, :, None] * bits[:, None]
        if self.config.budget == "hard":
            lo, hi = 0.0, float(self.config.max_bits)
            cost = self.allocation.costs
            weight = None if cost is None else cost.to(bits.dtype).repeat(gains.shape[1])
            flat = project_bits(product.flatten(1), target, lo, hi, weight=weight)
            product = flat.view_as(product)
        return product.clamp(0, self.config.max_bits).flatten(0, 1)
