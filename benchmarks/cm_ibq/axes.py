"""Axes that encoders start from: principal ones, and independent ones."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ica", "klt"]


def klt(features: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading principal axes [L, D], their variances [D] and the mean [D].

    Args:
        features: [N, T, D].
        channels: L.
    """
    flat = features.flatten(0, 1).double()
    mean = flat.mean(0)
    values, vectors = torch.linalg.eigh((flat - mean).mT @ (flat - mean) / len(flat))
    axes = vectors.flip(1).mT[:channels]
    return axes.float(), values.flip(0).float(), mean.float()


def ica(features: Tensor, channels: int, steps: int = 100) -> tuple[Tensor, Tensor, Tensor]:
    """Return an encoder [L, D] to independent components, the decoder [D, L] and the mean [D].

    What a picture shows makes few components large and leaves the others where they were, so codes
    of these are cheap; principal axes mix them.

    Args:
        features: [N, T, D].
        channels: L.
        steps: of the fixed-point iteration.

    References:
        Hyvarinen, "Fast and robust fixed-point algorithms for independent component analysis", IEEE
        Transactions on Neural Networks 10 (3), 1999: symmetric, with the kurtosis as contrast.
    """
    axes, values, mean = klt(features, channels)
    scale = values[:channels].sqrt()
    white = ((features.flatten(0, 1) - mean) @ axes.mT) / scale
    turn = torch.eye(channels)
    for _ in range(steps):
        y = white @ turn.mT
        cubes = (y**3).mT @ white / len(white) - 3 * y.square().mean(0)[:, None] * turn
        left, _, right = torch.linalg.svd(cubes)
        turn = left @ right
    return turn @ (axes / scale[:, None]), (axes.mT * scale) @ turn.mT, mean
