"""The web page: gradio around `cmibq.serve.session`, and nothing else."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from cmibq.errors import CmibqError, ConfigError, ModelError
from cmibq.recipe.serve import ServeConfig
from cmibq.serve.page import CSS, HOW, INTRO, TITLE, answer_table, attention_text
from cmibq.serve.pictures import overlaid, with_patches
from cmibq.serve.presets import Preset
from cmibq.serve.session import Panel, looks_at, side_by_side
from cmibq.serve.voices import composed_tower

__all__ = ["build_page", "find_port", "launch"]

_ONE = {"concurrency_limit": 1, "concurrency_id": "models", "show_progress": "hidden"}


@contextlib.contextmanager
def _telling() -> Iterator[None]:
    """Show what went wrong on the page, without a traceback in the terminal."""
    import gradio

    try:
        yield
    except CmibqError as error:
        raise gradio.Error(str(error), print_exception=False) from error


class _Handlers:
    """What happens on the page; every method returns values of components."""

    def __init__(self, panel: Panel, presets: Sequence[Preset]) -> None:
        self.panel, self.presets = panel, presets
        tower = composed_tower(panel.main.loaded)
        self.fusions = [
            (f"{n + 1}, behind layer {layer + 1}", n) for n, layer in enumerate(tower.layers)
        ]

    def off(self, kept: Sequence[int]) -> frozenset[int]:
        return frozenset(n for _, n in self.fusions) - frozenset(kept)

    def choose(self, number: int) -> tuple[str, str]:
        """Return image and question of a preset."""
        chosen = self.presets[number]
        return str(chosen.image), chosen.question

    def expected(self, image: str | None, question: str) -> str:
        """Return the right answer where a preset is asked as it is."""
        same = [p for p in self.presets if p.question == question.strip() and image]
        content = Path(image or "").read_bytes() if same else b""
        return next((p.answer for p in same if p.image.read_bytes() == content), "")

    def ask(
        self, image: str | None, question: str, kept: Sequence[int]
    ) -> Generator[tuple[str, str]]:
        """Yield the streamed answer and the table."""
        with _telling():
            if not image:
                raise ConfigError("there is no picture; choose an example, or drop a picture")
            right = self.expected(image, question)
            for text, found in side_by_side(self.panel, image, question, self.off(kept), right):
                yield text, answer_table(self.panel.voices, found, right)

    def look(self, image: str | None, kept: Sequence[int], fusion: int | None) -> tuple[Any, Any]:
        """Return attention for a picture, and the fusions to choose from."""
        import gradio

        if not image:
            return None, gradio.skip()
        with _telling():
            try:
                looks = looks_at(self.panel, image, self.off(kept))
            except ModelError:
                return None, gradio.Radio(choices=[], value=None)
        left = [pair for pair in self.fusions if pair[1] in kept]
        chosen = fusion if fusion in kept else left[-1][1]
        return looks, gradio.Radio(choices=left, value=chosen)

    def draw(
        self, looks: Any, patch: int, fusion: int | None, kept: Sequence[int]
    ) -> tuple[Any, Any, str]:
        """Return both pictures and what is said below them."""
        if looks is None or fusion is None:
            return None, None, "All fusions are off: the anchor looks at nothing."
        patch = min(patch, looks.anchor.patches - 1)
        number = sorted(kept).index(fusion) if fusion in kept else -1
        weights, _ = looks.of_patch(patch, number)
        text = attention_text(looks, patch, number)
        return with_patches(looks.anchor, patch), overlaid(looks.augmenting, weights), text

    def decided(self, looks: Any) -> int:
        """Return the patch that looks about the least, to begin with."""
        return 0 if looks is None else looks.most_decided()

    def click(self, event: Any, looks: Any) -> int:
        """Return the patch that was clicked."""
        height, width = with_patches(looks.anchor).shape[:2]
        x, y = event.index
        patch: int = looks.anchor.patch_at(x / width, y / height)
        return patch


def _image(gradio: Any, name: str, **options: Any) -> Any:
    return gradio.Image(
        elem_id=name, elem_classes=["pixels"], format="png", buttons=[], show_label=False, **options
    )


def _asking(gradio: Any, presets: Sequence[Preset], html: str) -> dict[str, Any]:
    """Lay out the upper half: examples, picture, question, answers."""
    made: dict[str, Any] = {"presets": []}
    with gradio.Row(elem_id="presets"):
        for one in presets:
            made["presets"].append(
                gradio.Button(
                    one.note or one.question, icon=str(one.image), size="md", min_width=280
                )
            )
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=4, min_width=320):
            made["image"] = _image(
                gradio, "picture", type="filepath", image_mode=None, height=300,
                sources=["upload", "clipboard"],
            )  # fmt: skip
            made["question"] = gradio.Textbox(label="Question", elem_id="question", lines=1)
            made["ask"] = gradio.Button("Ask", variant="primary", elem_id="ask")
        with gradio.Column(scale=6, min_width=380):
            made["answer"] = gradio.Textbox(
                label="Answer of the composed model", elem_id="answer", interactive=False, lines=1
            )
            made["table"] = gradio.HTML(html, elem_id="table")
    return made


def _looking(gradio: Any, fusions: list[tuple[str, int]]) -> dict[str, Any]:
    """Lay out the lower half: fusions, and where a patch looks."""
    every, made = [n for _, n in fusions], dict[str, Any]()
    gradio.Markdown("## Where does it look?\n" + HOW, elem_id="how")
    with gradio.Row(equal_height=False):
        for name, text in (("anchor", "The anchor: click a patch"), ("overlay", "The other tower")):
            with gradio.Column(scale=4, min_width=240):
                gradio.Markdown(f"**{text}**")
                made[name] = _image(gradio, f"{name}-view", interactive=False, height=360)
        with gradio.Column(scale=4, min_width=240):
            made["fusion"] = gradio.Radio(
                fusions, value=every[-1], label="Show the attention of fusion", elem_id="fusion"
            )
            made["kept"] = gradio.CheckboxGroup(
                fusions, value=every, label="Fusions in use", elem_id="kept",
                info="Take one out, and all answers are made anew without it.",
            )  # fmt: skip
            made["text"] = gradio.Markdown(elem_id="attention")
    return made


def _wire(gradio: Any, page: Any, parts: dict[str, Any], do: _Handlers) -> None:
    """Connect components and handlers."""
    looks, patch = gradio.State(None), gradio.State(0)
    asked = [parts["image"], parts["question"], parts["kept"]]
    drawn = [parts["anchor"], parts["overlay"], parts["text"]]
    shown = [looks, patch, parts["fusion"], parts["kept"]]
    quiet = {"show_progress": "hidden"}

    def click(now: Any, event: Any) -> int:
        return do.click(event, now)

    click.__annotations__["event"] = gradio.SelectData

    def whole(first: Any, *, anew: bool = True) -> None:
        """Answer, then look, then draw."""
        seen = first(do.ask, asked, [parts["answer"], parts["table"]], **_ONE).then(
            do.look, [parts["image"], parts["kept"], parts["fusion"]], [looks, parts["fusion"]],
            **_ONE,
        )  # fmt: skip
        if anew:
            seen = seen.then(do.decided, [looks], patch, **quiet)
        seen.then(do.draw, shown, drawn, **quiet)

    whole(parts["ask"].click)
    whole(parts["question"].submit)
    whole(parts["kept"].input, anew=False)
    parts["fusion"].input(do.draw, shown, drawn, **quiet)
    parts["anchor"].select(click, [looks], patch, **quiet).then(do.draw, shown, drawn, **quiet)
    pick, target = functools.partial(functools.partial, do.choose), asked[:2]
    for number, button in enumerate(parts["presets"]):
        whole(button.click(pick(number), None, target, **quiet).then)
    if parts["presets"]:
        whole(page.load(pick(0), None, target, **quiet).then)


def build_page(panel: Panel, presets: Sequence[Preset]) -> Any:
    """Return the page as gradio ``Blocks``; `launch` shows it.

    Args:
        panel: who answers.
        presets: questions to begin with; the first one is asked when the page opens.

    Raises:
        ModelError: the panel's main model is not composed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio

    do = _Handlers(panel, presets)
    with gradio.Blocks(title=TITLE, analytics_enabled=False, fill_width=False) as page:
        gradio.Markdown(f"# {TITLE}\n{INTRO}", elem_id="title")
        parts = _asking(gradio, presets, answer_table(panel.voices, {}))
        parts |= _looking(gradio, do.fusions)
        _wire(gradio, page, parts, do)
    return page


def launch(
    page: Any,
    config: ServeConfig,
    *,
    files: Sequence[Path] = (),
    on_open: Callable[[str], object] | None = None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        page: of `build_page`.
        config: where to listen.
        files: pictures that the page shows; no other files of this machine can be read.
        on_open: told the address when the page can be opened; None returns as soon as it can be,
            and ``page.close()`` ends it.

    Raises:
        ConfigError: the port is taken.
    """
    import gradio

    _, local, public = page.queue(api_open=False).launch(
        server_name=config.host, server_port=find_port(config.host, config.port),
        share=config.share, inbrowser=config.open_browser, quiet=True, ssr_mode=False,
        prevent_thread_lock=True, footer_links=[], css=CSS,
        allowed_paths=[str(path) for path in files],
        theme=gradio.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
    )  # fmt: skip
    if on_open is not None:
        on_open(public or local)
        with contextlib.suppress(KeyboardInterrupt):
            while page.is_running:
                time.sleep(0.1)
        page.close()


def find_port(host: str, port: int) -> int:
    """Return a port that can be listened at.

    Args:
        host: address.
        port: the port that is wanted; 0 finds one.

    Raises:
        ConfigError: it is taken, or this machine does not have the address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise ConfigError(
            f"port {port} of {host} cannot be used ({error}); choose another, or --port 0 for a"
            " free one"
        ) from error
