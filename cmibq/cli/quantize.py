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

__all__ = ["CONFIGS", "run"]

CONFIGS: Final = Path(__file__).parents[1] / "configs"
"""The shipped YAML files; ``--config NAME`` finds them by name."""


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "quantize",
        QuantRecipe,
        words,
        about="Search scales, quantise the language model of a VLM, pack and save it.",
        switches={"list-configs": "list the shipped YAML files, which --config finds by name"},
        shipped=CONFIGS,
    )
    if "list-configs" in options.switches:
        names = list_shipped(CONFIGS)
        width = max(map(len, names))
        say("\n".join(f"{name.ljust(width)}  {about}" for name, about in names.items()))
    elif not options.done:
        from cmibq import ptq

        for recipe in options.runs:
            ptq.check(recipe)
        perform(options.runs, _quantize)
    return 0


def _quantize(recipe: QuantRecipe, bar: bool) -> tuple[str, bool]:
    from cmibq import ptq

    result = ptq.quantize(recipe, progress=bar)
    if result.skipped:
        return "already done", False
    errors = [error for error in result.layer_errors.values() if error is not None]
    mean = f", mean layer error {100 * sum(errors) / len(errors):.1f} %" if errors else ""
    place = result.output_path if bar else ""
    return f"saved{f' to {place}' if place else ''}{mean}", True
