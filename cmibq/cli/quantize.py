"""``cmibq quantize``: one run from flags, or all runs of a YAML file."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cmibq.cli.options import read_options
from cmibq.cli.output import complain, say
from cmibq.cli.runs import perform, title
from cmibq.cli.yamlfile import list_shipped
from cmibq.recipe import QuantRecipe, format_size

__all__ = ["BAD_RESULT", "CONFIGS", "LIST", "list_configs", "quantize_runs", "run"]

BAD_RESULT: Final = 3
"""Exit code of a result that is not the model it was made from."""

CONFIGS: Final = Path(__file__).parents[1] / "configs"
"""The shipped YAML files; ``--config NAME`` finds them by name."""


LIST: Final = {"list-configs": "list the shipped YAML files, which --config finds by name"}
"""The switch of commands that know the shipped files."""


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "quantize",
        QuantRecipe,
        words,
        about="Search scales, quantise the language model of a VLM, pack and save it.",
        switches=LIST,
        shipped=CONFIGS,
    )
    if "list-configs" in options.switches:
        list_configs()
    elif not options.done:
        return quantize_runs(options.runs)
    return 0


def list_configs() -> None:
    """Print the names of the shipped YAML files and what they are."""
    names = list_shipped(CONFIGS)
    width = max(map(len, names))
    say("\n".join(f"{name.ljust(width)}  {about}" for name, about in names.items()))


def quantize_runs(runs: Sequence[QuantRecipe]) -> int:
    """Check all runs, then do them one after the other.

    Returns:
        0, or `BAD_RESULT` if a result is not the model it was made from.
    """
    from cmibq import ptq

    for recipe in runs:
        ptq.check(recipe)
    failed: list[str] = []
    perform(runs, functools.partial(_quantize, failed=failed))
    return BAD_RESULT if failed else 0


def _quantize(recipe: QuantRecipe, bar: bool, *, failed: list[str]) -> tuple[str, bool]:
    from cmibq import ptq

    result = ptq.quantize(recipe, progress=bar)
    found = result.verification
    if found is not None and not found["ok"]:
        failed.append(title(recipe))
        complain(f"cmibq: verify: {title(recipe)}: {result.output_path} is not the model it was "
                 f"made from: {'; '.join(found['reasons'])}")  # fmt: skip
    if result.skipped:
        return "already done", False
    errors = [error for error in result.layer_errors.values() if error is not None]
    mean = f", mean layer error {100 * sum(errors) / len(errors):.1f} %" if errors else ""
    place = result.output_path if bar else ""
    drift = f", KL {found['kl']:.3f} nats" if found and found["kl"] is not None else ""
    bits = f"; {_bits(result.budget)}" if result.budget else ""
    return f"saved{f' to {place}' if place else ''}{mean}{drift}{bits}", True


def _bits(budget: Mapping[str, Any]) -> str:
    """Say what was compared for ``max_bytes``, the choice first."""
    order = sorted({"uniform", "mixed"} & {*budget}, key=lambda n: n != budget["chosen"])
    return ", instead of ".join(
        f"{name} bits (mean {budget[name]['mean_bits']:.2f}, {format_size(budget[name]['bytes'])},"
        f" KL {budget[name]['kl']:.2g} nats)"
        for name in order
    )
