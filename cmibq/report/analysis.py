"""Turn runs into rows: every number of the report, with errors from a bootstrap over scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from cmibq.eval.bootstrap import Interval
from cmibq.eval.compare import Comparison
from cmibq.report.collect import Run

__all__ = ["METHODS", "Table", "build_table", "label", "setting_key"]

METHODS: Final = ("float", "oracle", "rtn", "smoothquant", "awq", "mbq")
"""The order of methods in tables and figures; others follow by name."""

_KEPT: Final = ("bits_per_weight", "bytes", "tokens_per_s", "peak_rss", "reload_exact")


def setting_key(setting: tuple[int, int, int]) -> tuple[bool, int, int]:
    """Sort settings: weight-only before weight-activation, then from many bits to few."""
    bits, group, acts = setting
    return acts < 16, -bits, -group


def label(w_bit: int, w_group: int, a_bit: int) -> str:
    """Return the short name of a setting.

    Example:
        >>> label(4, 64, 16), label(4, 64, 8), label(16, 128, 16), label(8, -1, 16)
        ('W4 g64', 'W4A8 g64', 'float', 'W8 rows')
    """
    if w_bit == 16:
        return "float"
    acts = f"A{a_bit}" if a_bit < 16 else ""
    return f"W{w_bit}{acts} " + (f"g{w_group}" if w_group > 0 else "rows")


@dataclass(frozen=True)
class Table:
    """The rows of one model, and how far apart RTN and the oracle are at each setting.

    Attributes:
        rows: one dict per run, in the order of the tables.
        gaps: one dict per setting that has both an oracle and an RTN row.
    """

    rows: list[dict[str, Any]]
    gaps: list[dict[str, Any]]


def build_table(
    runs: Sequence[Run], group: str, oracle: str = "", *, resamples: int = 2000
) -> Table:
    """Compute the rows of one model.

    Args:
        runs: all runs.
        group: the model whose runs become rows.
        oracle: the model without outliers, whose RTN runs are the oracle rows; "" for none.
        resamples: draws of the bootstrap.

    Returns:
        The float model first, then setting by setting.

    Raises:
        DataError: runs about different questions.
    """
    chosen = {_key(run.method, run): run for run in runs if run.group == group}
    if oracle and oracle != group:
        found = [run for run in runs if run.group == oracle and run.method == "rtn"]
        chosen |= {_key("oracle", run): run for run in found}
    baseline = next((key for key, run in chosen.items() if run.method == "float"), None)
    answers = {key: run.samples for key, run in chosen.items()}
    builder = _Builder(Comparison(answers, baseline=baseline, resamples=resamples), chosen)
    order = sorted(chosen, key=lambda key: _order(key, chosen[key]))
    return Table([builder.row(key) for key in order], builder.gaps(order))


def _key(method: str, run: Run) -> str:
    return f"{method} {label(*run.setting)}"


def _order(key: str, run: Run) -> tuple[Any, ...]:
    method = key.partition(" ")[0]
    rank = METHODS.index(method) if method in METHODS else len(METHODS)
    return method != "float", setting_key(run.setting), rank, method


def _pair(interval: Interval) -> tuple[float, list[float]]:
    return interval.value, [interval.low, interval.high]


class _Builder:
    """Makes the rows of one comparison; runs are named by method and setting."""

    def __init__(self, comparison: Comparison, runs: dict[str, Run]) -> None:
        self.of, self.runs = comparison, runs

    def row(self, key: str) -> dict[str, Any]:
        """Return everything there is to say about one run."""
        run, mean = self.runs[key], self.of.mean(key)
        method, bits = key.partition(" ")[0], run.setting
        row: dict[str, Any] = {
            "method": method,
            **dict(zip(("w_bit", "w_group", "a_bit"), bits, strict=True)),
            "setting": label(*bits),
            "name": str(run.result.get("name") or run.folder.name),
            "accuracy": mean.value,
            "stderr": mean.stderr,
            "accuracy_ci": [mean.low, mean.high],
            "n_questions": self.of.n_questions,
            "logprob": self.of.mean(key, "logprob").value,
            **{name: run.result.get(name) for name in _KEPT},
        }
        if self.of.baseline:
            row |= self._against_float(key, method)
        rtn, oracle = f"rtn {label(*bits)}", f"oracle {label(*bits)}"
        if rtn in self.runs and method not in ("float", "rtn"):
            row["gain"], row["gain_ci"] = _pair(self.of.difference(key, rtn))
        if rtn in self.runs and oracle in self.runs and method not in ("float", "rtn", "oracle"):
            row |= self._gap_closed(key, rtn, oracle)
        return row

    def _against_float(self, key: str, method: str) -> dict[str, Any]:
        base = str(self.of.baseline)
        made: dict[str, Any] = {}
        made["loss"], made["loss_ci"] = _pair(self.of.difference(base, key))
        made["excess"], made["excess_ci"] = _pair(self.of.excess_loss(key))
        if method != "oracle":
            made["flips"], made["flips_ci"] = _pair(self.of.flips(key))
        size, whole = (self.runs[name].result.get("bytes") for name in (key, base))
        return made | ({"compression": whole / size} if size and whole else {})

    def _gap_closed(self, key: str, rtn: str, oracle: str) -> dict[str, Any]:
        """Return the shares of both gaps; None where a gap is not well away from zero."""
        made: dict[str, Any] = {}
        for name, measure in (("gap_closed", "accuracy"), ("gap_closed_logprob", "logprob")):
            made[name] = None
            if self.of.difference(oracle, rtn, measure).low > 0:
                share = self.of.gap_closed(key, rtn, oracle, measure)
                made[name], made[f"{name}_ci"] = _pair(share)
        return made

    def gaps(self, order: Sequence[str]) -> list[dict[str, Any]]:
        """Return the distance from RTN to the oracle at each setting that has both."""
        found = []
        for key in order:
            method, _, setting = key.partition(" ")
            if method == "oracle" and f"rtn {setting}" in self.runs:
                gap, interval = _pair(self.of.difference(key, f"rtn {setting}"))
                bits = dict(zip(("w_bit", "w_group", "a_bit"), self.runs[key].setting, strict=True))
                found.append({"setting": setting, **bits, "gap": gap, "gap_ci": interval})
        return found
