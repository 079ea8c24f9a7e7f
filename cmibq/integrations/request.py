"""What the bottleneck has to know about the call that a host model is answering."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError

__all__ = ["CURRENT", "Collected", "Request", "Units", "pooled", "runs"]

_IGNORED = -100  # label of tokens that are no answers


class Collected(Exception):
    """Raised by a bridge that only collects features, to leave the forward of the host."""


@dataclass(frozen=True)
class Units:
    """Pieces of the projector's output: one per image, tile or frame, in order.

    Args:
        rows: row of the batch that each belongs to, [U] int64.
        lengths: tokens of each; None = all the same, the output is [U, T, D].
    """

    rows: Tensor
    lengths: tuple[int, ...] | None = None

    def fits(self, features: Tensor) -> bool:
        """Return whether features [U, T, D] or [S, D] can be these units."""
        if self.lengths is None:
            return features.ndim == 3 and len(features) == len(self.rows)
        return features[..., 0].numel() == sum(self.lengths)


@dataclass
class Request:
    """One call of a host model, from its inputs to the loss.

    Args:
        embedding: task embedding of every row [R, E], float32, detached; None = not known.
        text: text features of every row [R, E], for the alignment; None = not known.
        text_ids: what they are of, [R, S] token ids, -1 for the rest.
        kinds: units that the projector may be called with: of images, of videos.
        seen: rows with an image [R] bool; None = all. The others take no part in any term.
        collect: take the features and leave (`Collected`).
        scale: weight of the terms in the loss.
        empty: not filled yet.
        given: ``cm_ibq_task`` of the call.
        collected: features, when collecting.
        found: diagnostics of each part that the layer ran on.
        flat: images have unlike numbers of tokens; tokens are averaged, not images.
        agreed: processes have told each other how often their layers run.
    """

    embedding: Tensor | None = None
    text: Tensor | None = None
    text_ids: Tensor | None = None
    kinds: tuple[Units, ...] = ()
    seen: Tensor | None = None
    collect: bool = False
    scale: float = 1.0
    empty: bool = True
    given: Tensor | None = None
    collected: list[dict[str, Tensor]] = field(default_factory=list)
    found: list[dict[str, Tensor]] = field(default_factory=list)
    flat: bool = False
    agreed: bool = False

    def units(self, features: Tensor) -> Units:
        """Return the units of an output of the projector.

        Raises:
            ModelError: it is flat, and no units of the request have its length.
        """
        for units in self.kinds:
            if units.fits(features):
                return units
        if features.ndim == 2 or (self.kinds and self.embedding is not None):
            raise ModelError(
                f"the projector gave features {list(features.shape)}, which are not those of the"
                " images in input_ids; give one image token, or run of them, per image"
            )
        return Units(torch.zeros(len(features), dtype=torch.int64))


CURRENT: ContextVar[Request | None] = ContextVar("cmibq_request", default=None)
"""The request in force; a ContextVar, so that threads do not see each other's."""


@torch.no_grad()
def pooled(embed: nn.Module, ids: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean embedding of the chosen tokens of every row, 0 where there are none.

    Args:
        embed: the host's table; called, not read, so that sharded parameters work.
        ids: [R, S]; those that are not chosen may be no tokens at all.
        chosen: [R, S] bool.

    Example:
        >>> table = nn.Embedding.from_pretrained(torch.eye(3))
        >>> ids = torch.tensor([[0, 2], [-200, 1]])
        >>> pooled(table, ids, ids >= 0).tolist()
        [[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]
    """
    vectors = embed(ids.masked_fill(~chosen, 0)).float()
    share = chosen.to(vectors.dtype)[..., None]
    mean: Tensor = (vectors * share).sum(1) / share.sum(1).clamp(min=1)
    return mean


def prompt_and_text(
    ids: Tensor, special: Tensor, mask: Tensor | None, labels: Tensor | None, tail: int = 0
) -> tuple[Tensor, Tensor]:
    """Return which tokens [R, S] are the prompt, and which are text at all.

    Args:
        ids: [R, S].
        special: ids of image and video tokens.
        mask: attention mask [R, S].
        labels: [R, S]; tokens with a label are answers.
        tail: take the last so many prompt tokens; 0 = all of them.
    """
    text = ~torch.isin(ids, special)
    if mask is not None and mask.shape == ids.shape:
        text = text & mask.bool()
    prompt = text if labels is None else text & (labels == _IGNORED)
    if tail:
        behind = prompt.flip(1).cumsum(1).flip(1)
        prompt = prompt & (behind <= tail)
    return prompt, text


def runs(marked: Tensor, units: int) -> Tensor | None:
    """Return how many of `units` images each row has; None where the marks do not say.

    Args:
        marked: image tokens [R, S] bool; one run, or a share of all tokens, is an image.
        units: images of the batch.

    Example:
        >>> runs(torch.tensor([[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]]).bool(), 3).tolist()
        [2, 1]
    """
    first = marked & ~torch.nn.functional.pad(marked, (1, 0))[:, :-1]
    counts, tokens = first.sum(1), marked.sum(1)
    if int(counts.sum()) == units:
        return counts
    total = int(tokens.sum())
    if total and bool((tokens * units % total == 0).all()):
        return tokens * units // total
    return torch.ones_like(counts) if len(counts) == units else None
