"""``cmibq serve``: the web demo of a composed model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
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

    with torch_threads(config.threads), ExitStack() as stack:
        if not config.model_path:
            folder = stack.enter_context(TemporaryDirectory(prefix="cmibq-serve-"))
            config = _demo(config, Path(folder))
        panel, presets = open_panel(config)
        if presets:
            warm_up(panel, presets[0].image, presets[0].question)
        _greet(config, panel, presets)
        page, files = build_page(panel, presets), [one.image for one in presets]
        launch(page, config, files=files, on_open=lambda url: say(f"open {url}"))
    return 0


def _demo(config: ServeConfig, folder: Path) -> ServeConfig:
    """Write the models that ship with cmibq into a folder, and name them."""
    from cmibq.demo.composed import write_composed_demo

    say("no --model-path: this is the small model that ships with cmibq")
    made = {name: str(path) for name, path in write_composed_demo(folder).items()}
    return replace(
        config,
        model_path=made["composed"],
        anchor_path=config.anchor_path or made["anchor"],
        augmenting_path=config.augmenting_path or made["augmenting"],
    )


def _greet(config: ServeConfig, panel: Panel, presets: Sequence[Preset]) -> None:
    names = ", ".join(voice.name for voice in panel.voices)
    say(f"{Path(config.model_path).name}: {names}; {len(presets)} examples. Ctrl-C ends.")
    if config.share:
        say("--share: anyone with the address can use this model while it runs")
