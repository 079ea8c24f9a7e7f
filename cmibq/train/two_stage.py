"""The two stages of CM-IBQ: shape the bottleneck, then train with the task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.alloc.reinforce import Baseline
from cmibq.errors import DataError, ModelError
from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.ops.channel_bits import channel_bits
from cmibq.train.alignment import AlignmentHead
from cmibq.train.loop import Found, Loop, Parts, StepRecord, run_steps
from cmibq.train.losses import Terms, composite
from cmibq.train.peers import unwrapped
from cmibq.train.policy import baseline_of, policy_loss
from cmibq.train.schedule import BitSchedule

__all__ = ["stage_one_pretrain", "stage_two_finetune"]

_OF_BATCH = ("text_features", "text_ids", "image_mask")
_NAMES = ("quantised", "reconstructed", "mu", "logvar", "bit_allocation", "rate")


def _inner(layer: nn.Module) -> IBQuantizedLayer:
    found = unwrapped(layer)
    if not isinstance(found, IBQuantizedLayer):
        raise ModelError(f"layer is a {type(found).__name__}; give an IBQuantizedLayer")
    return found


def _check_frozen(
    layer: nn.Module,
    optimiser: torch.optim.Optimizer,
    host: nn.Module | None,
    alignment: nn.Module | None,
) -> None:
    """Refuse an optimiser or a host that would train more than the layer.

    Raises:
        ModelError: naming how many parameters are too many.
    """
    own = {id(p) for part in (layer, alignment) if part is not None for p in part.parameters()}
    strays = [p for g in optimiser.param_groups for p in g["params"] if id(p) not in own]
    if strays:
        raise ModelError(
            f"optimiser holds {len(strays)} parameters that are not the layer's; stage one trains"
            " the layer alone, give it layer.parameters()"
        )
    loose = [
        name
        for name, p in (host.named_parameters() if host is not None else ())
        if p.requires_grad and id(p) not in own
    ]
    if loose:
        raise ModelError(
            f"host has {len(loose)} parameters that are not frozen ({', '.join(loose[:3])}"
            f"{', ...' if len(loose) > 3 else ''}); set requires_grad to False before stage one"
        )


def _rate(layer: IBQuantizedLayer, mu: Tensor, bits: Tensor) -> Tensor:
    """Return the bits of codes under the prior, [B], where a host did not hand them over."""
    if layer.prior is None:
        raise DataError("cm_ibq has no rate and the layer no prior; return logvar")
    low, high = layer.quantizer.ends()
    rows = bits[None] if bits.ndim == 1 else bits
    told = channel_bits(mu.flatten(0, -2), low, high, rows, layer.prior.tables())[1]
    return told.view(len(mu), -1).sum(1)


def _joined(each: list[Terms], parts: list[dict[str, Any]], loss: Tensor) -> Terms:
    """Return the terms of parts of a batch, weighted by their elements; 0 where there is none."""
    if len(each) == 1:
        return each[0]
    sizes = [part["mu"].numel() for part in parts]
    zero = loss.new_zeros(())
    weighted = [[v * (n / sum(sizes)) for v in t] for t, n in zip(each, sizes, strict=True)]
    columns = zip(*weighted, strict=True) if each else [()] * len(Terms._fields)
    return Terms(*(sum(column, zero) for column in columns))


def _seen(layer: IBQuantizedLayer, output: Any) -> list[dict[str, Any]]:
    """Return the diagnostics of a host's output, with the rate; several if it has several parts."""
    found = output.get("cm_ibq") if isinstance(output, Mapping) else None
    parts = [found] if isinstance(found, Mapping) else found
    if not isinstance(parts, list | tuple) or output.get("loss") is None:
        raise ModelError(
            "the model's output must be a dictionary with a scalar loss and a nested cm_ibq"
            " dictionary; see docs/systems/cm-ibq.md"
        )
    made = [dict(part) for part in parts]
    for told in made:
        if told.get("rate") is None and layer.config.rate == "discrete" and "mu" in told:
            told["rate"] = _rate(layer, told["mu"], told["bit_allocation"])
    return made


def stage_one_pretrain(
    layer: nn.Module,
    dataloader: Iterable[Mapping[str, Any]],
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    gamma: float = 1.0,
    *,
    host: nn.Module | None = None,
    alignment: AlignmentHead | None = None,
    loop: Loop | None = None,
) -> list[StepRecord]:
    """Train the layer alone, in one pass over the data, at its current target bits.

    Args:
        layer: an `IBQuantizedLayer`, as it is or compiled.
        dataloader: dictionaries with ``features`` [B, D] or [B, T, D] and ``task_embedding``
            [B, E]; optional: ``text_features`` [B, E'], ``text_ids`` [B, N] (negative = padding),
            ``image_mask`` bool [B] (False: the row has no image and counts nowhere).
        optimiser: of the parameters of the layer (and of `alignment`), and of nothing else.
        device: to run on.
        gamma: weight of the bit-rate term, which is 0 with a hard budget.
        host: the model around the layer, checked to be frozen.
        alignment: learned temperature and projection; train its parameters with the layer's.
        loop: accumulation, precision, checkpoints and the like.

    Returns:
        The loss terms of every step, and its ``target_bits``.

    Raises:
        ModelError: the optimiser or the host would train more than the layer.
        DataError: a batch lacks a key, shapes do not fit, or a loss is not finite.

    Example:
        >>> from cmibq.recipe.cm_ibq import CMIBQConfig
        >>> layer = IBQuantizedLayer(CMIBQConfig(feature_dim=4, hidden_dim=8, stage1_bits=4))
        >>> batches = [{"features": torch.randn(8, 4)} for _ in range(3)]
        >>> optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-4)
        >>> logs = stage_one_pretrain(layer, batches, optimiser, torch.device("cpu"))
        >>> len(logs), list(logs[0])[:2]
        (3, ['reconstruction', 'rate'])
    """
    loop, inner = loop or Loop(), _inner(layer)
    _check_frozen(inner, optimiser, host, alignment)
    inner.to(device).train()
    modules: dict[str, nn.Module] = {"layer": inner}
    baseline = _helpers(inner, alignment, modules, device)
    target = inner.target_bits
    compiled: Any = getattr(layer, "dynamo_ctx", None)  # of a module that torch.compile made
    run = inner.run if compiled is None else compiled(inner.run)

    def losses(batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor], Found]:
        if not isinstance(batch, Mapping) or "features" not in batch:
            has = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
            raise DataError(f"a batch of stage one has {has}; it needs a dictionary with features")
        told = run(batch["features"], batch.get("task_embedding"), target_bits=target)
        found = dict(zip(_NAMES, told, strict=True)) | {"features": batch["features"]}
        found |= {name: batch.get(name) for name in _OF_BATCH}
        terms = composite(inner.config, found, target, gamma, alignment=alignment)
        return *_whole(inner, baseline, terms.total, terms._asdict()), found

    def begin(step: int) -> dict[str, float]:
        return {"target_bits": target}

    parts = Parts(1, modules, optimiser)
    return run_steps(loop, parts, dataloader, device, begin, losses)


def stage_two_finetune(
    layer: nn.Module,
    model: nn.Module,
    dataloader: Iterable[Any],
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    anneal: bool = True,
    *,
    gamma: float | None = None,
    alignment: AlignmentHead | None = None,
    loop: Loop | None = None,
) -> list[StepRecord]:
    """Train the layer with the task, in one pass over the data.

    Args:
        layer: the layer inside `model`.
        model: called as ``model(batch, target_bits=...)``; returns a dictionary with ``loss`` and
            ``cm_ibq`` (see `cmibq.train.losses.composite`; a list of such dictionaries where images
            have unlike numbers of tokens). May be wrapped by DDP or FSDP.
        dataloader: batches of the model.
        optimiser: of what is trained.
        device: to run on.
        anneal: lower the target from ``stage1_bits`` to ``stage2_bits`` by the schedule, and train
            the last ``hold_end`` of the steps on frozen integer maps.
        gamma: weight of the bit-rate term; None = the configuration's.
        alignment: learned temperature and projection; train its parameters too.
        loop: accumulation, precision, checkpoints and the like.

    Returns:
        The loss terms of every step, that of the task as ``task``, and ``target_bits``.

    Raises:
        ModelError: the model does not return what it should.
        DataError: shapes do not fit, or a loss is not finite.
    """
    loop, inner = loop or Loop(), _inner(layer)
    model.to(device).train()
    modules: dict[str, nn.Module] = {"model": model, "layer": inner}
    baseline = _helpers(inner, alignment, modules, device)
    batches = dataloader if isinstance(dataloader, Sized) else list(dataloader)
    steps = loop.steps_of(len(batches))
    schedule = BitSchedule.of(inner.config, steps)

    def begin(step: int) -> dict[str, float]:
        if anneal:
            _aim(inner, schedule, step)
        return {"target_bits": inner.target_bits}

    def losses(batch: Any) -> tuple[Tensor, Mapping[str, Tensor], Found]:
        output = model(batch, target_bits=inner.target_bits)
        found, bits = _seen(inner, output), inner.target_bits
        each = [composite(inner.config, p, bits, gamma, alignment=alignment) for p in found]
        terms = _joined(each, found, output["loss"])
        total = output["loss"] + terms.total
        told = terms._asdict() | {"task": output["loss"], "total": total}
        return *_whole(inner, baseline, total, told), found[0] if found else {}

    parts = Parts(2, modules, optimiser, model)
    logs = run_steps(loop, parts, batches, device, begin, losses)
    if anneal and loop.start + -(-len(batches) // loop.accumulate) >= steps:
        inner.target_bits = inner.config.stage2_bits
    return logs


def _helpers(
    layer: IBQuantizedLayer,
    alignment: AlignmentHead | None,
    modules: dict[str, nn.Module],
    device: torch.device,
) -> Baseline | None:
    """Add what lives beside the layer to what is saved; return the baseline of its allocator."""
    if alignment is not None:
        modules["alignment"] = alignment.to(device).train()
    baseline = baseline_of(layer)
    if baseline is not None:
        modules["baseline"] = baseline
    return baseline


def _whole(
    layer: IBQuantizedLayer, baseline: Baseline | None, total: Tensor, terms: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the loss of an allocator that learns by trial, if there is one."""
    policy = policy_loss(layer, baseline, total)
    if policy is None:
        return total, terms
    return total + policy, terms | {"policy": policy}


def _aim(layer: IBQuantizedLayer, schedule: BitSchedule, step: int) -> None:
    """Set the target of a step; where the last part begins, fix the bits to integer maps, once."""
    layer.target_bits = schedule.bits(step)
    if step >= schedule.freeze_step:
        layer.freeze_()
