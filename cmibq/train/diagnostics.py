"""What a bottleneck does, in numbers: bits by channel and step, rates, dead channels, bounds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmibq.errors import DataError
from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.train.journal import Journal
from cmibq.train.losses import gaussian_rate

__all__ = [
    "BitRecorder",
    "channel_rates",
    "coded_bytes",
    "diagnose",
    "entropy_bits",
    "information_plane",
    "rate_distortion",
]

Batches = Sequence[Mapping[str, Tensor]]
_DEAD = 0.01
"""Bits per element below which a channel counts as dead."""


class BitRecorder:
    r"""Writes the mean bits of every channel now and then: give it to `Loop` as ``watch``.

    Args:
        path: ``.jsonl`` file.
        stage: 1 or 2.
        every: steps between records.

    Example:
        >>> import tempfile
        >>> recorder = BitRecorder(Path(tempfile.mkdtemp(), "bits.jsonl"), 2)
        >>> recorder(0, {"bit_allocation": torch.tensor([[2.0, 4.0], [4.0, 4.0]])})
        >>> recorder.journal.path.read_text()
        '{"stage": 2, "step": 0, "bits": [3.0, 4.0]}\n'
    """

    def __init__(self, path: str | Path, stage: int, *, every: int = 1) -> None:
        self.journal, self.stage, self.every = Journal(path), stage, every
        self._begun = False

    def __call__(self, step: int, found: Mapping[str, Tensor | None]) -> None:
        """Record the bits of a step, if it is one of those to record."""
        bits = found.get("bit_allocation")
        if not self._begun:
            self.journal.rewind(self.stage, step)
            self._begun = True
        if step % self.every or bits is None:
            return
        mean = bits.detach().float().flatten(0, -2).mean(0) if bits.ndim > 1 else bits.detach()
        values = [round(v, 3) for v in mean.tolist()]
        self.journal.write([{"stage": self.stage, "step": step, "bits": values}])


def entropy_bits(answers: Iterable[str]) -> float:
    """Return the entropy in bits of answers as often as they occur.

    Of few samples it is below the true one; it never exceeds log2 of their number.

    Example:
        >>> entropy_bits(["yes", "no", "yes", "no"])
        1.0
    """
    counts = Counter(answers)
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values()) + 0.0


def information_plane(
    records: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> list[dict[str, float]]:
    """Return bounds on what the latent knows of image and answer, in bits, for every step.

    The coded bits of an image are an upper bound on the information between image and latent. The
    entropy of the answer less the cross-entropy of the model is a lower one on that between latent
    and answer. Nothing is estimated from bins.

    Args:
        records: of the journal; those without a task loss are left out.
        facts: ``elements`` of the latent of an image, ``answer_tokens`` of an answer on average,
            and ``answer_bits``, the entropy of an answer.

    Returns:
        ``step``, ``rate`` (at most) and ``relevance`` (at least).

    References:
        Barber and Agakov, "The IM algorithm", 2003 (both bounds); Alemi et al., 2017, section 3.

    Example:
        >>> facts = {"elements": 10, "answer_tokens": 2, "answer_bits": 3.0}
        >>> record = {"stage": 2, "step": 0, "rate": math.log(2.0), "task": math.log(2.0)}
        >>> information_plane([record], facts)
        [{'step': 0, 'rate': 10.0, 'relevance': 1.0}]
    """
    nat = math.log(2.0)
    return [
        {
            "step": r["step"],
            "rate": r["rate"] * facts["elements"] / nat,
            "relevance": facts["answer_bits"] - r["task"] * facts["answer_tokens"] / nat,
        }
        for r in records
        if "task" in r
    ]


@torch.no_grad()
def rate_distortion(
    layer: IBQuantizedLayer, batches: Batches, targets: Sequence[float]
) -> list[dict[str, float]]:
    """Return rate and distortion of a layer at several mean bits, as evaluation has them.

    Args:
        layer: in evaluation mode.
        batches: with ``features``, and ``task_embedding`` where the layer needs it.
        targets: mean bits.

    Returns:
        ``target``, ``bits`` (rate) per element of the latent, ``mse`` of the features, and
        ``snr``, the same in decibel against their variance.
    """
    every = torch.cat([b["features"].double().flatten(0, -2) for b in batches])
    power = float((every - every.mean(0)).square().sum())
    made = []
    for target in targets:
        bits, error, rows, size = 0.0, 0.0, 0, 0
        for batch in batches:
            x = batch["features"].float()
            r = layer.run(x, batch.get("task_embedding"), target_bits=target)
            bits += float(r.rate.sum())
            error += float((r.reconstruction - x).square().sum())
            rows, size = rows + r.mu[..., 0].numel() * r.mu.shape[-1], size + x.numel()
        snr = 10 * math.log10(max(power, 1e-30) / max(error, 1e-30))
        made.append({"target": target, "bits": bits / rows, "mse": error / size, "snr": snr})
    return made


def _coded(layer: IBQuantizedLayer, mu: Tensor, bits: Tensor) -> Tensor:
    """Return the bits that each channel takes in each row of `mu` [R, L], averaged, [L].

    The rate is linear in the tables of the prior: its gradient counts how often each code occurs.
    """
    assert layer.prior is not None
    with torch.enable_grad():
        tables = layer.prior.tables().detach().requires_grad_()
        told = layer.quantizer(mu, bits, tables)[1].sum()
        (counts,) = torch.autograd.grad(told, tables)
    return (counts * tables.detach()).sum(1) / len(mu)


def channel_rates(layer: IBQuantizedLayer, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return the mean bits that are allocated to each channel, and those it takes, [L] each.

    What it takes is ``-log2 p(code)`` with the discrete rate, the KL divergence with the Gaussian
    one, per element.

    Args:
        layer: in evaluation mode.
        batches: as in `rate_distortion`.

    Raises:
        DataError: there are no batches.
    """
    if not batches:
        raise DataError("there are no batches to diagnose; give at least one")
    width = layer.config.latent_dim
    shares, spent, rows = torch.zeros(width), torch.zeros(width), 0
    for batch in batches:
        x = batch["features"].float()
        with torch.no_grad():
            r = layer.run(x, batch.get("task_embedding"))
        mu = r.mu.detach().reshape(-1, width)
        bits = r.bit_allocation.detach().reshape(-1, width)
        if layer.prior is None:
            per = gaussian_rate(mu.flatten()[:, None], r.logvar.expand_as(r.mu).flatten()[:, None])
            took = per.view(-1, width).mean(0)
        else:
            took = _coded(layer, mu, bits.round())
        shares += bits.float().mean(0).cpu() * len(mu)
        spent += took.float().cpu() * len(mu)
        rows += len(mu)
    return shares / rows, spent / rows


@torch.no_grad()
def coded_bytes(layer: IBQuantizedLayer, batches: Batches) -> float | None:
    """Return the mean bytes of a sample's stream, header and map included.

    Args:
        layer: in evaluation mode.
        batches: as in `rate_distortion`.

    Returns:
        The mean; None for a layer that is not finalised, which has no streams.
    """
    if not layer.latent.filled or not layer.frozen:
        return None
    sizes = [
        size
        for b in batches
        for size in layer.compress(b["features"].float(), b.get("task_embedding")).sizes
    ]
    return sum(sizes) / max(len(sizes), 1)


def diagnose(
    layer: IBQuantizedLayer, batches: Batches, targets: Sequence[float] | None = None
) -> dict[str, Any]:
    """Return what figures and the report show of a trained layer.

    Args:
        layer: in evaluation mode.
        batches: as in `rate_distortion`.
        targets: mean bits of the rate-distortion curve; None = eight from few to many.

    Returns:
        Plain values: ``bits`` and ``rates`` of every channel, ``histogram`` (channels by bits),
        ``dead`` channels, ``bytes`` of a sample's stream (None before ``finalize_``), and the
        ``curve`` of `rate_distortion`.
    """
    c = layer.config
    bits, rates = channel_rates(layer, batches)
    if targets is None:
        low, high = max(float(c.min_bits), 0.25), float(c.max_bits)
        targets = sorted({low + (high - low) * n / 7 for n in range(8)} | {c.stage2_bits})
    whole = Counter(int(b) for b in bits.round().tolist())
    dead = [i for i, (b, r) in enumerate(zip(bits, rates, strict=True)) if b < _DEAD or r < _DEAD]
    return {
        "bits": [round(b, 4) for b in bits.tolist()],
        "rates": [round(r, 4) for r in rates.tolist()],
        "histogram": {str(b): whole.get(b, 0) for b in range(c.max_bits + 1)},
        "dead": dead,
        "target_bits": layer.target_bits,
        "curve": rate_distortion(layer, batches, targets),
        "rate": c.rate,
        "bytes": coded_bytes(layer, batches),
    }
