"""What is measured once beside the trainings: step 0, shares, 8 bits, time per picture.

python benchmarks/calm/facts.py --times      only the times, into results.json
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.calm.cells import answered, build, finished, parts, trained
from benchmarks.calm.eyes import Composed
from benchmarks.calm.tasks import PLAN, RATES, SEEDS, Cell
from benchmarks.quality.judge import Judge
from cmibq.demo.album import Album, grade_eyes, make_album
from cmibq.demo.composed import TileEyes
from cmibq.fusion.settled import settle
from cmibq.models.composed import CALMVisionTower
from cmibq.nn import convert_
from cmibq.quant import PerGroup, QuantSpec

__all__ = ["facts", "times"]

Json = dict[str, Any]
_STRATEGIES = ("calm", "bare", "cross", "add")
_PICTURES = 300


def _number(value: float) -> float:
    return float(f"{value:.5g}")


class _Fresh(nn.Module):
    """Fresh fusions in front of the projector of the anchor's vision-language model."""

    def __init__(self, eyes: Composed, projector: nn.Module) -> None:
        super().__init__()
        self.eyes, self.projector = eyes, projector

    def forward(self, album: Album, rows: Tensor) -> Tensor:
        found: Tensor = self.projector(self.eyes.fused(album, rows))
        return found


def step_zero(split: str = "test") -> list[Json]:
    """Return what fusions that nobody trained cost on what the anchor's model can answer."""
    album = make_album(split, 100)
    mine = np.array([k in ("digit", "sum") for some in album.kinds for k in some])
    told = []
    for row in _STRATEGIES:
        found = []
        for seed in SEEDS[:1]:
            eyes = build(Cell(row, seed=seed)).eval()
            assert isinstance(eyes, Composed)
            fresh = _Fresh(eyes, parts().anchor_projector)
            right, loss = grade_eyes(fresh, parts().reader, album)
            found.append((100 * np.mean(np.array(right)[mine]), np.mean(np.array(loss)[mine])))
        values = np.array(found)
        told.append(
            {
                "row": row,
                "accuracy": _number(values[:, 0].mean()),
                "loss": _number(values[:, 1].mean()),
                "seeds": len(found),
            }
        )
    return told


def share() -> Json:
    """Return how many parameters of towers and fusions are trained, for n = 2."""
    eyes = build(Cell("calm"))
    fusions = sum(p.numel() for p in eyes.fusions.parameters())  # type: ignore[union-attr]
    towers = sum(p.numel() for tower in eyes.towers for p in tower.parameters())
    return {"fusions": fusions, "towers": towers, "share": _number(fusions / (fusions + towers))}


def whole(eyes: Composed) -> CALMVisionTower:
    """Return the composed tower of trained eyes, both towers included, a copy."""
    known = parts()
    tower = CALMVisionTower(
        copy.deepcopy(known.anchor), copy.deepcopy(known.augmenting), eyes.fed[0].calm_config
    )
    tower.calm_modules.load_state_dict(eyes.fusions.state_dict())
    return tower.eval().requires_grad_(False)


def in_eight_bits(eyes: TileEyes) -> TileEyes:
    """Return a copy whose linear layers, fusions included, have 8-bit weights and activations."""
    made = copy.deepcopy(eyes)
    fusions = made.tower.calm_modules
    for number, fusion in enumerate(fusions):
        fusions[number] = settle(fusion)  # type: ignore[arg-type]
    spec = QuantSpec(8, PerGroup(0), True)
    names = [name for name, m in made.named_modules() if type(m) is nn.Linear]
    convert_(made, dict.fromkeys(names, spec), 8)
    return made


def quantised(split: str = "test") -> Json:
    """Return the points that 8 bits cost on the task, over the trained seeds."""
    album = make_album(split, _PICTURES)
    scans = [s for s, some in zip(album.scans, album.asked, strict=True) for _ in some]
    values: dict[str, list[Any]] = {"float": [], "int8": []}
    for seed in SEEDS:
        cell = Cell("calm", RATES.get("calm", RATES[""]), seed, split, PLAN)
        found = finished(cell)
        if found is None:
            continue
        eyes, _ = trained(cell)
        assert isinstance(eyes, Composed)
        small = in_eight_bits(TileEyes(whole(eyes), eyes.projector).eval())
        exact = TileEyes(whole(eyes), eyes.projector).eval()
        for name, one in (("float", exact), ("int8", small)):
            values[name].append(100.0 * np.array(answered(one, eyes.heads, album)[0]))
    if not values["float"]:
        return {}
    gap = Judge(values, scans, resamples=1000).difference("int8", "float")
    return {
        "gap": _number(gap.value),
        "stderr": _number(gap.stderr),
        "by_seed": [_number(x) for x in gap.by_seed],
        "pictures": len(album),
        "met": gap.value >= -0.3,
    }


def _median(call: Callable[[], Any], repeats: int) -> float:
    """Return the median time of a call in milliseconds."""
    for _ in range(5):
        call()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        spent.append(1e3 * (time.perf_counter() - start))
    return statistics.median(spent)


@torch.inference_mode()
def times(repeats: int = 60) -> Json:
    """Return milliseconds per picture (batches of 1 and 32, one thread) of towers."""
    eyes = build(Cell("calm"))
    assert isinstance(eyes, Composed)
    tower, album = whole(eyes), make_album("dev", 64)
    small = in_eight_bits(TileEyes(tower, eyes.projector).eval())
    told: Json = {}
    for size in (1, 32):
        mine, theirs = album.anchor[:size], album.augmenting[:size]
        calls: dict[str, Callable[[], Any]] = {
            "anchor": lambda mine=mine: parts().anchor(pixel_values=mine),
            "augmenting": lambda theirs=theirs: parts().augmenting(pixel_values=theirs),
            "composed": lambda a=mine, b=theirs: tower({"anchor": a, "augmenting": b}),
            "int8": lambda a=mine, b=theirs: small.tower({"anchor": a, "augmenting": b}),
        }
        told[str(size)] = {name: _number(_median(c, repeats) / size) for name, c in calls.items()}
    return told


def facts() -> Json:
    """Return everything but the times, which want a quiet machine."""
    return {"step_zero": step_zero(), "share": share(), "quantised": quantised()}


def main() -> int:
    """Measure the times, or with --facts the rest, and write them."""
    from benchmarks.calm.run import RESULTS
    from cmibq.fileio import read_json, write_json

    torch.set_num_threads(1)
    results = read_json(RESULTS)
    name = "facts" if "--facts" in sys.argv else "times"
    results[name] = facts() if name == "facts" else times()
    write_json(RESULTS, results)
    print(results[name])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
