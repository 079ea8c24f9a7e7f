"""One training: the coder learns, the model stays; then every question is asked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cm_ibq.coders import GATED, Coder
from benchmarks.cm_ibq.vlm import Frozen, Material, frozen

__all__ = ["Plan", "ask", "fit_"]

_COUNTED = 4096  # training pictures whose codes the prior is counted on
_TRIED = 4096  # of them whose gates are tried, for a coder that is told the question


@dataclass(frozen=True)
class Plan:
    """How a coder is trained; the same for all.

    Args:
        steps: optimiser steps.
        batch: pictures of a step.
        questions: questions about each of them.
        pictures: training pictures.
        encoder_rate: largest learning rate of the encoder, whose weights are small: they make the
            features' variances one.
        decoder_rate: that of the decoder.
        bits_rate: that of importance and allocation.
        prior_rate: that of prior and steps.
        warm: share of the steps in which the weight of the rate grows.
    """

    steps: int = 500
    batch: int = 16
    questions: int = 4
    pictures: int = 8000
    encoder_rate: float = 3e-4
    decoder_rate: float = 2e-3
    bits_rate: float = 3e-3
    prior_rate: float = 1e-2
    warm: float = 0.1


def _groups(coder: Coder, plan: Plan) -> list[dict[str, Any]]:
    """Return the groups of the optimiser: encoder, decoder, everything else."""
    rates = {
        "encoder": plan.encoder_rate,
        "conditioner": plan.encoder_rate,
        "decoder": plan.decoder_rate,
        "allocation": plan.bits_rate,
        "importance": plan.bits_rate,
        "": plan.prior_rate,
    }
    found: dict[str, list[Tensor]] = {part: [] for part in rates}
    for name, parameter in coder.named_parameters():
        found[next(part for part in rates if part in name)].append(parameter)
    return [{"params": some, "lr": rates[part]} for part, some in found.items() if some]


def _pairs(
    material: Material, plan: Plan, rng: np.random.Generator, *, task: bool
) -> tuple[list[int], list[list[tuple[str, str]]]]:
    """Return the pictures of a step and what is asked about each; one question each with a task."""
    which, asked = [], []
    for row in rng.integers(len(material.features), size=plan.batch).tolist():
        pairs = material.asked[row]
        some = [pairs[i] for i in rng.permutation(len(pairs))[: plan.questions].tolist()]
        which += [row] * (len(some) if task else 1)
        asked += [[pair] for pair in some] if task else [some]
    return which, asked


def fit_(
    coder: Coder, model: str, seen: Material, plan: Plan, *, weight: float, seed: int, task: bool
) -> list[dict[str, float]]:
    """Train in place with ``cross-entropy + weight x bits per picture``.

    Args:
        coder: what learns.
        model: name of the frozen model.
        seen: training pictures.
        plan: how.
        weight: nats per bit; 0 where codes have a fixed length: the prior then learns alone.
        seed: of the order of the pictures.
        task: the coder is told the question.

    Returns:
        Loss and rate of every step.
    """
    judge, rng = frozen(model), np.random.default_rng((seed, 83))
    optimiser = torch.optim.Adam(_groups(coder, plan), betas=(0.9, 0.98))
    told, logs = dict[str, Tensor](), []
    coder.train()
    for step in range(plan.steps):
        share = step / plan.steps
        for group, peak in zip(optimiser.param_groups, _peaks(optimiser), strict=True):
            group["lr"] = peak * min(1.0, 20 * share + 0.05) * 0.5 * (1 + math.cos(math.pi * share))
        coder.set_share(share)
        if step == math.ceil(0.8 * plan.steps):
            coder.start_last()
        if task and step == math.ceil(GATED * plan.steps):
            _learn_gates(coder, seen, judge, told, weight, rng)
        which, asked = _pairs(seen, plan, rng, task=task)
        question = _embedded(judge, asked, told) if task else None
        features = seen.features[which]
        sent = coder.send(features, question)
        answer = judge.loss(sent.features, asked)
        rate = sent.rate.mean()
        optimiser.zero_grad(set_to_none=True)
        if weight:
            (answer + weight * min(1.0, share / plan.warm) * rate).backward()
        else:
            _learn_apart(coder, rate)
            answer.backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimiser.step()
        logs.append({"loss": float(answer.detach()), "bits": float(rate.detach())})
    some = [[pairs[int(rng.integers(len(pairs)))]] for pairs in seen.asked[:_COUNTED]]
    question = _embedded(judge, some, told) if task else None
    coder.finish(seen.features[:_COUNTED], question)
    coder.eval()
    return logs


def _learn_gates(
    coder: Coder,
    seen: Material,
    judge: Frozen,
    known: dict[str, Tensor],
    weight: float,
    rng: np.random.Generator,
) -> None:
    """Let a coder try which gates questions need, one question about each picture."""
    rows = rng.permutation(len(seen.features))[:_TRIED].tolist()
    pairs = [seen.asked[row][int(rng.integers(len(seen.asked[row])))] for row in rows]
    question = _embedded(judge, [[pair] for pair in pairs], known)
    coder.learn_gates(seen.features[rows], question, _Asked(judge, pairs), weight)


@dataclass(frozen=True)
class _Asked:
    """What a model loses on given questions."""

    judge: Frozen
    pairs: list[tuple[str, str]]

    def __call__(self, sent: Tensor, which: Tensor) -> Tensor:
        return self.judge.costs(sent, [self.pairs[row] for row in which.tolist()])


def _embedded(
    judge: Frozen, asked: list[list[tuple[str, str]]], known: dict[str, Tensor]
) -> Tensor:
    """Return the embeddings of the first question of each, [N, D]; `known` keeps them by text."""
    texts = [pairs[0][0] for pairs in asked]
    for text in set(texts) - known.keys():
        known[text] = judge.embed_texts([text])[0]
    return torch.stack([known[text] for text in texts])


def _learn_apart(coder: Coder, rate: Tensor) -> None:
    """Let the prior alone learn the rate, for coders that have none to train."""
    learners = [p for name, p in coder.named_parameters() if name.startswith("prior.")]
    found = torch.autograd.grad(rate, learners, retain_graph=True)
    for parameter, gradient in zip(learners, found, strict=True):
        parameter.grad = 1e-3 * gradient


def _peaks(optimiser: torch.optim.Optimizer) -> list[float]:
    """Return the learning rates that the groups were made with."""
    for group in optimiser.param_groups:
        group.setdefault("peak", group["lr"])
    return [group["peak"] for group in optimiser.param_groups]


@torch.no_grad()
def ask(coder: Coder, model: str, seen: Material, *, task: bool) -> dict[str, Any]:
    """Ask every question.

    Returns:
        ``right`` and ``losses`` per question; ``bytes`` that were written and ``bits`` of
        information per stream (a picture; with a task, a picture and a question); ``nominal``, the
        bits of a stream with codes of fixed length.
    """
    judge = frozen(model)
    which = list(range(len(seen.asked)))
    asked, question = seen.asked, None
    if task:
        which = [row for row in which for _ in seen.asked[row]]
        asked = [[pair] for pairs in seen.asked for pair in pairs]
        question = judge.embed_texts([pairs[0][0] for pairs in asked])
    features = seen.features[which]
    sent = coder.send(features, question)
    sizes = coder.sizes(sent, features, question)
    right, losses = judge.grade(sent.features, asked)
    told = {"right": right, "losses": losses, "bytes": sizes, "bits": sent.rate.tolist()}
    return told | {"nominal": sent.nominal}
