"""Teacher-forced answers: which are right, and how likely the right one is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.data import Batch, CalibSample, Encoded, Picture, collate, join_pixels, plan
from cmibq.errors import ModelError
from cmibq.eval.questions import Questions
from cmibq.eval.samples import Sample
from cmibq.models import LoadedModel

__all__ = ["ImageFeatures", "score", "unique_ids"]

_FEATURE_BUDGET = 256 << 20
_MAX_TOKENS = 1 << 15
_LOGIT_BUDGET = 64 << 20


class ImageFeatures:
    """Features of images, computed once each as long as they fit into 256 MiB.

    Args:
        loaded: the model.
        questions: where pixels come from.
    """

    def __init__(self, loaded: LoadedModel, questions: Questions) -> None:
        self._loaded, self._questions = loaded, questions
        self._kept: dict[Picture, Tensor] = {}
        self._room = _FEATURE_BUDGET

    def of(self, samples: Sequence[Encoded]) -> list[Tensor] | None:
        """Return [V_i, C] for every image of the samples once, as `collate` numbers them."""
        pictures = list(dict.fromkeys(p for s in samples for p in s.pictures))
        if not pictures:
            return None
        new = [p for p in pictures if p not in self._kept]
        made: dict[Picture, Tensor] = {}
        if new:
            pixels = join_pixels(self._questions.pixels(new))
            features = self._loaded.adapter.image_features(self._loaded.model, pixels)
            made = dict(zip(new, features, strict=True))
        found = [self._kept[p] if p in self._kept else made[p] for p in pictures]
        for picture, values in made.items():
            self._keep(picture, values)
        return found

    def _keep(self, picture: Picture, features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if size <= self._room:
            self._kept[picture] = features.clone()
            self._room -= size


def _logits(head: nn.Module, hidden: Tensor) -> Iterator[Tensor]:
    """Yield float32 logits of [n, C] in pieces of bounded size."""
    rows = max(1, _LOGIT_BUDGET // (4 * int(getattr(head, "out_features", 1 << 17))))
    for start in range(0, len(hidden), rows):
        yield head(hidden[start : start + rows]).float()


def _answers(
    loaded: LoadedModel, batch: Batch, features: Sequence[Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return (log-likelihood, most likely token) of every answer token, row after row."""
    model, adapter = loaded.model, loaded.adapter
    embeds = adapter.embed(model, batch, features)
    # Padding is on the right, where a causal decoder cannot see it: no mask is needed.
    more = adapter.decoder_inputs(model, batch)
    out: Any = adapter.decoder(model)(inputs_embeds=embeds, use_cache=False, **more)
    asked = batch.answer_mask.clone()
    asked[:, 0] = False  # nothing comes before it
    places = asked.nonzero()
    hidden = out.last_hidden_state[places[:, 0], places[:, 1] - 1]
    targets = batch.input_ids[asked]
    likely, best, at = [], [], 0
    for logits in _logits(adapter.lm_head(model), hidden):
        wanted = targets[at : at + len(logits), None]
        likely.append(logits.gather(1, wanted)[:, 0] - logits.logsumexp(1))
        best.append(logits.argmax(1))
        at += len(logits)
    return torch.cat(likely), torch.cat(best)


def _said(item: CalibSample, role: str) -> str:
    return "\n".join(m.text for m in item.messages if m.role == role).replace("<image>", "").strip()


def unique_ids(names: Iterable[str]) -> list[str]:
    """Number names that recur, so that answers can be matched by them: a, a#2, a#3."""
    seen: Counter[str] = Counter()
    made = []
    for name in names:
        seen[name] += 1
        made.append(f"{name}#{seen[name]}" if seen[name] > 1 else name)
    return made


def _sample(
    name: str, encoded: Encoded, likely: Tensor, best: Tensor, right: Tensor, tool: Any
) -> Sample:
    item = encoded.sample
    if not bool(torch.isfinite(likely).all()):
        raise ModelError(
            f"{item.where}: the model gives logits that are NaN or infinite; check its weights"
        )
    raw_image = item.raw.get("image") or ""
    return Sample(
        id=name,
        kind=str(item.raw.get("kind", "")),
        scans=tuple(item.raw.get("scans") or ()),
        question=_said(item, "user"),
        answer=_said(item, "assistant"),
        pred=str(tool.decode(best, skip_special_tokens=True)).strip(),
        correct=bool((best == right).all()),
        logprob=float(likely.double().sum()),
        image=str(raw_image[0] if isinstance(raw_image, list) else raw_image),
    )


@torch.inference_mode()
def score(
    loaded: LoadedModel, questions: Questions, *, batch_size: int = 64, progress: bool = True
) -> list[Sample]:
    """Ask a model all questions, with the right answer so far before each token of the answer.

    An answer counts as right if every token and the end token is the most likely one; greedy
    decoding then gives exactly this answer. Images are encoded once each.

    Args:
        loaded: the model.
        questions: what is asked.
        batch_size: questions per forward pass.
        progress: whether to show a progress bar.

    Returns:
        One sample per question, in the order of `questions`.

    Raises:
        DataError: an image cannot be decoded.
        ModelError: processor and model do not fit together.
    """
    from tqdm.auto import tqdm

    encoded, features = questions.samples, ImageFeatures(loaded, questions)
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    names = unique_ids(s.sample.id for s in encoded)
    answers: list[Sample | None] = [None] * len(encoded)
    bar = tqdm(total=len(encoded), desc="questions", unit="q", disable=not progress, leave=False)
    with bar:
        for rows in plan([len(s) for s in encoded], _MAX_TOKENS, batch_size):
            chosen = [encoded[i] for i in rows]
            batch = collate(chosen, loaded.processor, images=False)
            likely, best = _answers(loaded, batch, features.of(chosen))
            targets = batch.input_ids[batch.answer_mask]
            counts = batch.answer_mask.sum(1).tolist()
            pieces = zip(*(t.split(counts) for t in (likely, best, targets)), strict=True)
            for i, (some, told, right) in zip(rows, pieces, strict=True):
                answers[i] = _sample(names[i], encoded[i], some, told, right, tokenizer)
            bar.update(len(rows))
    return [answer for answer in answers if answer is not None]
