"""What the web demo computes: answers side by side, and where a patch looks; no page in it."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from pathlib import Path

from cmibq.data import collate
from cmibq.eval.attention import Looks, look
from cmibq.eval.generate import prompts
from cmibq.eval.stream import stream_answer
from cmibq.eval.vqa import exact_match
from cmibq.models.composed import leaving_out
from cmibq.serve.chat import question_about
from cmibq.serve.voices import Voice, composed_tower

__all__ = ["Answer", "Panel", "looks_at", "side_by_side", "stream", "warm_up"]

_ANY = "what is this ?"


@dataclass(frozen=True)
class Panel:
    """Who answers, and how long.

    Args:
        voices: who answers, in the order of the table.
        max_new_tokens: most tokens of an answer.
    """

    voices: tuple[Voice, ...]
    max_new_tokens: int = 64

    @property
    def main(self) -> Voice:
        """Return the composed model."""
        return next(v for v in self.voices if v.name == "composed")


@dataclass(frozen=True)
class Answer:
    """What one voice says.

    Args:
        text: the answer.
        ms: from the question to the end of the answer; image and prompt included.
        right: whether it is what was expected; None if nothing was.
    """

    text: str
    ms: float
    right: bool | None = None


Answers = dict[str, Answer]


def _context(numbers: Collection[int]) -> contextvars.Context:
    """Return a context in which these fusions are left out."""
    with leaving_out(numbers):
        return contextvars.copy_context()


def stream(
    panel: Panel,
    voice: Voice,
    image: str | Path,
    question: str,
    off: Collection[int] = (),
    on_end: Callable[[float], object] | None = None,
) -> Generator[str]:
    """Yield the answer of one voice as far as it is made, longer every time.

    Args:
        panel: who answers.
        voice: one of them.
        image: the picture's file.
        question: what is asked.
        off: fusions that are switched off, from 0.
        on_end: told how many seconds it took, see `cmibq.eval.stream.stream_answer`.

    Raises:
        ConfigError: the question is empty.
        DataError: the image cannot be read.
    """
    text = ""
    pieces = stream_answer(
        voice.loaded,
        question_about(image, question),
        max_new_tokens=panel.max_new_tokens,
        context=_context(voice.left_out(off)),
        on_end=on_end,
    )
    for piece in pieces:
        text += piece
        yield text.strip()


def side_by_side(
    panel: Panel,
    image: str | Path,
    question: str,
    off: Collection[int] = (),
    expected: str = "",
) -> Generator[tuple[str, Answers]]:
    """Yield what there is so far: the composed model's answer as it grows, then those of others.

    Args:
        panel: who answers.
        image: the picture's file.
        question: what is asked.
        off: fusions that are switched off, from 0.
        expected: the right answer, if it is known.

    Yields:
        (text of the composed model, name -> whole answer).

    Raises:
        ConfigError: the question is empty.
        DataError: the image cannot be read.
    """
    said, found = "", Answers()
    for voice in sorted(panel.voices, key=lambda v: v is not panel.main):
        text, seconds = "", list[float]()
        for text in stream(panel, voice, image, question, off, seconds.append):
            if voice is panel.main:
                said = text
                yield said, found
        right = bool(exact_match(text, [expected])) if expected else None
        found = found | {voice.name: Answer(text, 1000 * seconds[0], right)}
        yield said, found


def looks_at(panel: Panel, image: str | Path, off: Collection[int] = ()) -> Looks:
    """Return where the composed tower looks in a picture.

    Args:
        panel: who answers.
        image: the picture's file.
        off: fusions that are switched off, from 0; they have no part in it.

    Raises:
        DataError: the image cannot be read.
        ModelError: no fusion with attention is left.
    """
    loaded = panel.main.loaded
    tower = composed_tower(loaded)
    tool = loaded.processor.image_processor
    sample = question_about(image, _ANY)
    batch = collate(prompts([sample], loaded.processor), loaded.processor, side="left")
    pixels = batch.model_inputs(next(tower.parameters()).dtype)["pixel_values"]
    mine = getattr(tool, "get", lambda _: None)
    both = mine("anchor") or tool, mine("augmenting") or tool
    return _context(off).run(look, tower, pixels, both)


def warm_up(panel: Panel, image: str | Path, question: str) -> None:
    """Let every voice answer once, so that the first times that are shown are not those of it."""
    for _ in side_by_side(panel, image, question):
        pass
