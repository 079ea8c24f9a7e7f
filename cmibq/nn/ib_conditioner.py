"""What lets the encoder see the question, so that only what is asked is sent."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cmibq.nn.ib_gates import Gates, even
from cmibq.ops.matrix import Matrix, silent

__all__ = ["Conditioner"]


class Conditioner(nn.Module):
    """Change a latent by the task: a gain and a shift per channel, a residual network, and gates.

    ``mu (1 + gain(q)) + shift(q) + W gelu(U x + V q)``, with x and q scaled to a root mean square
    of 1, then `Gates`. Everything starts at 0 and open, so that the layer starts as without a task.

    Args:
        feature_dim: D.
        task_dim: E.
        hidden_dim: width of the residual network.
        latent_dim: L.

    References:
        Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", AAAI 2018.

    Example:
        >>> mu = torch.ones(1, 2, 3)
        >>> torch.equal(Conditioner(4, 5, 8, 3)(mu, torch.ones(1, 2, 4), torch.ones(1, 5)), mu)
        True
    """

    def __init__(self, feature_dim: int, task_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.film = silent(task_dim, 2 * latent_dim)
        self.of_features = Matrix(feature_dim, hidden_dim, bias=False)
        self.of_task = Matrix(task_dim, hidden_dim)
        self.last = silent(hidden_dim, latent_dim)
        self.gates = Gates(feature_dim, task_dim, hidden_dim, latent_dim)

    def forward(
        self, mu: Tensor, features: Tensor, task_embedding: Tensor, gates: Tensor | None = None
    ) -> Tensor:
        """Return the latent of the question, [B, T, L].

        Args:
            mu: [B, T, L], the latent without it.
            features: [B, T, D].
            task_embedding: [B, E].
            gates: bool [B, T + L], in place of the own ones.
        """
        task = even(task_embedding)
        gain, shift = self.film(task)[:, None].chunk(2, -1)
        hidden = self.of_features(even(features)) + self.of_task(task)[:, None]
        residual: Tensor = self.last(torch.nn.functional.gelu(hidden))
        told = mu * (1 + gain) + shift + residual
        sent: Tensor = self.gates(told, features, task_embedding, gates)
        return sent
