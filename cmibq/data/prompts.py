"""Conversations to token ids: the model's own chat template, and which tokens are answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmibq.data.base import IMAGE, CalibSample, Message, open_image
from cmibq.data.images import Picture, image_ids, pictures_of
from cmibq.errors import DataError

__all__ = ["Encoded", "encode"]

Ids = NDArray[np.int64]
_Messages = tuple[Message, ...]


@dataclass(frozen=True, eq=False)
class Encoded:
    """One sample as tokens.

    Args:
        ids: int64 [t], one id per image token.
        answer: bool [t], tokens of answers, the end token after the last one included.
        vision: bool [t], image tokens.
        sample: where it comes from.
        pictures: its images in their order; those of `sample`, each alone, if left out. Whoever
            joins encoded samples joins these.
    """

    ids: Ids
    answer: NDArray[np.bool_]
    vision: NDArray[np.bool_]
    sample: CalibSample
    pictures: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        if not self.pictures and self.sample.images:
            object.__setattr__(self, "pictures", tuple(map(Picture, self.sample.images)))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def prompt_length(self) -> int:
        """Number of tokens before the last answer."""
        starts = np.flatnonzero(np.diff(self.answer.astype(np.int8), prepend=0) == 1)
        return int(starts[-1]) if len(starts) else len(self.ids)


def _structured(messages: _Messages) -> list[dict[str, Any]]:
    """Split texts at image marks, as multimodal chat templates want them."""
    turns = []
    for role, text in messages:
        content: list[dict[str, str]] = []
        for number, part in enumerate(text.split(IMAGE)):
            if number:
                content.append({"type": "image"})
            if part.strip():
                content.append({"type": "text", "text": part.strip()})
        turns.append({"role": role, "content": content})
    return turns


def _llava_v1(messages: _Messages, image_token: str, end: str, ask: bool) -> str:
    """Write ``USER: ... ASSISTANT: ...</s>``, the format LLaVA 1.5 was trained on."""
    out = ""
    for role, text in messages:
        text = text.replace(IMAGE, image_token).strip()
        out += {"user": f"USER: {text} ", "assistant": f"ASSISTANT: {text}{end}"}.get(
            role, f"{text} "
        )
    return f"{out}ASSISTANT:" if ask else out


class _Renderer:
    """Messages to text by the processor's template, the tokenizer's, or LLaVA 1.5's."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.image_token: str = getattr(processor, "image_token", IMAGE)
        self.end: str = self.tokenizer.eos_token or ""
        has = processor if getattr(processor, "chat_template", None) else self.tokenizer
        self.templated = has if getattr(has, "chat_template", None) else None
        self.structured = self.templated is processor and processor is not self.tokenizer

    def render(self, talks: Sequence[_Messages], ask: bool) -> list[str]:
        """Render conversations; `ask` adds what comes before an answer."""
        if not talks or self.templated is None:
            return [_llava_v1(t, self.image_token, self.end, ask) for t in talks]
        if self.structured:
            turns = [_structured(t) for t in talks]
        else:
            turns = [
                [{"role": r, "content": x.replace(IMAGE, self.image_token)} for r, x in t]
                for t in talks
            ]
        try:
            made: list[str] = self.templated.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:  # a template can raise anything
            raise DataError(
                f"the chat template of the processor cannot write it ({error}); check"
                " chat_template.jinja, or the order of the turns"
            ) from error
        return made

    def finish(self, text: str) -> str:
        """Cut blanks after an answer and end it as the model ends answers."""
        text = text.rstrip()
        special = tuple(t for t in self.tokenizer.all_special_tokens if t)
        return text if text.endswith(special) else text + self.end

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise; the begin token is added where the text does not bring it."""
        begin = self.tokenizer.bos_token
        brings = bool(begin) and all(t.startswith(begin) for t in texts)
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=not brings)[
            "input_ids"
        ]
        return ids


def _shared(a: list[int], b: list[int]) -> int:
    """Length of the common prefix."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


def _mark_answers(renderer: _Renderer, messages: _Messages) -> tuple[list[int], list[bool]]:
    """Return ids (one per image mark) and which are answers, found by tokenising prefixes."""
    turns = [i for i, m in enumerate(messages) if m.role == "assistant"]
    before = renderer.render([messages[:i] for i in turns], ask=True)
    after = renderer.render([messages[: i + 1] for i in turns], ask=False)
    whole = renderer.render([messages[: turns[-1] + 1]], ask=False)
    texts = [*whole, *after]
    texts = [renderer.finish(t) for t in texts]
    ids, *ends = renderer.tokenize([*texts, *before])
    starts = ends[len(turns) :]
    answer = [False] * len(ids)
    for start, end in zip(starts, ends, strict=False):
        first, last = _shared(ids, start), _shared(ids, end)
        answer[first:last] = [True] * (last - first)
    return ids, answer


def _image_id(processor: Any) -> int:
    named = getattr(processor, "image_token_id", None)
    if named is None:
        named = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
    return int(named)


class _Places:
    """What a processor writes for images; asked once per size."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self._known: dict[Any, tuple[Ids, tuple[int, int, int] | None]] = {}
        self._sizes: dict[Path, tuple[int, int]] = {}

    def of(self, sample: CalibSample) -> tuple[list[Ids], tuple[Picture, ...]]:
        """Return the ids that stand for each image of a sample, and its pictures with grids."""
        ids, pictures = [], []
        for picture in pictures_of(sample.images, self.processor):
            if picture.path not in self._sizes:
                with open_image(picture.path, sample.where) as image:
                    self._sizes[picture.path] = image.size
            key = (self._sizes[picture.path], picture.alone)
            if key not in self._known:
                try:
                    self._known[key] = image_ids(*key, self.processor)
                except ValueError as error:
                    raise DataError(
                        f"{sample.where}: the processor cannot take image {str(picture.path)!r} of"
                        f" {key[0][0]} x {key[0][1]} pixels ({error})"
                    ) from error
            some, grid = self._known[key]
            ids.append(some)
            pictures.append(picture._replace(grid=grid))
        return ids, tuple(pictures)


def _expand(
    ids: list[int], answer: list[bool], image_id: int | None, places: _Places, sample: CalibSample
) -> Encoded:
    """Replace each image mark by the ids that stand for its image."""
    flat, told = np.asarray(ids, np.int64), np.asarray(answer, np.bool_)
    marks = flat == image_id if image_id is not None else np.zeros(len(flat), np.bool_)
    if int(marks.sum()) != len(sample.images):
        raise DataError(
            f"{sample.where}: the chat template writes {int(marks.sum())} image tokens for"
            f" {len(sample.images)} images; check the template of the processor"
        )
    if not told.any():
        raise DataError(f"{sample.where}: the answer has no tokens; write one or leave it out")
    if not sample.images:
        return Encoded(flat, told, marks, sample)
    spans, pictures = places.of(sample)
    times = np.ones(len(flat), np.intp)
    times[marks] = [len(span) for span in spans]
    marked = marks.repeat(times)
    flat = flat.repeat(times)
    flat[marked] = np.concatenate(spans)
    return Encoded(flat, told.repeat(times), marked & (flat == image_id), sample, pictures)


def encode(samples: Sequence[CalibSample], processor: Any) -> list[Encoded]:
    """Turn conversations into tokens, answers marked.

    Prompts go through the processor's chat template where there is one, and are ``USER: ...
    ASSISTANT: ...`` otherwise. Images get the tokens that the processor writes for their size; it
    is asked once per size. Texts that recur are tokenised once.

    Args:
        samples: conversations.
        processor: the model's processor (a tokenizer will do for text alone).

    Raises:
        DataError: an image cannot be read, the template does not fit; names the item.
    """
    renderer, known = _Renderer(processor), dict[_Messages, tuple[list[int], list[bool]]]()
    image_id = _image_id(processor) if any(s.images for s in samples) else None
    places, made = _Places(processor), []
    for sample in samples:
        if sample.messages not in known:
            try:
                known[sample.messages] = _mark_answers(renderer, sample.messages)
            except DataError as error:
                raise DataError(f"{sample.where}: {error}") from error
        made.append(_expand(*known[sample.messages], image_id, places, sample))
    return made
