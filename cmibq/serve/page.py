"""Texts of the web demo: the table of answers and what is said about attention."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Final

from cmibq.eval.attention import Looks
from cmibq.serve.session import Answer
from cmibq.serve.voices import Voice

__all__ = ["CSS", "HOW", "INTRO", "TITLE", "answer_table", "attention_text"]

TITLE: Final = "Two frozen vision towers, one answer"
INTRO: Final = (
    "CALM lets one vision tower, the *anchor*, look at the patches of another, the *augmenting*"
    " one, through a few small layers. Only these were trained. Choose an example, or bring a"
    " picture and ask."
)
HOW: Final = (
    "Every patch of the anchor asks the other tower's patches. Click one: red is where its"
    " attention goes."
)
CSS: Final = """
.pixels img { image-rendering: pixelated; width: 100% !important; height: 100% !important;
  object-fit: contain; }
#anchor-view img { cursor: crosshair; }
#presets { align-items: stretch; }
#presets button { font-weight: normal; justify-content: flex-start; text-align: left;
  flex-wrap: nowrap; line-height: 1.3; }
#presets img { image-rendering: pixelated; flex: none; width: 2.6em; height: 2.6em; }
.prose table.answers { width: 100%; border: 0; margin: 0; }
.prose table.answers :is(tr, th, td) { border: 0; }
.prose table.answers :is(th, td) { padding: .5em .6em; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--border-color-primary); }
.prose table.answers small { display: block; font-weight: normal; opacity: .65; }
.prose table.answers .said { width: 40%; font-size: 1.15em; }
.prose table.answers .ms { font-variant-numeric: tabular-nums; white-space: nowrap; }
.answers .right { color: #00735c; } .answers .wrong { color: #b54400; }
.dark .answers .right { color: #4fd1ae; } .dark .answers .wrong { color: #ff9a5c; }
"""


_MARKS: Final = {
    True: "<td class='right'>\N{CHECK MARK} right</td>",
    False: "<td class='wrong'>\N{BALLOT X} wrong</td>",
    None: "<td></td>",
}


def answer_table(voices: Sequence[Voice], found: Mapping[str, Answer], expected: str = "") -> str:
    """Return the table of answers as HTML; voices without an answer have dots.

    Args:
        voices: all rows.
        found: name -> answer, as far as there are any.
        expected: the right answer, if it is known.
    """
    rows = []
    for voice in voices:
        told = found.get(voice.name)
        text = html.escape(told.text) or "<i>(nothing)</i>" if told else "\N{HORIZONTAL ELLIPSIS}"
        ms = f"{told.ms:.0f} ms" if told else ""
        rows.append(
            f"<tr><th>{html.escape(voice.name)}<small>{html.escape(voice.about)}</small></th>"
            f"<td class='said'>{text}</td>{_MARKS[told.right if told else None]}"
            f"<td class='ms'>{ms}</td></tr>"
        )
    known = f"<p>Right would be: <b>{html.escape(expected)}</b></p>" if expected else ""
    return f"<table class='answers'>{''.join(rows)}</table>{known}"


def attention_text(looks: Looks, patch: int, fusion: int) -> str:
    """Say in a line where a patch looks, and how widely."""
    weights, prefix = looks.of_patch(patch, fusion)
    row, column = divmod(int(weights.argmax()), weights.shape[1])
    entropy = float(looks.entropy[fusion, :, looks.anchor.prefix + patch].mean())
    text = (
        f"Most: {100 * float(weights.max()):.0f} % on the patch in row {row + 1}, column"
        f" {column + 1}."
    )
    if prefix > 0.005:
        text += f" {100 * prefix:.0f} % on tokens that are no patches (CLS)."
    uniform = math.log(looks.weights.shape[2])
    return f"{text} Entropy {entropy:.2f} of {uniform:.2f} nats (all alike)."
