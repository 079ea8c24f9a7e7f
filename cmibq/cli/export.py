"""``cmibq export DIR``: a package as GGUF or in another layout."""

from __future__ import annotations

from collections.abc import Sequence

from cmibq.cli.options import read_options
from cmibq.cli.output import say
from cmibq.recipe.tools import ExportConfig

__all__ = ["run", "with_path"]


def with_path(words: Sequence[str]) -> list[str]:
    """Return the flags of ``DIR --flags``."""
    if words and not words[0].startswith("-"):
        return ["--path", *words]
    return list(words)


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "export",
        ExportConfig,
        with_path(words),
        about="Write a package as GGUF (llama.cpp), compressed-tensors or cmibq, and read it back.",
    )
    if options.done:
        return 0
    from cmibq.ptq.export import export

    for config in options.runs:
        found = export(config)
        kinds = ", ".join(f"{n} x {kind}" for kind, n in found.get("kinds", {}).items())
        say(f"wrote {config.output_path}: {found['exact']} of {found['layers']} layers have the "
            f"same weights{f' ({kinds})' if kinds else ''}")  # fmt: skip
        if found.get("rounded"):
            share = 100 * found["largest_difference"]
            say(f"{len(found['rounded'])} layers have minima rounded to float16, by up to "
                f"{share:.2g} % of their largest weight; --exact avoids that")  # fmt: skip
    return 0
