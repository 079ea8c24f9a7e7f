"""Answers word by word, as a model generates them."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

import torch

from cmibq.data import CalibSample, collate
from cmibq.eval.generate import prompts
from cmibq.models import LoadedModel

__all__ = ["stream_answer"]


class _Worker:
    """``generate`` in a thread of its own, in the context of the caller; can be stopped."""

    def __init__(
        self, model: Any, streamer: Any, inputs: dict[str, Any], context: contextvars.Context
    ) -> None:
        self.stopped = threading.Event()
        self.error: BaseException | None = None
        self.ended = 0.0
        self._model, self._streamer, self._inputs = model, streamer, inputs
        self.thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)

    def _stop(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.stopped.is_set(), device=input_ids.device)

    def _run(self) -> None:
        from transformers import StoppingCriteriaList

        try:
            with torch.inference_mode():
                self._model.generate(
                    **self._inputs,
                    streamer=self._streamer,
                    stopping_criteria=StoppingCriteriaList([self._stop]),
                )
        except BaseException as error:  # raised again by the reader
            self.error = error
            self._streamer.end()
        finally:
            self.ended = time.perf_counter()

    def end(self) -> None:
        """Let the model stop at the next token and wait for it."""
        self.stopped.set()
        self.thread.join()


def stream_answer(
    loaded: LoadedModel,
    sample: CalibSample,
    *,
    max_new_tokens: int = 128,
    context: contextvars.Context | None = None,
    on_end: Callable[[float], object] | None = None,
    **settings: Any,
) -> Generator[str]:
    """Yield the answer to the last question of a conversation in pieces, as they are made.

    The model runs in a thread of its own. Closing the iterator, or an exception where it is read
    (Ctrl-C), stops the model at its next token.

    Args:
        loaded: the model.
        sample: conversation that ends with a question; see `cmibq.data.CalibSample`.
        max_new_tokens: most tokens of the answer.
        context: where the model runs, with fusions left out for example; None = a copy of that in
            which the first piece is asked for.
        on_end: told how many seconds image, prompt and answer took, without those of the reader.
        settings: further settings of ``generate``; greedy unless they say otherwise.

    Yields:
        Pieces of text, never empty; together the answer without special tokens.

    Raises:
        DataError: an image cannot be read, or the chat template does not fit.

    Example:
        >>> import inspect
        >>> inspect.isgeneratorfunction(stream_answer)
        True
    """
    from transformers import TextIteratorStreamer

    start = time.perf_counter()
    model: Any = loaded.model
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    pad = tokenizer.pad_token_id
    batch = collate(prompts([sample], loaded.processor), loaded.processor, side="left")
    inputs = batch.model_inputs(model.dtype) | {
        "max_new_tokens": max_new_tokens,
        "pad_token_id": 0 if pad is None else pad,
        **({"do_sample": False} | settings),
    }
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    worker = _Worker(model, streamer, inputs, context or contextvars.copy_context())
    worker.thread.start()
    try:
        for text in streamer:
            if text:
                yield text
    finally:
        worker.end()
    if worker.error is not None:
        raise worker.error
    if on_end is not None:
        on_end(worker.ended - start)
