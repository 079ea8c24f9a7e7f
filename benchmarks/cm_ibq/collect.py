"""From cells to figures: the content of results.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.cm_ibq.cells import finished
from benchmarks.cm_ibq.judge import Curves, bytes_at
from benchmarks.cm_ibq.tasks import (
    FIXED,
    IMAGE_ROWS,
    LEFT_OUT,
    PLAIN,
    ROWS,
    SEEDS,
    UNIFORM,
    Cell,
    left_out_cells,
)
from benchmarks.cm_ibq.vlm import material
from cmibq.eval.bootstrap import Interval, PairedBootstrap

__all__ = ["MARGIN", "collect"]

MARGIN = 0.01
_PAIRS = (
    *(("ours", f"{row}, fixed") for row in PLAIN),
    *(("ours, fixed", f"{row}, fixed") for row in (*PLAIN, "flat")),
    *(("ours", row) for row in (*PLAIN, "klt", "step", "factorized", "flat")),
    ("task", "ours"),
)
Json = dict[str, Any]
Array = np.ndarray[Any, Any]


def _number(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _json(found: Interval) -> Json:
    return {name: _number(value) for name, value in found._asdict().items()}


def _sizes(found: Json, questions: Sequence[int], *, fixed: bool) -> Array:
    """Return the whole bytes of the stream that each question needs."""
    size = np.array(found["bytes"], np.float64)
    if fixed:
        size = np.full(len(size), np.ceil(found["nominal"] / 8 - 1e-9))
    return size if len(size) == sum(questions) else np.repeat(size, questions)


def _cells(row: str, point: tuple[Any, ...], split: str, seeds: Sequence[int]) -> list[Json]:
    made = (finished(Cell(row, *point, seed=seed, split=split)) for seed in seeds)
    return [found for found in made if found]


class _Table:
    """All points of all curves of one split, each averaged over the seeds there are."""

    def __init__(self, split: str, seeds: Sequence[int]) -> None:
        self.seen = material("demo", split)
        self.questions = [len(kinds) for kinds in self.seen.kinds]
        self.clusters = [
            scans
            for scans, n in zip(self.seen.scans, self.questions, strict=True)
            for _ in range(n)
        ]
        base = finished(Cell("float", split=split))
        assert base is not None, "the float cell comes first"
        self.right, self.losses = np.array(base["right"]), np.array(base["losses"])
        self.points: dict[str, list[Json]] = {}
        for name, row in ROWS.items():
            for point in row.points:
                if made := _cells(name, point, split, seeds):
                    curve = row.curve or name
                    self._add(curve, point, made, fixed=False)
                    if curve in FIXED:
                        self._add(f"{curve}, fixed", point, made, fixed=True)
        for name, qualities in IMAGE_ROWS.items():
            for quality in qualities:
                if made := _cells(name, (0, quality), split, (0,)):
                    self._add(name, (0, quality, 0), made, fixed=False)

    def _add(self, name: str, point: tuple[Any, ...], made: list[Json], *, fixed: bool) -> None:
        sizes = [_sizes(m, self.questions, fixed=fixed) for m in made]
        self.points.setdefault(name, []).append(
            {
                "point": list(point),
                "size": np.mean(sizes, 0),
                "right": np.mean([m["right"] for m in made], 0),
                "losses": np.mean([m["losses"] for m in made], 0),
                "by_seed": [
                    (float(s.mean()), float(np.mean(m["right"])))
                    for s, m in zip(sizes, made, strict=True)
                ],
                "bare": made[0].get("bare"),
                "seconds": made[0].get("record", {}).get("seconds"),
            }
        )

    def curves(self, what: str) -> Curves:
        """Return the curves over accuracy (``"right"``) or minus the log-loss (``"losses"``)."""
        sign = 1.0 if what == "right" else -1.0
        level = sign * (self.right if what == "right" else self.losses)
        points = {
            name: [(p["size"], sign * p[what]) for p in some] for name, some in self.points.items()
        }
        return Curves(points, level, self.clusters)


def _point(told: Json, table: _Table) -> Json:
    """Return the figures of one point; its loss of accuracy with the bootstrap's error."""
    columns = np.stack([told["right"] - table.right, told["losses"] - table.losses], 1)
    boot = PairedBootstrap(columns, table.clusters, resamples=500)
    return {
        "point": told["point"],
        "bytes": _number(float(told["size"].mean())),
        "accuracy": _number(float(told["right"].mean())),
        "gain": _number(float(boot.means[0])),
        "gain_stderr": _number(float(boot.stderr[0])),
        "excess": _number(float(boot.means[1])),
        "excess_stderr": _number(float(boot.stderr[1])),
        "seeds": len(told["by_seed"]),
        "bare": None if told["bare"] is None else _number(told["bare"]),
        "seconds": told["seconds"],
    }


def _between_seeds(some: Sequence[Json], target: float) -> list[float | None]:
    """Return the bytes at a target of every seed, on the points that have it."""
    count = max(len(p["by_seed"]) for p in some)
    found = []
    for seed in range(count):
        size, right = np.array([p["by_seed"][seed] for p in some if len(p["by_seed"]) > seed]).T
        found.append(_number(bytes_at(size, right, target)))
    return found


def _summary(table: _Table) -> Json:
    """Return bytes at one point below float, and comparisons of ours with all others."""
    accuracy, losses = table.curves("right"), table.curves("losses")
    target = float(table.right.mean()) - MARGIN
    below = {
        name: _json(accuracy.bytes_below(name, MARGIN))
        | {"by_seed": _between_seeds(some, target), "bound": accuracy.starts_above(name, MARGIN)}
        for name, some in table.points.items()
    }
    against = []
    for name, other in _PAIRS:
        if name in table.points and other in table.points:
            saving = _json(accuracy.saving(name, other, MARGIN))
            area = _json(losses.bd_rate(name, other))
            against.append({"row": name, "other": other, "saving": saving, "bd_rate": area})
    return {"below": below, "against": against}


def _gain(below: Json, split: str, seeds: Sequence[int]) -> Json:
    """Return the bits per element that unequal widths save: by theory, and measured."""
    cells = [
        Cell("flat", *point, seed=seed, split=split)
        for point in ROWS["flat"].points
        for seed in seeds
    ]
    found = [(cell, finished(cell)) for cell in cells]
    told = [(c, f["record"]["predicted"]) for c, f in found if f and f["record"].get("predicted")]
    sizes = [below.get(f"{row}, fixed", {}).get("value") for row in ("flat", "ours")]
    elements = 4 * cells[0].channels
    measured = None if None in sizes else 8 * (sizes[0] - sizes[1]) / elements
    predicted = [[c.bits, _number(p)] for c, p in told]
    return {"predicted": predicted, "measured": measured and _number(measured)}


def _at_bytes(means: Array) -> Array:
    """Return the accuracy of plain rounding at the bytes of a row, over that of the row.

    Args:
        means: [.., 2 + 2 P]: bytes and accuracy of the row, then of each point of plain rounding
            by growing bytes. Between them accuracy is linear in the logarithm of the bytes.
    """
    found = []
    for row in np.atleast_2d(means):
        logs = np.log(np.maximum(row[::2], 1e-3))
        found.append(np.interp(logs[0], logs[1:], row[3::2]) - row[1])
    return np.asarray(found if means.ndim == 2 else found[0])


def _unseen(table: _Table, rows: Array, some: dict[str, dict[Any, list[Json]]]) -> list[Json]:
    """Return what each row loses on the questions `rows`, against plain rounding.

    Args:
        table: of all questions.
        rows: bool, those of the kind.
        some: row -> point -> its trainings without the kind.
    """

    def columns(trained: list[Json]) -> list[Array]:
        sizes = [_sizes(m, table.questions, fixed=False) for m in trained]
        return [np.mean(sizes, 0)[rows], np.mean([m["right"] for m in trained], 0)[rows]]

    plain = sorted((columns(t) for t in some.get(UNIFORM, {}).values()), key=lambda c: c[0].mean())
    clusters = [c for c, asked in zip(table.clusters, rows, strict=True) if asked]
    told = []
    for name, points in some.items():
        for trained in points.values():
            own = columns(trained)
            found: Json = {"row": name, "seeds": len(trained), "more": None}
            found |= {"bytes": _number(own[0].mean()), "accuracy": _number(own[1].mean())}
            if name != UNIFORM and plain:
                together = np.stack([x for pair in (own, *plain) for x in pair], 1)
                boot = PairedBootstrap(together, clusters, resamples=500)
                found["more"] = _json(boot.interval(_at_bytes))
            told.append(found)
    return told


def _left_out(table: _Table, split: str, seeds: Sequence[int]) -> list[Json]:
    """Return what questions of a kind lose that training did not ask, against plain rounding."""
    kinds = np.array([kind for some in table.seen.kinds for kind in some])
    made = []
    for kind in LEFT_OUT:
        some: dict[str, dict[Any, list[Json]]] = {}
        for cell in left_out_cells(kind, seeds=seeds, split=split):
            if found := finished(cell):
                point = cell.bits, cell.weight
                some.setdefault(cell.row, {}).setdefault(point, []).append(found)
        if some:
            rows = kinds == kind
            base = _number(float(table.right[rows].mean()))
            told = _unseen(table, rows, some)
            made.append({"kind": kind, "float": base, "rows": told})
    return made


def collect(split: str = "test", seeds: Sequence[int] = SEEDS) -> Json:
    """Return everything that finished cells say, as JSON values."""
    table = _Table(split, seeds)
    rows = {name: [_point(p, table) for p in some] for name, some in table.points.items()}
    summary = _summary(table)
    return {
        "split": split,
        "questions": sum(table.questions),
        "pictures": len(table.questions),
        "float": {
            "accuracy": _number(float(table.right.mean())),
            "nll": _number(float(table.losses.mean())),
        },
        "rows": rows,
        **summary,
        "gain": _gain(summary["below"], split, seeds),
        "left_out": _left_out(table, split, seeds),
    }
