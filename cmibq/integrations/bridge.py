"""The module that a host's projector gets: a CM-IBQ layer, always in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.integrations.bridge_config import BridgeConfig
from cmibq.integrations.patches import Patches
from cmibq.integrations.request import CURRENT, Collected, Request, Units
from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.train.alignment import AlignmentHead
from cmibq.train.peers import world

__all__ = ["NAME", "Bridge", "BridgeConfig", "active", "bridge_of"]

NAME = "cm_ibq"
"""Of the module inside the projector, and of the field in a host's config.json."""

_FIELDS = ("quantised", "reconstructed", "mu", "logvar", "bit_allocation", "rate")


_INIT = {name: value for name, value in vars(nn.init).items() if name.endswith("_")}
_REGISTER = nn.Module.register_parameter


@contextmanager
def _really() -> Iterator[None]:
    """Make modules in float32 on the CPU, whatever a loader has set for the model around them.

    Loaders make parameters without memory, or leave out their first values.
    """
    before, patches = torch.get_default_dtype(), Patches()
    torch.set_default_dtype(torch.float32)
    patches.set(nn.Module, "register_parameter", _REGISTER)
    for name, value in _INIT.items():
        patches.set(nn.init, name, value)
    try:
        with torch.device("cpu"):
            yield
    finally:
        patches.undo()
        torch.set_default_dtype(before)


class Bridge(nn.Module):
    """A CM-IBQ layer behind a projector: takes its output, gives back the reconstruction.

    The layer runs in float32 and stays so under ``.half()`` and autocast; the result has the type
    of what came in. While training it leaves loss terms in the request in force
    (`cmibq.integrations.request`); the host's forward hook adds them to the loss.

    Args:
        options: see `BridgeConfig`.

    Attributes:
        layer: the `IBQuantizedLayer`.
        task_vectors: table of learned task vectors, or None.
        alignment: temperature and projection of the alignment term, or None.
        enabled: False passes features on as they are.
        add_loss: False leaves the host's loss alone; take `last_terms`.
        find_terms: False finds no terms: the caller does, from the diagnostics.
        share: weight of the terms where the loss is a sum over accumulated batches.
        last_terms: loss terms of the last training forward, detached.

    Example:
        >>> from cmibq.recipe.cm_ibq import CMIBQConfig
        >>> bridge = Bridge(BridgeConfig(CMIBQConfig(feature_dim=4)))
        >>> bridge(torch.zeros(2, 3, 4, dtype=torch.bfloat16)).dtype
        torch.bfloat16
    """

    def __init__(self, options: BridgeConfig) -> None:
        super().__init__()
        self.options = options
        c = options.layer
        learned = options.task == "learned" and c.task_dim > 0
        with _really():
            self.layer = IBQuantizedLayer(c)
            self.task_vectors = nn.Embedding(options.tasks, c.task_dim) if learned else None
            head = AlignmentHead(c.latent_dim, options.text_width, c.temperature)
            self.alignment = head if c.alignment_weight else None
        self.enabled = self.add_loss = self.find_terms = True
        self.share = 1.0
        self.last_terms: dict[str, Tensor] = {}
        self._constants = {
            name: buffer.clone()
            for name, buffer in self.named_buffers()
            if name not in self.state_dict()
        }
        self._ready = False
        for part in self.modules():
            mark: Any = part
            mark._is_hf_initialized = True  # a host's post_init would draw its linear layers anew

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bridge:
        """Move, but keep the type."""

        def moved(t: Tensor) -> Tensor:
            out = fn(t)
            same = out.dtype == t.dtype or not t.is_floating_point()
            return out if same else t.to(out.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def _prepare(self) -> None:
        """Bring back what loaders lose: constants that no checkpoint holds, float32."""
        for name, value in self._constants.items():
            self.get_buffer(name).copy_(value)
        if any(p.dtype != torch.float32 for p in self.parameters()):
            self.layer.float()
        self._ready = True

    def check_trained(self) -> None:
        """Refuse to run, outside training, a layer that has seen no features.

        Raises:
            ModelError: with what to do.
        """
        if not self.training and not bool(self.layer.quantizer.seen > 0):
            raise ModelError(
                "the CM-IBQ layer has never seen features: the checkpoint holds no cm_ibq weights,"
                " or it is not trained yet; load one that does, or train"
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return what `code` does; before a projector, which runs it behind, what came in."""
        return features if self.options.position == "pre" else self.code(features)

    def code(self, features: Tensor) -> Tensor:
        """Return the reconstruction of features [U, T, D] or [S, D]: their shape, their type.

        Raises:
            ModelError: not trained, or the features are not those that the request names.
            Collected: the request collects features.
        """
        request = CURRENT.get() or Request()
        if not self.enabled and not request.collect:
            return features
        if not self._ready:
            self._prepare()
        if not request.collect:
            self.check_trained()
        with torch.autocast(features.device.type, enabled=False):
            return self._run(features.float(), request).to(features.dtype)

    def _run(self, features: Tensor, request: Request) -> Tensor:
        if features.ndim == 2 and not request.kinds:
            return self._part(features[None], None, request)[0]
        units = request.units(features)
        request.flat = request.flat or units.lengths is not None
        made: list[Tensor] = list(_units(features, units))
        seen = request.seen
        rows = units.rows.tolist()
        groups = _same(made, [True] * len(made) if seen is None else seen[units.rows].tolist())
        missing = self.agree(len(groups), request)
        for chosen in groups:
            told = torch.tensor([rows[i] for i in chosen], device=features.device)
            part = torch.stack([made[i] for i in chosen])
            for i, value in zip(chosen, self._part(part, told, request), strict=True):
                made[i] = value
        self.idle(missing)
        if request.collect:
            raise Collected
        out = torch.cat(made).view_as(features)
        return out if request.found or not self.training else out + self.nothing()

    def agree(self, mine: int, request: Request) -> int:
        """Return how many runs of the layer other processes have in this forward, beyond mine.

        The layer meets the others in every run, so that all of them need equally many.
        """
        request.agreed = True
        if not self.training or request.collect or world() == 1:
            return 0
        most = torch.tensor([mine], device=self.layer.encoder.weight.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        return int(most) - mine

    def idle(self, times: int) -> None:
        """Run the layer on no image, as often as others still do on theirs."""
        c, none = self.options.layer, self.layer.encoder.weight.new_zeros
        for _ in range(times):
            self.layer.run(none(0, 1, c.feature_dim), none(0, c.task_dim) if c.task_dim else None)

    def nothing(self) -> Tensor:
        """Return 0 that depends on every parameter: ranks without images wait for nobody."""
        return torch.stack([p.sum() for p in self.parameters()]).sum() * 0.0

    def _embedding(self, rows: Tensor | None, request: Request) -> Tensor | None:
        """Return the task embedding of units, [U, E].

        Raises:
            ModelError: the layer needs one and there is none.
        """
        if self.options.layer.mode != "task":
            return None
        if request.embedding is None or rows is None:
            raise ModelError(
                "mode is 'task' but the call brings no task embedding; call the model with"
                " input_ids, or with cm_ibq_task"
            )
        told: Tensor = request.embedding.to(rows.device)
        told = told if self.task_vectors is None else self.task_vectors(told.long())
        return told[rows].float()

    def _part(self, x: Tensor, rows: Tensor | None, request: Request) -> Tensor:
        """Run units of the same length [U, T, D]; note their terms."""
        embedding = self._embedding(rows, request)
        told = {"features": x, "task_embedding": embedding}
        if rows is not None and request.text is not None and request.text_ids is not None:
            told["text_features"] = request.text.to(x.device)[rows]
            told["text_ids"] = request.text_ids.to(x.device)[rows]
        if request.collect:
            request.collected.append({k: v.detach() for k, v in told.items() if v is not None})
            return x
        result = self.layer.run(x, embedding)
        if self.training:
            told |= zip(_FIELDS, result, strict=True)
            request.found.append({k: v for k, v in told.items() if v is not None})
        return result.reconstruction


def _units(features: Tensor, units: Units) -> tuple[Tensor, ...]:
    """Return the features of every unit, [T_u, D]."""
    flat = features.reshape(-1, features.shape[-1])
    return flat.split(list(units.lengths)) if units.lengths else features.unbind(0)


def _same(made: Sequence[Tensor], kept: Sequence[bool]) -> list[list[int]]:
    """Return the indices of units that are kept, those of the same length together."""
    groups: dict[int, list[int]] = {}
    for i in (i for i, one in enumerate(kept) if one):
        groups.setdefault(len(made[i]), []).append(i)
    return list(groups.values())


def active(module: Any) -> Bridge | None:
    """Return a bridge, or the copy of it that PEFT trains (``modules_to_save``); else None."""
    copies = getattr(module, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict) and isinstance(module.original_module, Bridge):
        chosen = module.active_adapter
        name = chosen if isinstance(chosen, str) else chosen[0] if chosen else ""
        used = name in copies and not getattr(module, "disable_adapters", False)
        module = copies[name] if used else module.original_module
    return module if isinstance(module, Bridge) else None


def bridge_of(model: nn.Module) -> Bridge | None:
    """Return the bridge of a model, or None."""
    found = (active(m) for m in model.modules())
    return next((bridge for bridge in found if bridge is not None), None)
