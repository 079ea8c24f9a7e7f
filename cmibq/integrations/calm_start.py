"""What fusions cost before they are trained: loss of the model, and time of an image."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.data.batch import IGNORE
from cmibq.errors import ConfigError
from cmibq.fusion import FUSIONS, build_fusion
from cmibq.integrations.batches import Batches
from cmibq.models.composed import CALMVisionTower, leaving_out
from cmibq.ops.peers import all_sum_

__all__ = ["added_ms", "loss_of", "start_losses"]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(mode)


def loss_of(model: nn.Module, batches: Batches) -> float:
    """Return the loss of a model in nats per answer token, over the batches of all processes.

    Args:
        model: a Hugging Face model.
        batches: what it is measured on.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    with _evaluating(model):
        for batch in batches:
            count = int((batch["labels"] != IGNORE).sum())
            loss = float(model(**batch, use_cache=False)["loss"])
            sums += torch.tensor([loss * count, count], dtype=torch.float64)
    total, tokens = map(float, all_sum_(sums))
    return total / max(tokens, 1.0)


@contextmanager
def _with(tower: CALMVisionTower, fusions: nn.ModuleList) -> Iterator[None]:
    kept = tower.calm_modules
    tower.calm_modules = fusions
    try:
        yield
    finally:
        tower.calm_modules = kept


def _fresh(tower: CALMVisionTower, strategy: str) -> nn.ModuleList:
    """Return untrained fusions of another strategy for the places of a tower."""
    config = dataclasses.replace(tower.calm_config, fusion_strategy=strategy)
    like: Any = next(tower.calm_modules.parameters())
    own: Any = tower.calm_modules
    made = nn.ModuleList(build_fusion(m.anchor_dim, m.augmented_dim, config) for m in own)
    return made.to(like)


def start_losses(
    model: nn.Module, tower: CALMVisionTower, batches: Batches, *, seed: int = 0
) -> dict[str, float | None]:
    """Return the loss before training: of the anchor, and of every strategy with fresh fusions.

    Args:
        model: with the composed tower inside.
        tower: the composed tower; its own fusions count for its own strategy.
        batches: what it is measured on.
        seed: of fresh fusions of the other strategies.

    Returns:
        ``anchor`` and name of strategy -> nats per answer token; None where a strategy does not
        fit these towers.
    """
    with leaving_out(range(len(tower.calm_modules))):
        made: dict[str, float | None] = {"anchor": loss_of(model, batches)}
    for name in FUSIONS:
        own = name == tower.calm_config.fusion_strategy
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                fusions = tower.calm_modules if own else _fresh(tower, name)
                with _with(tower, fusions):
                    made[name] = loss_of(model, batches)
            except ConfigError:
                made[name] = None
    return made


def _median_ms(run: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)


def added_ms(
    tower: CALMVisionTower, batch: Mapping[str, Tensor], repeats: int = 3
) -> tuple[float, float]:
    """Return milliseconds per image of the anchor alone, and what composing adds to them.

    Args:
        tower: the composed tower.
        batch: with ``pixel_values`` [B, 3, H, W].
        repeats: of which the median is taken.
    """
    pixels = batch["pixel_values"].to(next(tower.parameters()).dtype)
    mine, _ = tower.pixels(pixels)
    with _evaluating(tower):
        tower(pixels)
        alone = _median_ms(lambda: tower.anchor_tower(pixel_values=mine), repeats)
        both = _median_ms(lambda: tower(pixels), repeats)
    return alone / len(pixels), (both - alone) / len(pixels)
