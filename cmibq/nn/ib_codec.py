"""Real bytes: the part of `IBQuantizedLayer` that compresses latents and opens them again."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cmibq.arrays.rangecode import RangeStream
from cmibq.errors import ModelError, PackageError
from cmibq.nn.ib_bits import BitPlan, Budgeted
from cmibq.nn.ib_input import checked, half_wanted
from cmibq.nn.ib_tokens import STEP
from cmibq.nn.latent import CompressedLatent, Frame, frame, unframe
from cmibq.nn.latent_code import Codes
from cmibq.nn.latent_tables import Book, LatentTables
from cmibq.nn.latent_values import codes_of, settle_, unit_levels, values_of
from cmibq.nn.prior import DiscretePrior
from cmibq.ops.channel_bits import TABLE, offset
from cmibq.ops.peers import all_max_
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["Coded"]

_FEW = 64


class Coded(Budgeted):
    """Budgeted bits that are written down.

    Args:
        config: see `CMIBQConfig`.
    """

    prior: DiscretePrior | None
    encode: Callable[..., Tensor]
    plan: Callable[..., BitPlan]

    def __init__(self, config: CMIBQConfig) -> None:
        super().__init__(config)
        most, levels, channels = self.bit_maps.table.shape
        self.latent = LatentTables(channels, most, levels)
        self._open: tuple[list[tuple[Tensor, int]], Book] | None = None

    @property
    def finalised(self) -> bool:
        """Whether there are integer tables for the target in force; see `finalize_`."""
        return self.latent.filled and self.frozen

    @torch.no_grad()
    def finalize_(self, counts: Tensor | None = None) -> None:
        """Make the integer tables that streams are coded with; call it after training.

        The maps are frozen where they are not, the learned stretch goes into the ranges, and the
        probabilities of the prior (equal ones with ``rate="gaussian"``) become integers
        (`cmibq.arrays.integer_frequencies`) for the widths that the maps have. From then on the
        rate of evaluation is that of these integers. A later step of training undoes it.

        Args:
            counts: [L, 511] from `count_codes`; the prior then takes their shares first.

        Raises:
            ModelError: see `freeze_`.
        """
        self.freeze_()
        settle_(self.quantizer)
        if not self.quantizer.plain:
            self.latent.units.copy_(unit_levels(self.quantizer.grid))
        maps = self.level_maps
        if counts is not None and self.prior is not None:
            self.prior.fit_(counts)
        if self.prior is None:
            rates = torch.zeros(maps.shape[-1], TABLE)
        else:
            rates = self.prior.tables()
        counts = torch.ones(len(maps))
        if len(maps) > 1:
            wishes = self.bit_maps.samples()
            index = self.bit_maps.index(wishes, self._unit, len(maps))
            counts += torch.bincount(index, minlength=len(maps)).cpu()
        levels = torch.ones(1) if self.token_gain is None else 0.5 ** self.token_gain.table()
        self.latent.fill_(rates, maps, counts, levels)

    def _book(self) -> Book:
        """Return the tables, made again when anything that they hang on has changed."""
        q, held = self.quantizer, self.latent
        parts = [q.running_min, q.running_max, q.log_stretch, self.bit_maps.table]
        parts += [held.frequencies, held.indices, held.levels, held.units]
        now = [(t, -1 if t.is_inference() else t._version) for t in parts]
        if self._open is not None:
            known = zip(now, self._open[0], strict=True)
            if all(a[0] is b[0] and a[1] == b[1] for a, b in known):
                return self._open[1]
        book = held.book(self.level_maps, q.ends())
        self._open = now, book
        return book

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_open": None}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _watch(self, x: Tensor, task: Tensor | None, dims: int) -> None:
        """Take in the features [B, T, D] of a training step; the first ones start the prior."""
        self.latent.watch(0 if dims == 2 else x.shape[1])
        if self.prior is None or not self.prior.fresh:
            return
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
            z = self.encode(x, task).flatten(0, 1)
            none = z.new_full(z.shape[1:], torch.inf)  # a process without images meets the others
            low, high = torch.aminmax(z, dim=0) if len(z) else (none, -none)
            ends = all_max_(torch.cat([-low, high]))
            self.prior.start_(z, -ends[: len(low)], ends[len(low) :])

    def _final(self, now: tuple[float, int]) -> Book | None:
        """Return the tables of an evaluation for a target that maps are kept for."""
        if self.training or not now[1]:  # no call, which would cut a compiled graph
            return None
        book: Book | None = self._filled()
        return book

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _filled(self) -> Book | None:
        return self._book() if self.latent.filled else None

    def _rates(self, now: tuple[float, int], rows: Tensor) -> Tensor | None:
        """Return the bits of all codes: of the integers once they are final, else of the prior.

        Of the prior, on a CPU only those of the widths that `rows` [G, L] have.
        """
        if self.prior is None:
            return None
        book = self._final(now)
        if book is not None:
            return book.rates.to(rows.dtype)
        few = rows.is_cpu and len(rows) <= _FEW and not torch.compiler.is_compiling()
        return self.prior.tables(rows if few else None).to(rows.dtype)

    def _side(self, plan: BitPlan, now: tuple[float, int]) -> Tensor | None:
        """Return the bits of map index and levels of tokens, [G] or [B]."""
        book, kept = self._final(now), now[1]
        if plan.map_index is None or self.prior is None:
            return None
        if book is None:  # the index is then charged as one of equally likely ones
            if kept < 2:
                return None
            side = self.prior.mean.new_full((len(plan.map_index),), math.log2(kept))
            if plan.levels is None or self.token_gain is None:
                return side
            return side + self.token_gain.cost(plan.levels * STEP)
        side = book.indices[plan.map_index]
        return side if plan.levels is None else side + book.levels[plan.levels].sum(1)

    def _exact(self, quantised: Tensor, z: Tensor, rows: Tensor, now: tuple[float, int]) -> Tensor:
        """Return the levels that a decoder finds; on curved grids others are off by rounding."""
        if self.quantizer.plain or self._final(now) is None:
            return quantised
        bits = rows.repeat_interleave(len(z) // len(rows), 0)
        codes = codes_of(self.quantizer, z, bits)
        return values_of(self.quantizer, codes, bits, self.latent.units).to(z.dtype)

    @torch.no_grad()
    def compress(
        self,
        features: Tensor,
        task_embedding: Tensor | None = None,
        target_bits: float | None = None,
        *,
        entropy: bool = True,
    ) -> CompressedLatent:
        """Return the quantised latent of features as bytes, every sample a stream of its own.

        Args:
            features: [B, T, D] or [B, D]; the work is in float32.
            task_embedding: [B, E]; needed in mode task.
            target_bits: None, or the target that the layer was finalised for.
            entropy: code by the integer tables; otherwise pack codes densely at their widths.

        Raises:
            ModelError: the layer is not finalised for the target.
            DataError: shapes that do not fit, NaN or infinity.
        """
        target, kept = self._now(target_bits)
        if not (self.latent.filled and kept):
            raise ModelError(
                f"the layer has no integer tables for target_bits {target}; set layer.target_bits,"
                " train on, then call layer.finalize_()"
            )
        codes, bits, plan = self._coded(features, task_embedding, target)
        assert plan.map_index is not None
        samples, tokens = codes.shape[:2]
        index = plan.map_index.expand(samples).tolist()
        levels = codes.new_zeros(samples, tokens) if plan.levels is None else plan.levels
        told = [t.to(torch.uint8).cpu().numpy() for t in (codes, bits, levels)]
        made = [Codes(*part) for part in zip(told[0], told[1], index, told[2], strict=True)]
        return self._streams(made, 0 if features.ndim == 2 else tokens, entropy)

    def _coded(
        self, features: Tensor, task_embedding: Tensor | None, target: float
    ) -> tuple[Tensor, Tensor, BitPlan]:
        """Return the codes of features and their widths, uint8 [B, T, L] each, and the plan."""
        kind = features.device.type
        half = half_wanted(kind)
        with torch.autocast(kind, enabled=False):
            x, task = checked(self.config, features.float(), task_embedding, False)
            mu = self.encode(x, task, half=half)
            plan = self.plan(x, task, target_bits=target)
        each = plan.bits.view(len(plan.bits), 1, mu.shape[2])
        bits = (each.view(mu.shape) if plan.levels is not None else each).expand(mu.shape)
        flat = bits.flatten(0, 1)
        codes = codes_of(self.quantizer, mu.flatten(0, 1), flat.float()).view(mu.shape)
        return codes, bits, plan

    @torch.no_grad()
    def count_codes(self, features: Tensor, task_embedding: Tensor | None = None) -> Tensor:
        """Return how often features have each code of each channel and width, int64 [L, 511].

        Counts of training features, added up, may take the place of the learned probabilities:
        ``layer.finalize_(counts)``.

        Args:
            features: [B, T, D] or [B, D].
            task_embedding: [B, E]; needed in mode task.

        Raises:
            ModelError: the layer is not frozen.
        """
        target, kept = self._now(None)
        if not kept:
            raise ModelError("codes are counted at frozen bits; call layer.freeze_() first")
        codes, bits, _ = self._coded(features, task_embedding, target)
        channels = codes.shape[2]
        at = torch.arange(channels, device=codes.device) * TABLE + offset(bits) + codes.long()
        counts: Tensor = at.flatten().bincount(minlength=channels * TABLE)
        return counts.view(channels, TABLE)

    def _streams(self, samples: list[Codes], tokens: int, entropy: bool) -> CompressedLatent:
        book, streams = self._book(), []
        for sample in samples:
            if entropy:
                payload, lanes = book.code.encode(sample)
            else:
                payload, lanes = book.code.pack(sample), ()
            made = Frame(payload, tokens, lanes)
            streams.append(frame(made, self.latent.usual, book.fingerprint))
        nominal = tuple(int(s.bits.sum(dtype=np.int64)) for s in samples)
        rate = tuple(book.code.bits(s) for s in samples)
        return CompressedLatent(tuple(streams), nominal, rate)

    @torch.no_grad()
    def decompress(self, z: CompressedLatent | bytes) -> Tensor:
        """Return the quantised latent of a compressed one, float32 [B, T, L] or [B, L].

        It equals the first output of the evaluation forward, bit for bit, and no network runs.

        Args:
            z: what `compress` made, or its bytes.

        Raises:
            PackageError: truncated or altered bytes, or those of another layer; samples with
                different numbers of tokens.
            ModelError: the layer is not finalised.
        """
        z = z if isinstance(z, CompressedLatent) else CompressedLatent.from_bytes(z)
        if not (self.latent.filled and self.bit_maps.kept()):
            raise ModelError(
                "the layer has no integer tables to decode with; load the state dict of the layer"
                " that compressed, or call layer.finalize_()"
            )
        book, usual = self._book(), self.latent.usual
        frames = [unframe(stream, usual, book.fingerprint) for stream in z.streams]
        if len({f.tokens for f in frames}) != 1:
            raise PackageError(
                f"{len(frames)} samples of {sorted({f.tokens for f in frames})} tokens make no"
                " tensor; decompress one or more of equal length: CompressedLatent(streams)"
            )
        found = [self._opened(book, f) for f in frames]
        first, device = found[0], self.latent.units.device
        codes = torch.from_numpy(np.stack([f.codes for f in found])).to(device)
        if self.token_gain is None and len({f.map_index for f in found}) == 1:
            bits = torch.from_numpy(first.bits[:1]).to(device)  # all rows have the same
        else:
            bits = torch.from_numpy(np.concatenate([f.bits for f in found])).to(device)
        units = self.latent.units
        made = values_of(self.quantizer, codes.flatten(0, 1), bits.float(), units)
        made = made.view(codes.shape)
        return made if frames[0].tokens else made[:, 0]

    def _opened(self, book: Book, told: Frame) -> Codes:
        """Return the sample of a frame."""
        tokens = max(told.tokens, 1)
        if told.lanes:
            return book.code.decode(RangeStream(told.payload, told.lanes), tokens)
        return book.code.unpack(told.payload, tokens)
