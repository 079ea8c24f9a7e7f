"""Draw a roofline picture per kernel family from the results: `docs/images/roofline-*.png`.

python benchmarks/roofline.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import results
from benchmarks.cases import CASES

__all__ = ["FAMILIES", "Family", "Point", "draw", "main", "points"]

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
COLOURS = ("#0b6e99", "#c0392b", "#2e7d32", "#8e44ad", "#b8860b")


@dataclass(frozen=True)
class Family:
    """The axes that share a picture, and the limits drawn in it (name of a probe -> words)."""

    title: str
    axes: tuple[str, ...]
    memory: Mapping[str, str]
    units: Mapping[str, str]


FAMILIES = {
    "qgemm": Family(
        "Packed linear layers",
        ("qgemm_decode", "qgemm_small_batch", "qgemm_prefill", "qgemm_w8a8"),
        {"read": "DRAM read"},
        {"vnni_int8": "int8, vector unit", "amx_int8": "int8, tile unit"},
    ),
    "gemm": Family(
        "Float products and attention",
        ("gemm_f32", "fusion_train"),
        {"read": "DRAM read"},
        {"fma_f32": "float32, vector unit", "amx_bf16": "bfloat16, tile unit"},
    ),
    "fakequant": Family(
        "Fake quantisation",
        ("fakequant_forward", "fakequant_train"),
        {"nt_copy": "streaming copy", "copy": "plain copy"},
        {"fma_f32": "float32, vector unit"},
    ),
    "observers": Family(
        "Observers and allocation",
        ("minmax_channel", "histogram", "percentile", "mse_clip", "allocate"),
        {"read64": "read, 64 MiB", "read": "DRAM read"},
        {"fma_f32": "float32, vector unit"},
    ),
    "search": Family(
        "Scale search",
        ("scale_search_mse", "scale_search_mae"),
        {"read": "DRAM read"},
        {"fma_f32": "float32, vector unit", "amx_bf16": "bfloat16, tile unit"},
    ),
}


@dataclass(frozen=True)
class Point:
    """One case: operations per byte, and G operations per second of ours and of the best peer."""

    axis: str
    intensity: float
    ours: float
    peer: float | None


def points(
    rows: list[dict[str, Any]], axes: tuple[str, ...], threads: int, rates: Mapping[str, Any]
) -> Iterator[Point]:
    """Yield the cases that tell how much they move and compute."""
    peak = rates.get("fma_f32", {}).get(str(threads), 0.0)
    seen: dict[float, int] = {}
    work = {(c.axis, c.name): c for c in CASES if c.moved}
    for row in rows:
        case = work.get((row["axis"], row["case"]))
        if case is not None and row["axis"] in axes and row["threads"] == threads:
            flops = case.flops or 1e6 * peak * row["limit"]
            speed = flops / 1e6
            peer = speed / min(row["peers"].values()) if row["peers"] else None
            at = flops / case.moved
            seen[at] = seen.get(at, -1) + 1  # cases of one intensity stand side by side
            yield Point(row["axis"], at * 1.07 ** seen[at], speed / row["ours"], peer)


def _limits(axis: Any, family: Family, rates: Mapping[str, Any], threads: str, low: float) -> float:
    """Draw the roofs from intensity `low` on; return the highest one."""
    at = {
        n: rates[n][threads]
        for n in (*family.memory, *family.units)
        if rates.get(n, {}).get(threads)
    }
    top = max((at[n] for n in family.units if n in at), default=1.0)
    slopes = sorted((n for n in family.memory if n in at), key=at.__getitem__, reverse=True)
    for n in slopes:
        under = n != slopes[0]
        start = top / at[n] / 5 if under else low * 1.15
        axis.plot([low, top / at[n]], [low * at[n], top], color="#444444", lw=1.3)
        axis.annotate(
            f"{family.memory[n]} {at[n]:.0f} GB/s",
            (start, start * at[n]),
            xytext=(7, -9) if under else (0, 5),
            textcoords="offset points",
            rotation=_angle(axis),
            rotation_mode="anchor",
            fontsize=7.5,
            color="#444444",
            annotation_clip=True,
        )
    best = max((at[n] for n in slopes), default=1.0)
    for n in family.units:
        if n in at:
            right = axis.get_xlim()[1]
            axis.plot([at[n] / best, right], [at[n], at[n]], color="#444444", lw=1.3, ls="--")
            axis.annotate(
                f"{family.units[n]} {at[n]:.0f} G/s", (right, at[n]), xytext=(-3, 3),
                textcoords="offset points", fontsize=7.5, ha="right", color="#444444",
            )  # fmt: skip
    return top


def _angle(axis: Any) -> float:
    """Return the slope, in degrees, of a line of one byte rate in logarithmic axes."""
    import math

    (x0, x1), (y0, y1) = axis.get_xlim(), axis.get_ylim()
    box = axis.get_window_extent()
    return math.degrees(math.atan2(box.height / math.log(y1 / y0), box.width / math.log(x1 / x0)))


def draw(name: str, rows: list[dict[str, Any]], rates: Mapping[str, Any], path: Path) -> bool:
    """Draw a family; return False, and draw nothing, if no row of it tells its work."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    family = FAMILIES[name]
    found = {t: list(points(rows, family.axes, t, rates)) for t in (1, 2)}
    every = [p for some in found.values() for p in some]
    if not every:
        return False
    speeds = [s for p in every for s in (p.ours, p.peer) if s]
    tops = [r for n in family.units for r in rates.get(n, {}).values()]
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharex=True, sharey=True, dpi=110)
    low = min(p.intensity for p in every) / 3
    memory = [r for n in family.memory for r in rates.get(n, {}).values()]
    high = max([p.intensity for p in every] + [max(tops) / min(memory)]) * 3
    for axis, threads in zip(axes, found, strict=True):
        axis.set(xscale="log", yscale="log", xlim=(low, high))
        axis.set(ylim=(min([*speeds, low * min(memory)]) / 2, 2.2 * max([*tops, *speeds])))
        axis.set_title(f"{threads} thread" + "s" * (threads > 1), fontsize=10)
        axis.set_xlabel("operations per byte", fontsize=9)
        axis.grid(True, which="major", color="#dddddd", lw=0.6)
    axes[0].set_ylabel("G operations / s", fontsize=9)
    figure.suptitle(family.title, fontsize=11)
    figure.tight_layout()
    for axis, (threads, some) in zip(axes, found.items(), strict=True):
        _limits(axis, family, rates, str(threads), low)
        _points(axis, family, some)
    axes[0].plot([], [], "o", mec="#444444", mfc="white", ms=4.5, label="the best peer")
    axes[0].legend(fontsize=7.5, loc="lower right", framealpha=0.9)
    figure.savefig(path, metadata={"Software": None})
    pyplot.close(figure)
    return True


def _points(axis: Any, family: Family, some: list[Point]) -> None:
    for name, colour in zip(family.axes, COLOURS, strict=False):
        mine = [p for p in some if p.axis == name]
        for p in mine:
            if p.peer is not None:
                axis.plot([p.intensity] * 2, [p.ours, p.peer], color=colour, lw=0.7, alpha=0.6)
                axis.plot(p.intensity, p.peer, "o", mec=colour, mfc="white", ms=4.5)
        if mine:
            at, speed = [p.intensity for p in mine], [p.ours for p in mine]
            axis.plot(at, speed, "o", color=colour, ms=5.5, label=name)


def main() -> int:
    """Draw every family that has results."""
    rows, rates = results.read(), json.loads(results.MACHINE.read_text())["rates"]
    for name in FAMILIES:
        path = IMAGES / f"roofline-{name}.png"
        print(path.name if draw(name, rows, rates, path) else f"no points for {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
