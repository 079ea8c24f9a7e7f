"""Checkpoints of a training: safetensors and JSON, complete or not there, nothing unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import DataError
from cmibq.fileio import atomic_dir, read_json, write_json
from cmibq.io.tensors import read_tensors, write_tensors
from cmibq.train.peers import rank, unwrapped, world

__all__ = ["Checkpoints"]

_TENSORS, _FACTS, _FORMAT = "state.safetensors", "state.json", 1


def _named(modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what training changes, by name: trained parameters, and all buffers.

    Frozen parameters are left out: they are those of the model the training starts from.
    """
    trained = {id(p): p for group in optimiser.param_groups for p in group["params"]}
    found: dict[str, Tensor] = {}
    for prefix, module in modules.items():
        inner = unwrapped(module)
        for name, p in inner.named_parameters():
            if trained.pop(id(p), None) is not None:
                found[f"{prefix}.{name}"] = p
        found |= {f"{prefix}.{name}": b for name, b in inner.named_buffers()}
    for number, p in enumerate(trained.values()):
        found[f"parameter.{number}"] = p
    return found


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the plain values of an optimiser's state."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entry in state["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    return tensors, {"groups": state["param_groups"], "state": plain}


def _like(value: Any, old: Any) -> Any:
    """Return a value that went through JSON in the type it had."""
    return tuple(value) if isinstance(old, tuple) else value


def _joined(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, Any]:
    """Return an optimiser's state as it takes it; `now` is its present one."""
    state: dict[int, dict[str, Any]] = {int(i): dict(e) for i, e in plain["state"].items()}
    for name, value in tensors.items():
        _, index, key = name.split(".", 2)
        state.setdefault(int(index), {})[key] = value
    groups = [
        {key: _like(value, old.get(key)) for key, value in new.items()}
        for new, old in zip(plain["groups"], now["param_groups"], strict=True)
    ]
    return {"state": state, "param_groups": groups}


class Checkpoints:
    """Where a training is saved and found again.

    Resuming needs the same model, data in the same order, and seeds; what is random in torch goes
    on from the generator's saved state.

    Args:
        folder: holds one checkpoint, the last one; written by the first process only.
        every: optimiser steps between checkpoints; 0 = at the end of a stage only.
        facts: kept beside the step and compared when resuming, such as a hash of the settings.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(2, 2)
        >>> optimiser = torch.optim.AdamW(layer.parameters())
        >>> kept = Checkpoints(Path(tempfile.mkdtemp(), "checkpoint"))
        >>> kept.save(1, 5, {"layer": layer}, optimiser)
        >>> kept.place()
        (1, 5)
    """

    def __init__(
        self, folder: str | Path, *, every: int = 100, facts: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.every = every
        self.facts = dict(facts or {})

    def place(self) -> tuple[int, int] | None:
        """Return the stage and the number of steps done of the checkpoint; None without one.

        Raises:
            DataError: it is of other settings, of a newer format, or unreadable.
        """
        file = self.folder / _FACTS
        if not file.exists():
            return None
        told = read_json(file)
        if told.get("format") != _FORMAT:
            raise DataError(
                f"{file} has format {told.get('format')!r}; this version reads {_FORMAT}"
            )
        if told["facts"] != self.facts:
            odd = sorted(
                k
                for k in {*told["facts"], *self.facts}
                if told["facts"].get(k) != self.facts.get(k)
            )
            raise DataError(
                f"{self.folder} is a checkpoint of other settings ({', '.join(odd)}); give the same"
                " ones, or another folder"
            )
        return int(told["stage"]), int(told["step"])

    def due(self, step: int) -> bool:
        """Whether to save when `step` steps are done."""
        return self.every > 0 and step % self.every == 0

    def save(
        self,
        stage: int,
        step: int,
        modules: Mapping[str, nn.Module],
        optimiser: torch.optim.Optimizer,
        scheduler: Any = None,
    ) -> None:
        """Save, in place of the last checkpoint; a reader sees the old one or this one.

        Args:
            stage: 1 or 2.
            step: optimiser steps of the stage that are done.
            modules: whose trained parameters and buffers are saved, by name.
            optimiser: whose state is saved.
            scheduler: of the learning rate, if any; its state must be plain values.
        """
        tensors = _random_states()
        if rank():
            return
        states, plain = _split(optimiser.state_dict())
        tensors |= states | {f"model.{n}": t for n, t in _named(modules, optimiser).items()}
        told = {
            **{"format": _FORMAT, "stage": stage, "step": step, "facts": self.facts},
            **{"processes": world(), "optimiser": plain},
            "scheduler": None if scheduler is None else _json(scheduler.state_dict()),
        }
        with atomic_dir(self.folder, overwrite=True) as folder:
            with open(folder / _TENSORS, "wb") as file:
                write_tensors(file, tensors)
            write_json(folder / _FACTS, told, indent=None)

    def load(
        self,
        modules: Mapping[str, nn.Module],
        optimiser: torch.optim.Optimizer,
        scheduler: Any = None,
    ) -> None:
        """Bring everything that `save` was given back into the state it had.

        Raises:
            DataError: the checkpoint is of other modules or of another optimiser.
            PackageError: it is damaged.
        """
        told = read_json(self.folder / _FACTS)
        tensors, _ = read_tensors(self.folder / _TENSORS)
        own = _named(modules, optimiser)
        saved = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        left = _resize(modules, own, saved)
        _check_same(self.folder, left, saved)
        with torch.no_grad():
            for name, tensor in left.items():
                tensor.copy_(saved[name])
        states = {n: t for n, t in tensors.items() if n.startswith("optimiser.")}
        optimiser.load_state_dict(_joined(states, told["optimiser"], optimiser.state_dict()))
        if scheduler is not None and told["scheduler"] is not None:
            scheduler.load_state_dict(told["scheduler"])
        _resume_random(tensors)


def _random_states() -> dict[str, Tensor]:
    """Return the states of torch's generators of all processes; all must call it."""
    state = torch.get_rng_state()
    states = [state]
    if world() > 1:
        device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
        states = [torch.empty_like(state, device=device) for _ in range(world())]
        torch.distributed.all_gather(states, state.to(device))
    found = {f"rng.cpu.{number}": state for number, state in enumerate(states)}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["rng.cuda"] = torch.cuda.get_rng_state()
    return found


def _resume_random(tensors: Mapping[str, Tensor]) -> None:
    state = tensors.get(f"rng.cpu.{rank()}")
    if state is not None:  # more processes than before: the new ones keep their own
        torch.set_rng_state(state)
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def _resize(
    modules: Mapping[str, nn.Module], own: Mapping[str, Tensor], saved: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Set buffers that have grown, such as the maps of a frozen layer; return what is left."""
    done = set[str]()
    for full, tensor in saved.items():
        if full in own and own[full].shape == tensor.shape:
            continue
        prefix, _, path = full.partition(".")
        parent, _, name = path.rpartition(".")
        if prefix not in modules:
            continue
        holder = dict(unwrapped(modules[prefix]).named_modules()).get(parent)
        if holder is not None and name in holder._buffers:
            old = holder._buffers[name]
            holder._buffers[name] = tensor if old is None else tensor.to(old)
            done.add(full)
    for full in done:
        del saved[full]
    return {name: tensor for name, tensor in own.items() if name not in done}


def _check_same(folder: Path, own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    odd = sorted({*own} ^ {*saved}) + [
        n for n in sorted({*own} & {*saved}) if own[n].shape != saved[n].shape
    ]
    if odd:
        raise DataError(
            f"{folder} is a checkpoint of something else: {', '.join(odd[:3])}"
            f"{' and others' if len(odd) > 3 else ''}; give the same model, or another folder"
        )


def _json(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plain values of a scheduler's state; functions are made again by its maker."""
    return {key: value for key, value in state.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
