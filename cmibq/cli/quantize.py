"""``cmibq quantize``: one run from flags, or all runs of a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cmibq.cli.options import read_options
from cmibq.cli.output import say
from cmibq.cli.runs import perform
from cmibq.cli.yamlfile import list_shipped
from cmibq.recipe import QuantRecipe

__all__ = ["CONFIGS", "LIST", "list_configs", "quantize_runs", "run"]

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
        quantize_runs(options.runs)
    return 0


def list_configs() -> None:
    """Print the names of the shipped YAML files and what they are."""
    names = list_shipped(CONFIGS)
    width = max(map(len, names))
    say("\n".join(f"{name.ljust(width)}  {about}" for name, about in names.items()))


def quantize_runs(runs: Sequence[QuantRecipe]) -> None:
    """Check all runs, then do them one after the other."""
    from cmibq import ptq

    for recipe in runs:
        ptq.check(recipe)
    perform(runs, _quantize)


def _quantize(recipe: QuantRecipe, bar: bool) -> tuple[str, bool]:
    from cmibq import ptq

    result = ptq.quantize(recipe, progress=bar)
    if result.skipped:
        return "already done", False
    errors = [error for error in result.layer_errors.values() if error is not None]
    mean = f", mean layer error {100 * sum(errors) / len(errors):.1f} %" if errors else ""
    place = result.output_path if bar else ""
    return f"saved{f' to {place}' if place else ''}{mean}", True
