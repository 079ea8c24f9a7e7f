"""A light head in the language model's place: what tokens tell of every tile, and answers from it.

The reader of the demo takes thousands of steps to be understood through its gradients; a head that
is told digit, hue and sum of every tile takes hundreds, so that many rows can be trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.demo.album import Album
from cmibq.demo.reader import TEXT_WIDTH
from cmibq.demo.scenes import NUMBERS, PLACES
from cmibq.demo.tiles import HUES

__all__ = ["Heads", "answers"]

Logits = dict[str, Tensor]
_SIZES = {"digit": 10, "hue": len(HUES) + 1, "sum": 18}


class Heads(nn.Module):
    """A norm and a linear layer per fact; the tokens of a tile vote."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(TEXT_WIDTH)
        self.facts = nn.ModuleDict({k: nn.Linear(TEXT_WIDTH, n) for k, n in _SIZES.items()})

    def forward(self, tokens: Tensor) -> Logits:
        """Return logits [B, 4, classes] per fact; `tokens` are [B, 4 or 8, D]."""
        seen = self.norm(tokens)
        return {k: head(seen).unflatten(1, (4, -1)).sum(2) for k, head in self.facts.items()}

    def loss(self, tokens: Tensor, album: Album, rows: Tensor) -> Tensor:
        """Return the sum of the facts' mean cross-entropies; no digit is no target."""
        tiles = album.tiles
        wanted = {"digit": tiles.digits, "hue": tiles.hues + 1, "sum": tiles.sums}
        found = self(tokens)
        some = [
            functional.cross_entropy(
                found[k].flatten(0, 1), torch.from_numpy(told)[rows].flatten(), ignore_index=-1
            )
            for k, told in wanted.items()
        ]
        return torch.stack(some).sum()


def _where(text: str, hue: Tensor) -> Tensor:
    """Return the log-probability of every tile [4] that it has the hue that a text ends with."""
    name = text.rstrip("?").split()[-1]
    return hue[:, 1 + tuple(HUES).index(name)].log_softmax(0)


def _said(kind: str, text: str, found: Logits) -> tuple[Tensor, tuple[str, ...]]:
    """Return log-probabilities of answers to a question about one picture, and their words."""
    if kind == "where":
        return _where(text, found["hue"]), PLACES
    if kind in ("digit", "colour"):
        place = PLACES.index(text.split(" at ")[1].rstrip("?"))
        if kind == "digit":
            return found["digit"][place], NUMBERS[:10]
        return found["hue"][place, 1:].log_softmax(0), tuple(HUES)
    if " with " in text:
        row = int(_where(text, found["hue"]).argmax()) // 2
    else:
        row = int("bottom" in text)
    return found["sum"][2 * row : 2 * row + 2].sum(0).log_softmax(0), NUMBERS


@torch.no_grad()
def answers(album: Album, logits: Logits) -> tuple[list[int], list[float]]:
    """Return for every question whether it is answered, and the log-loss of its answer.

    Args:
        album: the pictures.
        logits: [N, 4, classes] per fact, what `Heads` gives for all of them.
    """
    logs = {k: v.log_softmax(-1) for k, v in logits.items()}
    right, losses = list[int](), list[float]()
    for number, asked in enumerate(album.asked):
        found = {k: v[number] for k, v in logs.items()}
        for (text, answer), kind in zip(asked, album.kinds[number], strict=True):
            told, words = _said(kind, text, found)
            at = words.index(answer)
            right.append(int(int(told.argmax()) == at))
            losses.append(-float(told[at]))
    return right, losses
