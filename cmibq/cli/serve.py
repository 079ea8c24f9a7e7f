"""``cmibq serve``: the web demo of a composed model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmibq.cli.chat import underscored
from cmibq.cli.options import read_options
from cmibq.cli.output import say
from cmibq.recipe.serve import ServeConfig

if TYPE_CHECKING:
    from cmibq.serve.presets import Preset
    from cmibq.serve.session import Panel

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "serve",
        ServeConfig,
        underscored(words),
        about="Show a composed model on a web page: its answers beside those of its towers and of"
        " itself in 8 bits, and where it looks. Only this machine can open the page.",
        from_file=False,
    )
    if options.done:
        return 0
    (config,) = options.runs
    import gradio  # noqa: F401  # tell that it is missing before models are read

    from cmibq.ops.library import torch_threads
    from cmibq.serve.app import build_page, launch
    from cmibq.serve.opening import open_panel
    from cmibq.serve.session import warm_up

    with torch_threads(config.threads):
        panel, presets = open_panel(config)
        if presets:
            warm_up(panel, presets[0].image, presets[0].question)
        _greet(config, panel, presets)
        page, files = build_page(panel, presets), [one.image for one in presets]
        launch(page, config, files=files, on_open=lambda url: say(f"open {url}"))
    return 0


def _greet(config: ServeConfig, panel: Panel, presets: Sequence[Preset]) -> None:
    names = ", ".join(voice.name for voice in panel.voices)
    say(f"{Path(config.model_path).name}: {names}; {len(presets)} examples. Ctrl-C ends.")
    if config.share:
        say("--share: anyone with the address can use this model while it runs")
