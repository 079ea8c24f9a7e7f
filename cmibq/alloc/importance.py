"""Importance of channels that is counted, not learned: variance, gradients, attention."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cmibq.alloc.bottleneck import IMPORTANCE, ChannelImportance
from cmibq.errors import DataError
from cmibq.ops.peers import all_sum_

__all__ = [
    "FisherImportance",
    "RolloutImportance",
    "VarianceImportance",
    "attention_rollout",
]

_MOMENTUM = 0.05
_LEAST = 1e-12


@IMPORTANCE.register("variance")
class VarianceImportance(ChannelImportance):
    """The running variance of every latent channel, equal on all processes.

    Args:
        feature_dim: not used.
        task_dim: not used.
        hidden_dim: not used.
        latent_dim: L.

    Example:
        >>> importance = VarianceImportance(0, 0, 0, 2)
        >>> importance.observe(torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), None)
        >>> importance(torch.zeros(1, 1, 2), None)
        tensor([[1., 4.]])
    """

    ranged = False
    mean: Tensor
    power: Tensor
    seen: Tensor

    def __init__(self, feature_dim: int, task_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("power", torch.ones(latent_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, task_embedding: Tensor | None) -> Tensor:
        """Return the variance, [1, L]."""
        return (self.power - self.mean.square()).clamp(min=_LEAST)[None].to(features.dtype)

    @torch.no_grad()
    def observe(self, latent: Tensor, attention: Tensor | None = None) -> None:
        """Take the first two moments of the latent [B, T, L] into the running ones."""
        x = latent.detach().flatten(0, -2).float()
        w = torch.ones_like(x[:, :1]) if attention is None else attention.reshape(-1, 1).to(x)
        sums = torch.cat([(w * x).sum(0), (w * x.square()).sum(0), w.sum()[None]])
        sums = all_sum_(sums)
        moments = sums[:-1] / sums[-1].clamp(min=_LEAST)
        good = (sums[-1] > 0) & moments.isfinite().all()
        share = torch.where(self.seen > 0, _MOMENTUM, 1.0) * good
        for old, new in zip((self.mean, self.power), moments.nan_to_num().chunk(2), strict=True):
            old.lerp_(new.to(old.dtype), share.to(old.dtype))
        self.seen.add_(good)


@IMPORTANCE.register("rollout")
class RolloutImportance(VarianceImportance):
    """The variance of channels over tokens, each weighted by the attention that it gets.

    The weights are handed to the layer as ``run(..., attention=[B, T])``, such as
    `attention_rollout` makes; without them all tokens count alike.
    """

    def observe(self, latent: Tensor, attention: Tensor | None = None) -> None:
        """See the latent [B, T, L] and weights of its tokens [B, T].

        Raises:
            DataError: weights of another shape, or below 0.
        """
        if attention is not None and attention.shape != latent.shape[:2]:
            raise DataError(
                f"attention has shape {list(attention.shape)}; give one weight per token,"
                f" {list(latent.shape[:2])}"
            )
        super().observe(latent, attention)


def attention_rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Return how much every token is attended to through all layers, [B, T]; sums of 1.

    Args:
        attentions: [B, H, T, T] of every layer, the first one first; rows sum to 1.

    References:
        Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, section 3:
        ``0.5 A + 0.5 I`` of the mean over heads, multiplied through the layers. Here averaged over
        the tokens that ask.

    Example:
        >>> attention_rollout([torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])])
        tensor([[0.2500, 0.7500]])
    """
    if not attentions:
        raise DataError("attentions is empty; give the attention weights of at least one layer")
    through: Tensor | None = None
    for layer in attentions:
        mean = layer.mean(1)
        mixed = 0.5 * mean + 0.5 * torch.eye(mean.shape[-1], device=mean.device, dtype=mean.dtype)
        through = mixed if through is None else mixed @ through
    assert through is not None
    return through.mean(1)


@IMPORTANCE.register("fisher")
class FisherImportance(ChannelImportance):
    """The running mean of the squared gradient of the loss at every channel, 1 in the mean.

    A backward pass leaves its mean square behind; the next training step takes it in, over all
    processes. Before the first one all channels count alike.

    Args:
        feature_dim: not used.
        task_dim: not used.
        hidden_dim: not used.
        latent_dim: L.

    References:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, eq. 7:
        the diagonal of the empirical Fisher information weighs small changes of an activation.

    Example:
        >>> importance = FisherImportance(0, 0, 0, 2)
        >>> importance.observe_gradient(torch.tensor([[[1.0, 2.0]]]))
        >>> importance.observe(torch.zeros(1, 1, 2), None)
        >>> importance(torch.zeros(1, 1, 2), None)
        tensor([[0.4000, 1.6000]])
    """

    watches_gradients = True
    squares: Tensor
    waiting: Tensor
    seen: Tensor

    def __init__(self, feature_dim: int, task_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("squares", torch.ones(latent_dim))
        self.register_buffer("waiting", torch.full((latent_dim,), -1.0))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, features: Tensor, task_embedding: Tensor | None) -> Tensor:
        """Return the mean squared gradient over that of all channels, [1, L]."""
        return self.squares.clamp(min=_LEAST)[None].to(features.dtype)

    @torch.no_grad()
    def observe_gradient(self, gradient: Tensor) -> None:
        """Keep the mean square of a gradient [B, T, L] until the next step."""
        self.waiting.copy_(gradient.flatten(0, -2).float().square().mean(0))

    @torch.no_grad()
    def observe(self, latent: Tensor, attention: Tensor | None = None) -> None:
        """Take in what the last backward pass left."""
        sums = all_sum_(self.waiting.clone())
        mean = sums / sums.mean()
        good = (sums >= 0).all() & mean.isfinite().all()
        share = torch.where(self.seen > 0, _MOMENTUM, 1.0) * good
        self.squares.lerp_(mean.nan_to_num(), share.to(mean.dtype))
        self.seen.add_(good)
        self.waiting.fill_(-1.0)
