"""Train the demo model from scratch on the CPU, and measure it."""

from __future__ import annotations

import logging
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from cmibq.demo.data import SHAPES, compose_split
from cmibq.demo.grading import evaluate, grade, summarise, to_pixel_values
from cmibq.demo.heap import HEAP_SETTINGS
from cmibq.demo.model import build_model
from cmibq.demo.packing import IGNORE, Packer
from cmibq.demo.scenes import KINDS, Picture, Pool, compose, load_pool
from cmibq.fileio import sha256_bytes, write_bytes, write_json
from cmibq.ops.library import torch_threads

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration

__all__ = ["HEAP_SETTINGS", "descend", "evaluate", "fit_", "restart_with_heap_settings", "train"]

logger = logging.getLogger(__name__)

STEPS: Final = 1500
# Steps of the eyes alone per step of the whole model; one costs about an eighth.
_SEE_STEPS: Final = 3
_HELP: Final = 0.3
_BATCH: Final = 32
_PEAK: Final = 1.5e-3
_WARM_UP: Final = 150
_DECAY: Final = 0.05


def restart_with_heap_settings() -> None:
    """Restart this Python with `HEAP_SETTINGS`, once, unless the user has set them already.

    glibc reads them when the process starts, so a running one cannot change its mind. Does nothing
    where there is no glibc.
    """
    missing = {key: value for key, value in HEAP_SETTINGS.items() if key not in os.environ}
    if not missing or not sys.platform.startswith("linux") or "CMIBQ_RESTARTED" in os.environ:
        return
    environment = {**os.environ, **missing, "CMIBQ_RESTARTED": "1"}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


class _Helper(nn.Module):
    """Reads digit and colour off every quadrant's image token; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.digit = nn.Linear(width, 11)
        self.colour = nn.Linear(width, 5)

    def forward(self, features: torch.Tensor, pictures: Sequence[Picture]) -> torch.Tensor:
        digits = torch.tensor([picture.digits for picture in pictures]).flatten() + 1
        colours = torch.tensor([picture.colours for picture in pictures]).flatten() + 1
        flat = features.reshape(len(digits), -1)
        return functional.cross_entropy(self.digit(flat), digits) + functional.cross_entropy(
            self.colour(flat), colours
        )


def _loss(
    model: LlavaForConditionalGeneration,
    helper: _Helper,
    packer: Packer,
    pictures: Sequence[Picture],
) -> tuple[torch.Tensor, float]:
    """Return the loss to minimise and the mean answer cross-entropy alone."""
    packed = packer.pack([[(q.text, q.answer) for q in p.questions] for p in pictures])
    output = model.model(
        input_ids=packed.input_ids,
        pixel_values=to_pixel_values([picture.pixels for picture in pictures]),
        attention_mask=packed.attention_mask,
        position_ids=packed.position_ids,
        use_cache=False,
    )
    told = packed.labels != IGNORE
    logits = model.lm_head(output.last_hidden_state[told])
    answer_loss = functional.cross_entropy(logits, packed.labels[told])
    loss = answer_loss + _HELP * helper(output.image_hidden_states, pictures)
    return loss, float(answer_loss.detach())


def _rate(step: int, steps: int) -> float:
    """Learning rate over its peak: linear warm-up, then a half cosine down to zero."""
    warm = min(_WARM_UP, steps // 10 + 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _optimiser(slow: Sequence[nn.Module], fast: Sequence[nn.Module]) -> torch.optim.AdamW:
    """Build the optimiser: a third of the peak rate for `slow`, no decay of vectors."""
    groups: list[dict[str, Any]] = []
    for modules, peak in ((slow, _PEAK / 3), (fast, _PEAK)):
        parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        for decay in (_DECAY, 0.0):
            mine = [p for p in parameters if (p.ndim >= 2) == (decay > 0)]
            if mine:
                groups.append({"params": mine, "weight_decay": decay, "lr": peak})
    return torch.optim.AdamW(groups, lr=_PEAK, betas=(0.9, 0.98), fused=True)


def descend(
    optimiser: torch.optim.AdamW,
    steps: int,
    title: str,
    get_loss: Callable[[int], tuple[torch.Tensor, float]],
) -> list[float]:
    """Minimise; return what `get_loss` reports at every step."""
    from tqdm import tqdm

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    curve: list[float] = []
    bar = tqdm(range(steps), desc=title, unit="step", mininterval=1.0)
    for step in bar:
        loss, reported = get_loss(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        curve.append(reported)
        if step % 20 == 0:
            bar.set_postfix(loss=f"{sum(curve[-50:]) / len(curve[-50:]):.3f}")
    return curve


def fit_(
    model: LlavaForConditionalGeneration,
    pool: Pool,
    *,
    seed: int,
    steps: int,
    see_steps: int | None = None,
) -> tuple[list[float], list[float]]:
    """Train in place: first only the eyes, then everything that takes gradients.

    Args:
        model: The model; what has ``requires_grad`` off stays as it is.
        pool: Where scans come from.
        seed: Seed of every picture.
        steps: Steps of the whole model.
        see_steps: Steps of the eyes alone before; default three times as many.

    Returns:
        The loss at every step of the eyes and of the whole.
    """
    rng, packer = np.random.default_rng((seed, 41)), Packer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        helper = _Helper(model.config.text_config.hidden_size)
    eyes = [model.model.vision_tower, model.model.multi_modal_projector, helper]

    def see(step: int) -> tuple[torch.Tensor, float]:
        pictures = [compose(pool, rng, kinds=(), augment=True, most=4) for _ in range(_BATCH)]
        pixels = to_pixel_values([picture.pixels for picture in pictures])
        features = model.model.get_image_features(pixels, return_dict=True).pooler_output
        loss = helper(torch.stack(list(features)), pictures)
        return loss, float(loss.detach())

    def answer(step: int) -> tuple[torch.Tensor, float]:
        pictures = [compose(pool, rng, augment=True) for _ in range(_BATCH)]
        return _loss(model, helper, packer, pictures)

    model.train()
    first = _SEE_STEPS * steps if see_steps is None else see_steps
    seen = descend(_optimiser([], eyes), first, "learning to see", see)
    rest = [model.model.language_model, model.lm_head]
    answered = descend(_optimiser(eyes, rest), steps, "learning to answer", answer)
    model.eval()
    return seen, answered


def _measure_dev(model: LlavaForConditionalGeneration) -> dict[str, Any]:
    pictures = compose_split("dev", SHAPES["dev"])
    asked = [(p.pixels, [(q.text, q.answer) for q in p.questions]) for p in pictures]
    right, losses = grade(model, asked)
    return summarise([q.kind for p in pictures for q in p.questions], right, losses)


def _versions() -> dict[str, str]:
    import sklearn
    import transformers

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }


def _summarise_curve(curve: Sequence[float], points: int = 30) -> list[dict[str, float]]:
    """Mean loss over equal stretches of the training."""
    edges = np.linspace(0, len(curve), min(points, len(curve)) + 1).astype(int)
    return [
        {"step": int(stop), "loss": round(float(np.mean(curve[start:stop])), 5)}
        for start, stop in pairwise(edges)
    ]


def train(
    out_dir: Path, *, seed: int = 0, steps: int | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Train the demo model from scratch and write its weights and the record of the training.

    Pictures are composed on the fly from the training scans. Call `restart_with_heap_settings`
    first: training is a little faster with them.

    Args:
        out_dir: Folder for ``model.safetensors``, ``config.json`` and ``training.json``.
        seed: Seed of the weights and of every picture; the split of the scans is fixed.
        steps: Optimiser steps of 32 pictures with seven questions each; default `STEPS`. Three
            times as many much cheaper steps of the vision tower alone come before.
        threads: Threads for torch; default what torch uses. On a machine that others keep busy one
            thread is faster than two, which wait for each other at every operation.

    Returns:
        The training record, as in ``training.json``.
    """
    out_dir, steps = Path(out_dir), STEPS if steps is None else steps
    out_dir.mkdir(parents=True, exist_ok=True)
    model = build_model(seed)
    with torch_threads(threads) as used:
        start = time.perf_counter()
        seen, curve = fit_(model, load_pool("train"), seed=seed, steps=steps)
        seconds = time.perf_counter() - start
        dev = _measure_dev(model)
    record: dict[str, Any] = {
        "seed": seed,
        "steps": steps,
        "vision_steps": len(seen),
        "wall_seconds": round(seconds, 1),
        "threads": used,
        "dev": dev,
        "vision_loss": _summarise_curve(seen),
        "loss": _summarise_curve(curve),
    }
    logger.info("dev accuracy %.4f after %d steps, %.0f s", dev["accuracy"], steps, seconds)
    return _write(out_dir, model, record)


def _write(
    out_dir: Path, model: LlavaForConditionalGeneration, record: dict[str, Any]
) -> dict[str, Any]:
    """Write weights, configuration and the record, which is completed and returned."""
    from safetensors.torch import save

    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    weights = save(tensors, {"format": "pt"})
    write_bytes(out_dir / "model.safetensors", weights)
    model.config.save_pretrained(out_dir)
    record = {
        **record,
        "pictures_per_step": _BATCH,
        "questions_per_picture": len(KINDS),
        "parameters": sum(p.numel() for p in model.parameters()),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "environment": {key: os.environ[key] for key in HEAP_SETTINGS if key in os.environ},
        "versions": _versions(),
        "sha256": sha256_bytes(weights),
    }
    write_json(out_dir / "training.json", record)
    return record
