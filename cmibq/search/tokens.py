"""How much each calibration token counts in a search."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cmibq.arrays.search import token_weights

__all__ = ["TokenWeights"]


@dataclass(frozen=True)
class TokenWeights:
    """How much each calibration token counts: ``loss = sum_t weight_t * mean_c |d_tc|**p``.

    Args:
        weight: float64 [T], already normalised.
        answer: bool [T], tokens of the answer; None = not known.
        vision: bool [T], tokens of images; None = not known.

    Example:
        >>> answer, vision = torch.tensor([0, 1]).bool(), torch.tensor([1, 0]).bool()
        >>> TokenWeights.modality(answer, vision, ratio=0.5, loss="mae").weight
        tensor([0.2500, 0.5000], dtype=torch.float64)
    """

    weight: Tensor
    answer: Tensor | None = None
    vision: Tensor | None = None

    @classmethod
    def uniform(
        cls, tokens: int, answer: Tensor | None = None, vision: Tensor | None = None
    ) -> TokenWeights:
        """Return weights that make the loss a plain mean over `tokens` tokens."""
        return cls(torch.full((tokens,), 1.0 / max(tokens, 1)).double(), answer, vision)

    @classmethod
    def modality(
        cls, answer: Tensor, vision: Tensor | None, ratio: float, loss: str
    ) -> TokenWeights:
        """Return MBQ's weights: answer tokens count 1, vision tokens `ratio`, others 0.

        ``mae`` divides both by their joint count, ``mse`` each by its own. Without a vision mask
        only answers count. With no token of either kind all tokens count alike.

        Args:
            answer: bool [T].
            vision: bool [T] or None.
            ratio: weight of a vision token against an answer token (mean absolute gradients).
            loss: ``"mae"`` or ``"mse"``.

        References:
            Li et al., "MBQ", CVPR 2025, eq. 6-8; normalisation as in the published code.
        """
        masks = [None if m is None else m.cpu().numpy() for m in (answer, vision)]
        weight = torch.from_numpy(token_weights(masks[0], masks[1], ratio, loss, len(answer)))
        return cls(weight, answer, vision)
