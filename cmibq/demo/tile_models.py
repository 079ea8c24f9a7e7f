"""The parts of the composed demo: two towers and a reader, trained once, shipped rounded.

Weights of two and more dimensions travel as 8-bit integers with a scale per row, the rest as
float32; what is loaded is float32. Everything that is compared was trained on top of the rounded
parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cmibq.demo.album import Album, fit_eyes_, make_album
from cmibq.demo.reader import TEXT_WIDTH, build_reader, train_reader_
from cmibq.demo.tower_pair import (
    WIDTH,
    build_anchor,
    build_augmenting,
    train_anchor_,
    train_augmenting_,
)
from cmibq.errors import ModelError
from cmibq.fileio import sha256_bytes, write_bytes

__all__ = [
    "PARTS",
    "Alone",
    "Parts",
    "finish_parts",
    "make_projector",
    "pack",
    "settle_",
    "train_parts",
    "trained_anchor",
    "trained_parts",
    "unpack",
]

PARTS: Final = Path(__file__).parent / "weights" / "tiles.safetensors"
_SCALE: Final = ".scale"


@dataclass(frozen=True)
class Parts:
    """Frozen models.

    Attributes:
        anchor: reads digits and adds them.
        augmenting: tells hues.
        reader: the language model.
        stamp: changes with the weights.
    """

    anchor: Any
    augmenting: Any
    reader: Any
    anchor_projector: nn.Sequential
    augmenting_projector: nn.Sequential
    stamp: str


def make_projector(inputs: int = WIDTH, hidden: int = TEXT_WIDTH) -> nn.Sequential:
    """Return LLaVA's projector: two layers with a GELU between them."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, TEXT_WIDTH))


@torch.no_grad()
def settle_(projector: nn.Sequential, features: Tensor, *, silent: bool = False) -> None:
    """Let a fresh projector see every channel with mean 0 and spread 1, in place.

    Args:
        projector: what `make_projector` made.
        features: ``(N, T, D)``, what it is going to see.
        silent: its last layer also starts at zero.
    """
    first: Any = projector[0]
    flat = features.flatten(0, 1)
    first.weight.div_(flat.std(0).clamp(min=1e-6))
    first.bias.sub_(first.weight @ flat.mean(0))
    if silent:
        for parameter in projector[2].parameters():
            parameter.zero_()


def pack(models: dict[str, nn.Module]) -> dict[str, Tensor]:
    """Round models to what travels: int8 matrices with a scale per row, float32 vectors.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[1.27, -0.634]]))
        >>> {name: value.tolist() for name, value in pack({"a": model}).items() if "weight" in name}
        {'a.weight': [[127, -63]], 'a.weight.scale': [0.009999999776482582]}
    """
    made: dict[str, Tensor] = {}
    for prefix, model in models.items():
        for name, value in model.state_dict().items():
            key, flat = f"{prefix}.{name}", value.detach().float()
            if flat.ndim < 2 or not value.is_floating_point():
                made[key] = value.detach().clone()
                continue
            rows = flat.reshape(len(flat), -1)
            scale = rows.abs().amax(1).clamp(min=1e-12) / 127
            made[key] = (rows / scale[:, None]).round().to(torch.int8).view_as(flat)
            made[key + _SCALE] = scale
    return made


def unpack(tensors: dict[str, Tensor], prefix: str, model: nn.Module) -> nn.Module:
    """Load one model of what `pack` made, in place, frozen and in evaluation mode.

    Raises:
        ModelError: tensors are missing or of another shape.
    """
    state: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not key.startswith(prefix + ".") or key.endswith(_SCALE):
            continue
        scale = tensors.get(key + _SCALE)
        if scale is not None:
            value = value.float() * scale.view(-1, *[1] * (value.ndim - 1))
        state[key.removeprefix(prefix + ".")] = value
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(
            f"the weights of {prefix!r} do not fit: {error}; train them with"
            " `python benchmarks/calm/parts.py`, or reinstall cmibq"
        ) from error
    return model.eval().requires_grad_(False)


class Alone(nn.Module):
    """One tower in front of the reader: its patches, projected.

    Args:
        tower: a frozen vision tower.
        small: it takes the anchor's pixels.
        projector: what is trained.
    """

    def __init__(self, tower: Any, projector: nn.Sequential, *, small: bool) -> None:
        super().__init__()
        self.tower, self.small, self.projector = [tower], small, projector

    def forward(self, album: Album, rows: Tensor) -> Tensor:
        """Return the reader's tokens of some pictures, ``(B, patches, D)``."""
        pixels = album.anchor if self.small else album.augmenting
        states = album.states(self.tower[0], pixels)[-1]
        found: Tensor = self.projector(states[rows, 1:])
        return found


def _align(tower: Any, reader: Any, album: Album, *, small: bool, seed: int, steps: int) -> Alone:
    """Train a projector on what its tower can tell: the vision-language model before composing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        eyes = Alone(tower, make_projector(), small=small)
    pixels = album.anchor if small else album.augmenting
    settle_(eyes.projector, album.states(tower, pixels)[-1][:, 1:])
    fit_eyes_(
        *(eyes, reader, album),
        seed=seed,
        steps=steps,
        rate=6e-3,
        kinds=("digit", "sum") if small else ("colour", "where"),
        image_tokens=4 if small else 16,
        title="projector",
    )
    return eyes


def finish_parts(models: dict[str, nn.Module], path: Path, *, seed: int, quick: bool) -> None:
    """Round towers and reader, train a projector for each tower, and write all of them.

    Args:
        models: "anchor", "augmenting" and "reader", trained.
        path: file to write.
        seed: of the projectors.
        quick: two steps each, for trying the code.
    """
    from safetensors.torch import save

    tensors = pack(models)
    for name, model in models.items():
        unpack(tensors, name, model)
    album = make_album("train", 60 if quick else 6000)
    for name, steps in (("anchor", 1000), ("augmenting", 300)):
        eyes = _align(
            *(models[name], models["reader"], album),
            small=name == "anchor",
            seed=seed,
            steps=2 if quick else steps,
        )
        state = eyes.projector.state_dict()
        tensors |= {f"{name}_projector.{key}": value for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, {"format": "pt"}))


def train_parts(path: Path, *, seed: int = 0, quick: bool = False) -> dict[str, list[float]]:
    """Train both towers and the reader, each alone, then their projectors, and write them.

    Args:
        path: file to write.
        seed: of everything.
        quick: two steps each, for trying the code.

    Returns:
        The losses of the towers' and the reader's training.
    """
    short: dict[str, Any] = {"steps": 2, "pictures": 60} if quick else {}
    models: dict[str, Any] = {
        "anchor": build_anchor(seed),
        "augmenting": build_augmenting(seed),
        "reader": build_reader(seed),
    }
    curves = {
        "anchor": train_anchor_(models["anchor"], seed=seed, **short),
        "augmenting": train_augmenting_(models["augmenting"], seed=seed, **short),
        "reader": train_reader_(models["reader"], seed=seed, **short),
    }
    finish_parts(models, path, seed=seed, quick=quick)
    return curves


def trained_parts(path: Path = PARTS) -> Parts:
    """Load towers, reader and projectors.

    Raises:
        ModelError: the file is missing, or does not fit.
    """
    from safetensors.torch import load

    if not path.is_file():
        raise ModelError(
            f"{path} is missing; reinstall cmibq or make it with `python benchmarks/calm/parts.py`"
        )
    content = path.read_bytes()
    tensors = load(content)
    made: dict[str, Any] = {
        "anchor": build_anchor(0),
        "augmenting": build_augmenting(0),
        "reader": build_reader(0),
        "anchor_projector": make_projector(),
        "augmenting_projector": make_projector(),
    }
    for name, model in made.items():
        unpack(tensors, name, model)
    return Parts(**made, stamp=sha256_bytes(content))


def trained_anchor(path: Path, *, seed: int, quick: bool = False) -> Any:
    """Return an anchor of another seed, from a file or trained now.

    Args:
        path: of the file, made if it is missing.
        seed: of weights and pictures.
        quick: two steps, for trying the code.
    """
    from safetensors.torch import load, save

    if not path.is_file():
        tower = build_anchor(seed)
        train_anchor_(tower, seed=seed, **({"steps": 2, "pictures": 60} if quick else {}))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, save(pack({"anchor": tower}), {"format": "pt"}))
    return unpack(load(path.read_bytes()), "anchor", build_anchor(seed))
