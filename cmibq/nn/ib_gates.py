"""Gates that shut what a question does not ask for, and how they learn: by trying."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.errors import ModelError
from cmibq.ops.channel_bits import offset
from cmibq.ops.matrix import Matrix, silent

if TYPE_CHECKING:
    from cmibq.nn.ib_layer import IBQuantizedLayer

__all__ = ["Gates", "Trials", "even", "gate_loss", "start_rest_", "try_gates"]

_PLACES = 16
_TINY = 1e-12
_OPEN = 3.0
_CAP = 0.1


def even(x: Tensor) -> Tensor:
    """Return rows scaled to a root mean square of 1; rows of zeros stay.

    Example:
        >>> even(torch.tensor([[3.0, -3.0], [0.0, 0.0]]))
        tensor([[ 1., -1.],
                [ 0.,  0.]])
    """
    return x * (x.square().mean(-1, keepdim=True) + _TINY).rsqrt()


def _places(tokens: int, like: Tensor) -> Tensor:
    """Return what tells the places of tokens apart, [T, 16].

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5.
    """
    at = torch.arange(tokens, device=like.device, dtype=like.dtype)[:, None]
    exponent = torch.arange(_PLACES // 2, device=like.device, dtype=like.dtype) * (2 / _PLACES)
    angle = at * 10000.0**-exponent
    return torch.cat([angle.sin(), angle.cos()], 1)


class Gates(nn.Module):
    """Shut tokens and channels that a task does not ask for.

    A code is sent where the gate of its token and that of its channel are open; what is shut takes
    the code of `rest`, a learned latent, which is the usual code and costs next to nothing. Gates
    of tokens see token, task and place together (``w gelu(U x + V q + P t)``), those of channels
    the task (``F q``). All start open, and no gradient of the layer's result moves them: see
    `try_gates`.

    Args:
        feature_dim: D.
        task_dim: E.
        hidden_dim: width of the network.
        latent_dim: L.

    Example:
        >>> mu = torch.ones(1, 2, 3)
        >>> gates = Gates(4, 5, 8, 3)
        >>> torch.equal(gates(mu, torch.ones(1, 2, 4), torch.ones(1, 5)), mu)
        True
        >>> given = torch.tensor([[True, False, True, True, False]])  # 2 tokens, 3 channels
        >>> gates(mu, torch.ones(1, 2, 4), torch.ones(1, 5), given)[0]
        tensor([[1., 1., 0.],
                [0., 0., 0.]], grad_fn=<SelectBackward0>)
    """

    def __init__(self, feature_dim: int, task_dim: int, hidden_dim: int, latent_dim: int) -> None:
        super().__init__()
        self.channel = silent(task_dim, latent_dim)
        self.of_features = Matrix(feature_dim, hidden_dim, bias=False)
        self.of_task = Matrix(task_dim, hidden_dim)
        self.of_place = Matrix(_PLACES, hidden_dim, bias=False)
        self.last = silent(hidden_dim, 1)
        for layer in (self.channel, self.last):
            nn.init.constant_(layer.bias, _OPEN)
        self.rest = nn.Parameter(torch.zeros(latent_dim))

    def scores(self, features: Tensor, task_embedding: Tensor) -> Tensor:
        """Return the scores of all tokens, then of all channels, [B, T + L]; above 0 is open.

        Both inputs are scaled to a root mean square of 1 first: embeddings of words are often a
        hundred times smaller than features.

        Args:
            features: [B, T, D].
            task_embedding: [B, E].
        """
        task = even(task_embedding)
        hidden = self.of_features(even(features)) + self.of_task(task)[:, None]
        hidden = hidden + self.of_place(_places(features.shape[1], features))
        token: Tensor = self.last(functional.gelu(hidden))[..., 0]
        # Of length 1, so that a step of its optimiser is no jump.
        return torch.cat([token, self.channel(task / math.sqrt(task.shape[1]))], 1)

    def forward(
        self, mu: Tensor, features: Tensor, task_embedding: Tensor, given: Tensor | None = None
    ) -> Tensor:
        """Return the latent that is sent, [B, T, L].

        Args:
            mu: [B, T, L], the latent that has everything.
            features: [B, T, D].
            task_embedding: [B, E].
            given: bool [B, T + L], gates in place of the own ones.
        """
        scores = self.scores(features, task_embedding)
        open_ = (scores > 0 if given is None else given).to(mu.dtype)
        open_ = open_ + 0.0 * scores  # distributed training waits for all gradients
        token, channel = open_.split([mu.shape[1], mu.shape[2]], 1)
        gate = token[:, :, None] * channel[:, None]
        told: Tensor = gate * mu + (1 - gate) * self.rest.to(mu.dtype)
        return told


@torch.no_grad()
def start_rest_(layer: IBQuantizedLayer, features: Tensor, task_embedding: Tensor) -> None:
    """Set what shut channels take: the mean of the latents that have the usual code.

    Call it before gates are tried, when the layer has been trained for a while: a rest that has
    another code than the usual one costs more than what it stands for.

    Args:
        layer: in mode task.
        features: [B, T, D].
        task_embedding: [B, E].

    Raises:
        ModelError: the layer has no gates (mode shared).
    """
    gates, training = _gates(layer), layer.training
    layer.eval()
    codes, bits, _ = layer._coded(features, task_embedding, layer.target_bits)
    mu = layer.encode(features, task_embedding).flatten(0, 1)
    layer.train(training)
    places = (offset(bits) + codes.long()).flatten(0, 1)
    usual = places.mode(0).values
    same = (places == usual).to(mu.dtype)
    gates.rest.copy_((mu * same).sum(0) / same.sum(0))


class Trials(NamedTuple):
    """Gates that were turned, and what was better."""

    features: Tensor
    """[B, T, D]"""
    task_embedding: Tensor
    """[B, E]"""
    turned: Tensor
    """int64 [B, K], which gates, of T + L."""
    open: Tensor
    """[B, K], 1 where open is better."""
    clear: Tensor
    """[B, K] in 0..1, how much."""


def try_gates(
    layer: IBQuantizedLayer,
    features: Tensor,
    task_embedding: Tensor,
    cost: Callable[[Tensor, Tensor], Tensor],
    *,
    weight: float,
    flips: int = 4,
) -> Trials:
    """Return what gates of a layer in mode task should have been.

    Gates are drawn by their probabilities (in every other sample all are open), then some are
    turned one at a time, and whether the sample costs more open or shut is told. No gradient of the
    model is asked: where it is sure of its answer, as it is of most, that gradient says nothing
    about what it reads.

    Args:
        layer: in mode task.
        features: [B, T, D].
        task_embedding: [B, E].
        cost: of reconstructions [N, T, D] and the rows of `features` they belong to, int64 [N]:
            returns [N] nats.
        weight: nats per bit of the rate, as the loss has it.
        flips: gates of tokens that are turned, of every sample, and as many of channels.

    Raises:
        ModelError: the layer has no gates (mode shared).

    References:
        Titsias and Lazaro-Gredilla, "Local Expectation Gradients for Black Box Variational
        Inference", NeurIPS 2015: one variable at a time, all others drawn.
    """
    with torch.no_grad():
        scores = _gates(layer).scores(features, task_embedding)
        drawn, turned, tries = _tries(scores, features.shape[1], flips)
        rows = torch.arange(len(tries), device=tries.device)[:, None]
        which = rows.expand(-1, tries.shape[1]).flatten()
        told = _cost(layer, features, task_embedding, tries.flatten(0, 1), which, cost, weight)
        whole, base, other = told.view(tries.shape[:2]).split([1, 1, turned.shape[1]], 1)
        better_open = torch.where(drawn.gather(1, turned), other - base, base - other)
        # Where neither is about as good as everything open, something else is missing.
        clear = (better_open.abs() / _CAP).clamp(max=1) * (other.minimum(base) < whole + _CAP)
    return Trials(features, task_embedding, turned, (better_open > 0).to(scores.dtype), clear)


def gate_loss(layer: IBQuantizedLayer, trials: Trials) -> Tensor:
    """Return what teaches the gates: each trial is an answer, the clearer the heavier.

    Trials may be used many times, they are dearer than a step of the small network that learns.

    Args:
        layer: in mode task.
        trials: from `try_gates`.

    Raises:
        ModelError: the layer has no gates (mode shared).
    """
    scores = _gates(layer).scores(trials.features, trials.task_embedding)
    return functional.binary_cross_entropy_with_logits(
        scores.gather(1, trials.turned), trials.open, weight=trials.clear
    )


def _gates(layer: IBQuantizedLayer) -> Gates:
    if layer.conditioner is None:
        raise ModelError("only a layer of mode 'task' has gates; this one is of mode 'shared'")
    return layer.conditioner.gates


def _tries(scores: Tensor, tokens: int, flips: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return gates to start from, which of them are turned, and all that is tried.

    Args:
        scores: [B, T + L].
        tokens: T.
        flips: of tokens, and as many of channels.

    Returns:
        bool [B, T + L]; int64 [B, K]; bool [B, 2 + K, T + L]: everything open, the start, and the
        start with one gate turned each.
    """
    drawn = torch.rand_like(scores) < scores.sigmoid()
    drawn[::2] = True
    order = torch.rand_like(scores)
    some = [part.argsort(1)[:, :flips] for part in (order[:, :tokens], order[:, tokens:])]
    turned = torch.cat([some[0], some[1] + tokens], 1)
    tries = drawn[:, None].repeat(1, 2 + turned.shape[1], 1)
    tries[:, 0] = True
    ahead = torch.arange(2, tries.shape[1], device=scores.device)[None].expand_as(turned)
    rows = torch.arange(len(scores), device=scores.device)[:, None]
    tries[rows, ahead, turned] = ~drawn.gather(1, turned)
    return drawn, turned, tries


def _cost(
    layer: IBQuantizedLayer,
    features: Tensor,
    task_embedding: Tensor,
    gates: Tensor,
    which: Tensor,
    cost: Callable[[Tensor, Tensor], Tensor],
    weight: float,
) -> Tensor:
    """Return the cost of rows `which` under gates [N, T + L], as evaluation sends them."""
    training = layer.training
    layer.eval()
    try:
        found = layer.run(features[which], task_embedding[which], gates=gates)
    finally:
        layer.train(training)
    return cost(found.reconstruction, which) + weight * found.rate
