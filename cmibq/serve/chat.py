"""A conversation about one image: what was said, what is asked, and the answer in pieces."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cmibq.data import CalibSample, Message, check_images
from cmibq.data.base import IMAGE
from cmibq.errors import ConfigError
from cmibq.eval.stream import stream_answer
from cmibq.models import LoadedModel

__all__ = ["Conversation", "question_about"]


def question_about(image: str | Path, question: str, said: tuple[Message, ...] = ()) -> CalibSample:
    r"""Return a question about an image as a model is asked it.

    Args:
        image: the image file.
        question: what is asked; an ``<image>`` mark in it says where the image stands.
        said: turns before it; the first of them then has the mark.

    Raises:
        ConfigError: the question is empty.

    Example:
        >>> question_about("cat.png", " what is it? ").messages
        (Message(role='user', text='<image>\nwhat is it?'),)
    """
    text = question.strip()
    if not text:
        raise ConfigError("the question is empty; write what you want to know about the image")
    if not said and IMAGE not in text:
        text = f"{IMAGE}\n{text}"
    turns = (*said, Message("user", text))
    return CalibSample((Path(image),), turns, "question", where="question")


@dataclass
class Conversation:
    """What was said about one image.

    Args:
        loaded: the model.
        image: the image file; changing it begins anew.
        max_new_tokens: most tokens of an answer.
        history: answer in view of what was said before.
        settings: further settings of ``generate``.
        said: turns up to now.
    """

    loaded: LoadedModel
    image: Path
    max_new_tokens: int = 256
    history: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    said: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        self.show(self.image)

    def show(self, image: str | Path) -> None:
        """Talk about another image from now on.

        Raises:
            DataError: it is missing or no image; the conversation then stays as it was.
        """
        path = Path(image).expanduser()
        check_images([CalibSample((path,), (), "image")])
        self.image, self.said = path, ()

    def ask(self, question: str) -> Generator[str]:
        """Yield the answer in pieces; what was yielded becomes part of the conversation.

        Raises:
            ConfigError: the question is empty.
            DataError: the image has gone, or the chat template does not fit.
        """
        sample, answer = question_about(self.image, question, self.said), ""
        try:
            for piece in stream_answer(
                self.loaded, sample, max_new_tokens=self.max_new_tokens, **self.settings
            ):
                answer += piece
                yield piece
        finally:
            if self.history and answer.strip():
                self.said = (*sample.messages, Message("assistant", answer.strip()))
