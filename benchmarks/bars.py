"""The bars: how much faster than the best peer, and how close to the machine's limit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

__all__ = ["AXES", "BARS", "Bar", "Verdict", "bar_of", "judge", "label"]

MANY = float("inf")


@dataclass(frozen=True)
class Bar:
    """What a row must reach; what is None or empty is only reported.

    Attributes:
        axis: of the row.
        case: pattern for the case, as in fnmatch; the first bar that fits holds.
        ratio: least of min(peers) / ours.
        over: pattern for a peer -> least of its time / ours, instead of `ratio` for such peers.
        fraction: least of limit / ours.
        at_most: most milliseconds of ours.
        near: the same case at 4 bits may be at most this much faster.
    """

    axis: str
    case: str = "*"
    ratio: float | None = None
    over: Mapping[str, float] = field(default_factory=dict)
    fraction: float | None = None
    at_most: float | None = None
    near: float | None = None


BARS = (
    Bar("fakequant_forward", ratio=1.3, fraction=0.90),
    Bar("fakequant_train", ratio=1.3, over={"*eager*": 12}, fraction=0.85),
    Bar("qgemm_decode", "w8*", ratio=1.0, fraction=0.85),
    Bar("qgemm_decode", ratio=1.2, fraction=0.85),
    Bar("qgemm_small_batch", ratio=1.5, fraction=0.60),
    Bar("qgemm_prefill", "*float*"),
    Bar("qgemm_prefill", "w4*", ratio=1.15, fraction=0.75),
    Bar("qgemm_prefill", ratio=1.15, fraction=0.75, near=1.10),
    Bar("qgemm_w8a8", ratio=0.95, fraction=0.80),
    Bar("gemm_f32", "QK*", over={"*OpenBLAS*": 0.95, "*torch*": 1.8}, fraction=0.65),
    Bar("gemm_f32", "PV*", over={"*OpenBLAS*": 0.95, "*torch*": 1.8}, fraction=0.55),
    Bar("gemm_f32", over={"*OpenBLAS*": 0.95, "*torch*": 1.8}, fraction=0.75),
    Bar("fusion_train", "bf16*", ratio=1.4),
    Bar("fusion_train", "fp32*", ratio=2.0, fraction=0.70),
    Bar("fusion_memory", "forward+backward*", ratio=1.6),
    Bar("fusion_memory", "forward*", ratio=3.0),
    Bar("scale_search_mse", ratio=4.0, fraction=0.60),
    Bar("scale_search_mae", ratio=3.0),
    Bar("allocate", "projection [[]64,1024]*", at_most=0.100, ratio=4.0),
    Bar("allocate", "projection [[]8,4096]*", at_most=0.200, ratio=4.0),
    Bar("allocate", "integers 1e5*", at_most=5.0, ratio=4.0),
    Bar("allocate"),
    Bar("minmax_channel", ratio=12.0, fraction=0.80),
    Bar("histogram"),
    Bar("percentile"),
    Bar("mse_clip"),
    Bar("call_overhead", "raw binding*", at_most=0.001),
    Bar("call_overhead", "torch op with grad*", at_most=0.020),
    Bar("call_overhead", "torch op*", at_most=0.010),
)

AXES = tuple(dict.fromkeys(bar.axis for bar in BARS))


@dataclass(frozen=True)
class Verdict:
    """A row beside its bar: figures, what was asked, and what was missed (empty: met).

    `beyond` is true where all that was missed is a ratio that not even the limit would reach.
    """

    ratio: float
    fraction: float
    asked: str
    missed: tuple[str, ...]
    beyond: bool = False


def bar_of(row: Mapping[str, Any]) -> Bar | None:
    """Return the bar of a row, the first that fits; rows of an axis without bars are reported."""
    if row["axis"] not in AXES:
        return Bar(row["axis"])
    fits = (b for b in BARS if b.axis == row["axis"] and fnmatchcase(row["case"], b.case))
    return next(fits, None)


def label(bar: Bar) -> str:
    """Return a bar in words, "reported" if it asks for nothing."""
    parts = [f"{bar.ratio:g} x"] if bar.ratio is not None else []
    parts += [f"{least:g} x {name.strip('*')}" for name, least in bar.over.items()]
    parts += [f"{bar.fraction:.2f}"] if bar.fraction is not None else []
    parts += [f"<= {1e3 * bar.at_most:g} us"] if bar.at_most is not None else []
    parts += [f"<= {bar.near:g} x w4"] if bar.near is not None else []
    return ", ".join(parts) or "reported"


def judge(row: Mapping[str, Any], rows: list[dict[str, Any]] | None = None) -> Verdict:
    """Compare a row with its bar.

    Args:
        row: of `results.json`.
        rows: all rows; needed for bars that compare with the row at 4 bits.
    """
    ours, peers, bar = row["ours"], row["peers"], bar_of(row)
    ratio, fraction = min(peers.values(), default=MANY) / ours, row["limit"] / ours
    if bar is None:
        return Verdict(ratio, fraction, "no bar", ("no bar for this row",))
    missed, beyond = [], []
    plain = {n: v for n, v in peers.items() if not any(fnmatchcase(n, p) for p in bar.over)}
    wanted = [(plain, bar.ratio)] if bar.ratio is not None else []
    wanted += [
        ({n: v for n, v in peers.items() if fnmatchcase(n, p)}, least)
        for p, least in bar.over.items()
    ]
    for group, least in wanted:
        for name, value in group.items():
            if value / ours < least:
                missed.append(f"{value / ours:.2f} x {name}, asked {least:g}")
                # A probe that other programs slowed down is no limit: then nothing can be said.
                if ours >= row["limit"] > value / least:
                    missed[-1] += f" (at the limit {value / row['limit']:.2f})"
                    beyond.append(name)
    if bar.fraction is not None and fraction < bar.fraction:
        missed.append(f"{fraction:.2f} of the limit, asked {bar.fraction:.2f}")
    if bar.at_most is not None and ours > bar.at_most:
        missed.append(f"{1e3 * ours:.3g} us, asked {1e3 * bar.at_most:g}")
    if bar.near is not None and (least := _at_four_bits(row, rows or [])):
        if ours > bar.near * least:
            missed.append(f"{ours / least:.2f} x the time of w4, asked {bar.near:g}")
    return Verdict(ratio, fraction, label(bar), tuple(missed), len(missed) == len(beyond) > 0)


def _at_four_bits(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> float | None:
    """Return our time of the same case at 4 bits: `w3 M=64 ...` beside `w4 M=64 ...`."""
    width, _, rest = row["case"].partition(" ")
    for other in rows:
        same = other["axis"] == row["axis"] and other["threads"] == row["threads"]
        if same and width != "w4" and other["case"] == f"w4 {rest}":
            return float(other["ours"])
    return None
