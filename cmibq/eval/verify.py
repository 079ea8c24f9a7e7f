"""Is a quantised model still the model it was made from? Likelihoods, top tokens, captions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from cmibq.eval.answers import Answers

__all__ = ["LIMITS", "Limit", "Verification", "compare"]


@dataclass(frozen=True)
class Limit:
    """What still counts as the same model.

    Args:
        kl: largest mean KL divergence from the float model, in nats per token.
        top1: smallest share of places with the same most likely token.
    """

    kl: float
    top1: float


LIMITS: Final[Mapping[int, Limit]] = {
    8: Limit(0.5, 0.6),
    7: Limit(0.5, 0.6),
    6: Limit(0.5, 0.6),
    5: Limit(0.75, 0.5),
    4: Limit(1.0, 0.25),
    3: Limit(3.0, 0.0),
    2: Limit(math.inf, 0.0),
}
"""Bits per weight -> limit. They tell a broken model, not a poor one: a trained model stays far
below (0.00 to 0.05 nats at 4 bits), random weights come close. At 2 bits only garbage is told."""


@dataclass(frozen=True)
class Verification:
    """How far a quantised model is from the float model, and whether that is still the same model.

    Args:
        reasons: what is wrong, for people; empty if all is well.
        kl: mean KL divergence of its predictions from those of the float model, nats per token.
        kl_max: the largest.
        kl_blind: the same if a model knew only how often each token is likely on average.
        top1: share of places with the same most likely token.
        places: number of places compared.
        samples: number of samples they come from.
        held_out: whether the samples were kept out of the calibration.
        kl_limit: `kl` that is allowed.
        top1_limit: `top1` that is asked for.
        reload_exact: whether the reloaded model gives the logits of the one in memory bit for bit;
            None where that was not looked at.
        captions: prompts with the texts of both models.
    """

    reasons: tuple[str, ...]
    kl: float
    kl_max: float
    kl_blind: float
    top1: float
    places: int
    samples: int
    held_out: bool
    kl_limit: float
    top1_limit: float
    reload_exact: bool | None = None
    captions: tuple[dict[str, str], ...] = field(default=(), repr=False)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; numbers that are not finite become null."""
        value = asdict(self) | {"ok": self.ok}
        value = {k: list(v) if isinstance(v, tuple) else v for k, v in value.items()}
        bad = [k for k, v in value.items() if isinstance(v, float) and not math.isfinite(v)]
        return value | dict.fromkeys(bad)

    def summary(self) -> str:
        """Return one line for people."""
        return (
            f"KL {self.kl:.4f} nats, same top token at {100 * self.top1:.1f} % of {self.places} "
            f"{'held-out' if self.held_out else 'calibration'} places"
        )


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) of rows of log-likelihoods; NaN in either counts as infinitely far."""
    terms = torch.where(p.exp() == 0, torch.zeros(()), p.exp() * (p - q))
    return terms.sum(-1).nan_to_num(nan=math.inf).clamp_min(0)


def _judge(kl: float, blind: float, top1: float, limit: Limit, bits: int) -> list[str]:
    reasons = []
    if not math.isfinite(kl):
        reasons.append("its predictions are NaN or infinite; check the weights and the scales")
        return reasons
    if kl > limit.kl:
        reasons.append(
            f"its predictions are {kl:.3f} nats per token away from the float model's, more than"
            f" {limit.kl:g} that {bits}-bit weights are allowed"
        )
    if top1 < limit.top1:
        reasons.append(
            f"its most likely token is the float model's at {100 * top1:.0f} % of the places, fewer"
            f" than {100 * limit.top1:g} % that {bits}-bit weights must keep"
        )
    if kl > 3 * blind + 1 and limit.kl == math.inf:
        reasons.append(
            f"its predictions ({kl:.3f} nats per token away) are far worse than knowing only how"
            f" often each token occurs ({blind:.3f})"
        )
    if reasons:
        reasons.append("use more bits, smaller groups (w_group), or a search with calibration data")
    return reasons


def compare(
    before: Answers,
    after: Answers,
    *,
    bits: int,
    samples: int,
    held_out: bool,
    reload_exact: bool | None = None,
    limit: Limit | None = None,
) -> Verification:
    """Compare what the quantised model says with what the float model said.

    Args:
        before: of the float model.
        after: of the quantised model, to the same samples.
        bits: bits per weight of the layers with the fewest.
        samples: number of samples both saw.
        held_out: whether these were kept out of the calibration.
        reload_exact: see `Verification`.
        limit: replaces that of `LIMITS`.

    Example:
        >>> said = Answers(torch.tensor([[0.5, 0.25, 0.25]]).log())
        >>> found = compare(said, said, bits=4, samples=1, held_out=True)
        >>> found.ok, found.kl, found.top1
        (True, 0.0, 1.0)
    """
    p, q = before.logprobs.double(), after.logprobs.double()
    each = _divergence(p, q)
    mean = p.exp().mean(0).log()
    kl, blind = float(each.mean()), float(_divergence(p, mean.expand_as(p)).mean())
    top1 = float((p.argmax(-1) == q.argmax(-1)).double().mean())
    limit = limit or LIMITS[max(2, min(8, bits))]
    reasons = _judge(kl, blind, top1, limit, bits)
    if reload_exact is False:
        reasons.insert(
            0,
            "the model read back from disk computes other logits than the one in memory; the disk"
            " or the memory of this machine may be at fault, write it again",
        )
    texts = zip(before.captions, after.captions, strict=True)
    return Verification(
        reasons=tuple(reasons),
        kl=kl,
        kl_max=float(each.max()),
        kl_blind=blind,
        top1=top1,
        places=len(p),
        samples=samples,
        held_out=held_out,
        kl_limit=limit.kl,
        top1_limit=limit.top1,
        reload_exact=reload_exact,
        captions=tuple(
            {"prompt": b.prompt, "float": b.text, "quantised": a.text} for b, a in texts
        ),
    )
