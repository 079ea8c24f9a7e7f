"""One cell: train a coder, ask through it, keep what was said. None is made twice."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cm_ibq.coded import Layer, Stepped, TopTokens
from benchmarks.cm_ibq.coders import Coder, Uniform
from benchmarks.cm_ibq.factorized import Factorized
from benchmarks.cm_ibq.fit import ask, fit_
from benchmarks.cm_ibq.images import compressed
from benchmarks.cm_ibq.predict import predicted_gain
from benchmarks.cm_ibq.tasks import IMAGE_ROWS, ROWS, Cell
from benchmarks.cm_ibq.vlm import Material, frozen, material
from cmibq.fileio import read_json, sha256_bytes, write_json
from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["build", "finished", "made", "work_folder"]

FOLDER = "CMIBQ_RATES"
_FORMAT = 1


def work_folder() -> Path:
    """Return where coders and cells lie: $CMIBQ_RATES, or .work/cm_ibq of the checkout."""
    default = Path(__file__).resolve().parents[2] / ".work" / "cm_ibq"
    return Path(os.environ.get(FOLDER, "") or default)


def _config(cell: Cell, width: int) -> CMIBQConfig:
    """Return the layer's configuration: bits fall from one above the target to it."""
    fields = dict(ROWS[cell.row].config)
    task = width if fields.get("mode") == "task" else 0
    base = {
        "feature_dim": width,
        "latent_dim": cell.channels,
        "task_dim": task,
        "hidden_dim": 16,
        "min_bits": 0,
        "stage1_bits": cell.bits + 1,
        "stage2_bits": cell.bits,
        "seed": cell.seed,
    }
    if ROWS[cell.row].kind == "flat":
        same = int(cell.bits)
        fields |= {"min_bits": same, "max_bits": same, "stage1_bits": same}
    return CMIBQConfig(**(base | fields))


def build(cell: Cell, seen: Material) -> Coder:
    """Return the untrained coder of a cell."""
    row, features = ROWS[cell.row], seen.features
    if row.how == "uniform":
        fixed = row.fixed_encoder
        return Uniform(features, cell.channels, row.kind, cell.bits, fixed_encoder=fixed)
    if row.how == "stepped":
        return Stepped(features, cell.channels, cell.bits, fixed_encoder=row.fixed_encoder)
    if row.how == "factorized":
        return Factorized(features, cell.channels, cell.bits)
    if row.how == "top":
        return TopTokens(features, cell.channels, int(cell.bits))
    return Layer(features, _config(cell, features.shape[2]))


def _without(seen: Material, kind: str) -> Material:
    """Return training pictures about which one kind of question is not asked."""
    keep = [[i for i, k in enumerate(kinds) if k != kind] for kinds in seen.kinds]
    asked = [[a[i] for i in rows] for a, rows in zip(seen.asked, keep, strict=True)]
    kinds = [[k[i] for i in rows] for k, rows in zip(seen.kinds, keep, strict=True)]
    return Material(seen.features, asked, kinds, seen.scans, seen.pixels)


def _trained(cell: Cell) -> tuple[Coder, dict[str, Any]]:
    """Return the trained coder of a cell, from the cache or trained now, and its record."""
    seen = material(cell.model, "train", cell.plan.pictures)
    seen = _without(seen, cell.left_out) if cell.left_out else seen
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        coder = build(cell, seen)
        path = work_folder() / "coders" / f"{cell.stem}.pt"
        if path.is_file():
            kept = torch.load(path, weights_only=True)
            if kept["stamp"] == _stamp(cell):
                coder.load_state_dict(kept["state"])
                return coder.eval(), dict(kept["record"])
        start, task = time.perf_counter(), ROWS[cell.row].task
        logs = fit_(
            coder, cell.model, seen, cell.plan, weight=cell.weight, seed=cell.seed, task=task
        )
    last = logs[-50:]
    record: dict[str, Any] = {k: float(np.mean([log[k] for log in last])) for k in last[0]}
    record["seconds"] = round(time.perf_counter() - start, 1)
    if isinstance(coder, Layer) and not task:
        record["predicted"] = predicted_gain(coder, cell.model, seen)
        record["map"] = coder.layer.maps[0].tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"stamp": _stamp(cell), "state": coder.state_dict(), "record": record}, path)
    return coder, record


def _picture(cell: Cell) -> dict[str, Any]:
    """Ask about pictures that were compressed as pictures, or were not (``"float"``)."""
    seen, judge = material(cell.model, cell.split), frozen(cell.model)
    if cell.row == "float":
        right, losses = judge.grade(seen.features, seen.asked)
        return {"right": right, "losses": losses, "bytes": [p.size for p in seen.pixels]}
    found = [compressed(pixels, cell.row, int(cell.bits)) for pixels in seen.pixels]
    right, losses = judge.grade(judge.see([f[0] for f in found]), seen.asked)
    sizes, bare = [f[1] for f in found], float(np.mean([f[2] for f in found]))
    return {"right": right, "losses": losses, "bytes": sizes, "bare": bare}


def _stamp(cell: Cell) -> str:
    """Return what a finished cell is known by; an older one is made again."""
    facts = {"format": _FORMAT, **cell.facts()}
    return sha256_bytes(json.dumps(facts, sort_keys=True).encode())


def _path(cell: Cell) -> Path:
    return work_folder() / "cells" / f"{cell.name}.json"


def finished(cell: Cell) -> dict[str, Any] | None:
    """Return a cell made earlier, or None."""
    path = _path(cell)
    if not path.is_file():
        return None
    found: dict[str, Any] = read_json(path)
    return found if found.get("stamp") == _stamp(cell) and "bytes" in found else None


def made(cell: Cell) -> dict[str, Any]:
    """Return a cell, made now if it is not there.

    Returns:
        ``right`` and ``losses`` per question, ``bytes`` per stream; of coders also what
        `benchmarks.cm_ibq.fit.ask` tells and the record of the training.
    """
    if (found := finished(cell)) is not None:
        return found
    if cell.row == "float" or cell.row in IMAGE_ROWS:
        result = _picture(cell)
    else:
        coder, record = _trained(cell)
        asked = ask(coder, cell.model, material(cell.model, cell.split), task=ROWS[cell.row].task)
        result = asked | {"record": record}
    result["losses"] = [round(x, 6) for x in result["losses"]]
    result["bits"] = [round(x, 3) for x in result.get("bits", ())]
    _path(cell).parent.mkdir(parents=True, exist_ok=True)
    write_json(_path(cell), result | {"stamp": _stamp(cell), "cell": cell.facts()}, indent=None)
    return result
