"""One cell: train a row, ask it, keep what was said. None is made twice."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from benchmarks.calm.eyes import Beside, Composed, Eyes, Late, Single
from benchmarks.calm.heads import Heads, answers
from benchmarks.calm.tasks import ROWS, Cell
from cmibq.demo.album import Album, make_album
from cmibq.demo.tile_models import Parts, trained_anchor, trained_parts
from cmibq.demo.training import descend
from cmibq.fileio import read_json, sha256_bytes, write_json
from cmibq.recipe.calm import CALMConfig

__all__ = [
    "album_of",
    "answered",
    "build",
    "finished",
    "fit_",
    "made",
    "parts",
    "prepare",
    "trained",
    "work_folder",
]

FOLDER = "CMIBQ_CALM"
_FORMAT = 2


def work_folder() -> Path:
    """Return where towers and cells lie: $CMIBQ_CALM, or .work/calm of the checkout."""
    default = Path(__file__).resolve().parents[2] / ".work" / "calm"
    return Path(os.environ.get(FOLDER, "") or default)


@functools.cache
def parts() -> Parts:
    """Return both towers, the reader and projectors, as they ship."""
    return trained_parts()


def _other(pair: str) -> Any:
    """Return the second tower of a row; "twin" trains another anchor where it is not there."""
    if pair == "copy":
        return parts().anchor
    if pair == "twin":
        return trained_anchor(work_folder() / "twin.safetensors", seed=1)
    return None


def build(cell: Cell) -> Eyes:
    """Return the untrained eyes of a cell."""
    row = ROWS[cell.row]
    options: dict[str, Any] = dict(row.options)
    fields = {"composition_layers": 2, "attention_heads": 8} | dict(row.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        if row.how == "single":
            return Single(parts(), album_of(cell, "train"), **options)
        if row.how == "beside":
            return Beside(parts(), album_of(cell, "train"), **options)
        if row.how == "late":
            return Late(parts(), album_of(cell, "train"), CALMConfig(**fields))
        config, other = CALMConfig(**fields), _other(row.pair)
        return Composed(parts(), album_of(cell, "train"), config, other, **options)


@functools.cache
def _seen(split: str, count: int) -> Album:
    """Return an album with what both towers see in it; from a file where that is there."""
    stamp = sha256_bytes(f"{parts().stamp} {split} {count} {_FORMAT}".encode())[:16]
    path = work_folder() / "albums" / f"{split}-{count}-{stamp}.pt"
    towers = parts().anchor, parts().augmenting
    if path.is_file():
        album, kept = torch.load(path, weights_only=False)
        album.states_of.update(zip(towers, kept, strict=True))
        return cast(Album, album)
    album = make_album(split, count)
    pixels = album.anchor, album.augmenting
    kept = [album.states(tower, some) for tower, some in zip(towers, pixels, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    bare = dataclasses.replace(album, states_of={})
    part = path.with_suffix(f".{os.getpid()}.part")
    torch.save((bare, kept), part)
    os.replace(part, path)
    return album


def album_of(cell: Cell, split: str) -> Album:
    """Return the pictures of a split that a cell trains on or asks about."""
    return _seen(split, cell.plan.pictures if split == "train" else cell.plan.asked)


def prepare(cell: Cell) -> None:
    """Have both albums of a cell in memory, for processes that are started from this one."""
    album_of(cell, "train")
    album_of(cell, cell.split)


def fit_(eyes: Eyes, album: Album, cell: Cell) -> list[float]:
    """Train eyes in place on the facts of training pictures; return the losses."""
    rng = np.random.default_rng((cell.seed, 89))
    learners = [p for p in eyes.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(
        learners, lr=cell.rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )

    def tell(_: int) -> tuple[torch.Tensor, float]:
        rows = torch.from_numpy(rng.integers(len(album), size=cell.plan.batch))
        loss = eyes.heads.loss(eyes(album, rows), album, rows)
        return loss, float(loss.detach())

    eyes.train()
    curve = descend(optimiser, cell.plan.steps, cell.stem, tell)
    eyes.eval()
    return curve


@torch.no_grad()
def answered(eyes: Any, heads: Heads, album: Album) -> tuple[list[int], list[float]]:
    """Return for every question whether it is answered, and the log-loss of its answer."""
    rows = torch.arange(len(album)).split(200)
    parts_ = [heads(eyes(album, some)) for some in rows]
    logits = {k: torch.cat([p[k] for p in parts_]) for k in parts_[0]}
    return answers(album, logits)


def trained(cell: Cell) -> tuple[Eyes, dict[str, Any]]:
    """Return the trained eyes of a cell, from the cache or trained now, and their record."""
    eyes, path = build(cell), work_folder() / "eyes" / f"{cell.stem}.pt"
    if path.is_file():
        kept = torch.load(path, weights_only=True)
        if kept["stamp"] == _stamp(cell):
            eyes.load_state_dict(kept["state"])
            return eyes.eval(), dict(kept["record"])
    start = time.process_time()
    curve = fit_(eyes, album_of(cell, "train"), cell)
    record = {
        "seconds": round(time.process_time() - start, 1),
        "loss": float(np.mean(curve[-50:])),
        "parameters": eyes.trained(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"stamp": _stamp(cell), "state": eyes.state_dict(), "record": record}, path)
    return eyes, record


def _stamp(cell: Cell) -> str:
    """Return what a finished cell is known by; an older one is made again."""
    facts = {"format": _FORMAT, "parts": parts().stamp, **cell.facts()}
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def _path(cell: Cell) -> Path:
    return work_folder() / "cells" / f"{cell.name}.json"


def finished(cell: Cell) -> dict[str, Any] | None:
    """Return a cell made earlier, or None."""
    path = _path(cell)
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    return found if found.get("stamp") == _stamp(cell) else None


def made(cell: Cell) -> dict[str, Any]:
    """Return a cell, made now if it is not there.

    Returns:
        ``right`` and ``losses`` per question and the record of the training.
    """
    if (found := finished(cell)) is not None:
        return found
    eyes, record = trained(cell)
    album = album_of(cell, cell.split)
    right, losses = answered(eyes, eyes.heads, album)
    told = {
        "right": right,
        "losses": [round(x, 6) for x in losses],
        "record": record,
        "stamp": _stamp(cell),
        "cell": cell.facts(),
    }
    _path(cell).parent.mkdir(parents=True, exist_ok=True)
    write_json(_path(cell), told, indent=None)
    return told
