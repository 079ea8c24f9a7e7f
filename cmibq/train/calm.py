"""Training the fusions between two frozen towers: one stage, and what is watched meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.models.composed import CALMVisionTower, Composition, watched
from cmibq.ops.peers import all_sum_
from cmibq.train.journal import Journal
from cmibq.train.loop import Found, Loop, Parts, StepRecord, run_steps
from cmibq.train.peers import world

__all__ = ["CALMMonitor", "check_frozen", "grad_norm", "grad_norms", "mean_entropy", "train_calm"]


def check_frozen(tower: CALMVisionTower) -> None:
    """Refuse a composed tower whose towers would be trained.

    Raises:
        ModelError: naming the first parameters that are not frozen.
    """
    for part in ("anchor_tower", "augmenting_tower"):
        named = tower.get_submodule(part).named_parameters()
        loose = [f"{part}.{name}" for name, p in named if p.requires_grad]
        if loose:
            raise ModelError(
                f"{len(loose)} parameters of the {part} are not frozen ({', '.join(loose[:3])});"
                " set requires_grad to False: CALM trains calm_modules alone"
            )


def grad_norms(modules: Iterable[nn.Module]) -> list[float]:
    """Return the norm of the gradients of each module; 0 where there is none."""
    made = []
    for module in modules:
        grads = [p.grad.detach().float() for p in module.parameters() if p.grad is not None]
        made.append(float(torch.stack([g.norm() for g in grads]).norm()) if grads else 0.0)
    return made


def grad_norm(tower: CALMVisionTower) -> float:
    """Return the norm of all gradients of the fusions together."""
    return float(torch.tensor(grad_norms(tower.calm_modules), dtype=torch.float64).norm())


def mean_entropy(seen: Sequence[Composition]) -> Tensor | None:
    """Return the mean entropy of attention by layer and head, in nats.

    Args:
        seen: passes of one tower, watched (`cmibq.models.composed.watched`).

    Returns:
        [layers, heads] over images and rows of attention; None where there was no attention.
    """
    each = [
        torch.stack([made.entropy[at].float().mean((0, 2)) for at in sorted(made.entropy)])
        for made in seen
        if made.entropy
    ]
    return torch.stack(each).mean(0) if each else None


class CALMMonitor:
    """Writes entropy by layer and head and gradient norms by layer: for `Loop` as ``watch``.

    Args:
        path: ``.jsonl`` file.
        tower: whose gradients are told.
        stage: 1 or 2.
        every: steps between records.
    """

    def __init__(
        self, path: str | Path, tower: CALMVisionTower, stage: int, *, every: int = 1
    ) -> None:
        self.journal, self.tower = Journal(path), tower
        self.stage, self.every = stage, every
        self._norms: list[float] = []
        self._begun = False

    def gradients(self) -> StepRecord:
        """Return the norm of all gradients, for `Loop` as ``gradients``; keep those by layer."""
        self._norms = grad_norms(self.tower.calm_modules)
        return {"calm_module_grad_norm": sum(n * n for n in self._norms) ** 0.5}

    def __call__(self, step: int, found: Found) -> None:
        """Record a step, if it is one of those to record; all processes call it."""
        if not self._begun:
            self.journal.rewind(self.stage, step)
            self._begun = True
        if step % self.every:
            return
        told: dict[str, Any] = {"stage": self.stage, "step": step, "grad_norm": self._norms}
        entropy = found.get("entropy")
        if entropy is not None:
            mean = all_sum_(entropy.clone()) / world()
            told["entropy"] = [[round(v, 5) for v in row] for row in mean.tolist()]
        self.journal.write([told])


def train_calm(
    model: nn.Module,
    tower: CALMVisionTower,
    dataloader: Iterable[Any],
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    *,
    stage: int = 1,
    loop: Loop | None = None,
) -> list[StepRecord]:
    """Train a model with a composed tower, in one pass over the data.

    Args:
        model: called as ``model(batch)``; returns a dictionary with ``loss``. May be wrapped by
            DDP or FSDP.
        tower: the composed tower inside it; both of its towers are frozen.
        dataloader: batches of the model.
        optimiser: of what is trained.
        device: to run on.
        stage: 1 or 2, for the records.
        loop: accumulation, precision, checkpoints and the like.

    Returns:
        For every step ``train_loss``, ``attention_entropy`` (nats, where there is attention) and
        ``learning_rate``; with a `CALMMonitor` also ``calm_module_grad_norm``.

    Raises:
        ModelError: a tower is not frozen, or the model returns no loss.
        DataError: a loss is not finite.
    """
    check_frozen(tower)
    loop = loop or Loop()
    model.to(device).train()

    def begin(step: int) -> StepRecord:
        return {"learning_rate": float(optimiser.param_groups[0]["lr"])}

    def losses(batch: Any) -> tuple[Tensor, Mapping[str, Tensor], Found]:
        with watched() as seen:
            output = model(batch)
        loss = output.get("loss") if isinstance(output, Mapping) else None
        if loss is None:
            raise ModelError("the model's output must be a dictionary with a scalar loss")
        entropy = mean_entropy(seen)
        terms = {"train_loss": loss, "total": loss}
        if entropy is not None:
            terms["attention_entropy"] = entropy.mean()
        return loss, terms, {"entropy": entropy}

    parts = Parts(stage, {"model": model}, optimiser, model)
    return run_steps(loop, parts, dataloader, device, begin, losses)
