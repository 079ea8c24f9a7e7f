"""From cells to figures: the content of results.json."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.calm.cells import finished
from benchmarks.calm.tasks import (
    ABLATION,
    COMPOSED,
    CONTROLS,
    HARM,
    MAIN,
    PLAN,
    RATES,
    SEEDS,
    TWINS,
    Cell,
    Plan,
)
from benchmarks.quality.judge import Figure, Judge
from cmibq.demo.album import make_album
from cmibq.demo.tiles import KINDS

__all__ = ["collect"]

Json = dict[str, Any]
_BOTH = ("code", "new")
_GROUPS = {
    "all": KINDS,
    "anchor's": ("digit", "sum"),
    "other's": ("colour", "where"),
    "both": _BOTH,
}


def _number(value: float) -> float:
    return float(f"{value:.5g}")


def _json(figure: Figure) -> Json:
    made = dataclasses.asdict(figure)
    return {k: [_number(x) for x in v] if k == "by_seed" else _number(v) for k, v in made.items()}


class _Asked:
    """The questions of a split and the answers of rows."""

    def __init__(self, split: str, plan: Plan) -> None:
        album = make_album(split, plan.asked)
        self.split, self.plan = split, plan
        self.kinds = np.array([kind for some in album.kinds for kind in some])
        counts = [len(some) for some in album.asked]
        self.scans = [s for s, n in zip(album.scans, counts, strict=True) for _ in range(n)]
        self.pictures = len(album)

    def found(self, row: str, seeds: Sequence[int]) -> list[Json]:
        """Return the cells of a row, up to the first seed that is missing."""
        cells = [Cell(row, RATES.get(row, RATES[""]), s, self.split, self.plan) for s in seeds]
        return [m for m in itertools.takewhile(bool, map(finished, cells)) if m]

    def judge(self, rows: dict[str, list[Json]], kinds: Sequence[str]) -> Judge:
        """Return a judge of right answers to some kinds of questions, in points."""
        at = np.flatnonzero(np.isin(self.kinds, kinds))
        values = {
            row: [100.0 * np.array(m["right"], np.float64)[at] for m in made]
            for row, made in rows.items()
        }
        return Judge(values, [self.scans[i] for i in at], resamples=1000)


def _rows(asked: _Asked, rows: dict[str, list[Json]]) -> Json:
    told: Json = {}
    for row, made in rows.items():
        right = np.mean([m["right"] for m in made], 0)
        told[row] = {
            "accuracy": _json(asked.judge({row: made}, KINDS).mean(row)),
            "by_kind": {k: _number(100 * right[asked.kinds == k].mean()) for k in KINDS},
            "loss": _number(float(np.mean([np.mean(m["losses"]) for m in made]))),
            "parameters": made[0]["record"]["parameters"],
            "seconds": _number(float(np.mean([m["record"]["seconds"] for m in made]))),
            "rate": made[0]["cell"]["rate"],
            "trainings": len(made),
        }
    return told


def _bars(asked: _Asked, rows: dict[str, list[Json]]) -> list[Json]:
    """Return composition against every control, over the trainings that both have."""
    told = []
    ours = [row for row in COMPOSED if row in rows]
    for our, row in itertools.product(ours, (r for r in CONTROLS if r in rows)):
        count = min(len(rows[our]), len(rows[row]))
        pair = {name: rows[name][:count] for name in (our, row)}
        gaps = {
            name: asked.judge(pair, kinds).difference(our, row) for name, kinds in _GROUPS.items()
        }
        met = {name: gap.value > 2 * gap.stderr for name, gap in gaps.items()}
        made = {k: _json(v) for k, v in gaps.items()}
        told.append({"ours": our, "row": row, "gap": made, "met": met, "trainings": count})
    return told


def _twin(asked: _Asked, rows: dict[str, list[Json]]) -> Json:
    """Return what composing with an equal tower does to the anchor's own questions."""
    count = min(map(len, rows.values()))
    judge = asked.judge({k: v[:count] for k, v in rows.items()}, _GROUPS["anchor's"])
    gap = judge.difference(TWINS[0], "anchor")
    return {"gap": _json(gap), "met": gap.value >= -HARM, "margin": HARM}


def collect(split: str = "test", seeds: Sequence[int] = SEEDS, plan: Plan = PLAN) -> Json:
    """Return everything that finished cells say, as JSON values."""
    asked = _Asked(split, plan)
    whole = {row: made for row in (*MAIN, *COMPOSED, *TWINS) if (made := asked.found(row, seeds))}
    first = {row: made for row in ("calm", *ABLATION) if (made := asked.found(row, seeds[:1]))}
    told: Json = {
        "split": split,
        "pictures": asked.pictures,
        "questions": len(asked.kinds),
        "seeds": list(seeds),
        "plan": dataclasses.asdict(plan),
        "rows": _rows(asked, whole) if whole else {},
        "ablation": _rows(asked, first) if first else {},
        "bars": _bars(asked, whole) if "calm" in whole else [],
    }
    if TWINS[0] in whole and "anchor" in whole:
        told["twin"] = _twin(asked, {row: whole[row] for row in (TWINS[0], "anchor")})
    return told
