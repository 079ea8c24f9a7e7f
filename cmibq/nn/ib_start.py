"""Where the matrices of an information-bottleneck layer start: axes of the features."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cmibq.errors import ConfigError, DataError
from cmibq.nn.ib_layer import IBQuantizedLayer

__all__ = ["Axes", "independent_axes", "principal_axes", "start_from_"]

_ITERATIONS = 100
_SMALL = 1e-12


class Axes(NamedTuple):
    """A linear map of features to channels, and back."""

    encoder: Tensor
    """float32 [L, D]."""
    decoder: Tensor
    """float32 [D, L]."""
    mean: Tensor
    """float32 [D]: zero in all channels."""
    variance: Tensor
    """float32 [L] of the channels."""


def _rows(features: Tensor, channels: int) -> Tensor:
    """Return features as float64 [N, D]; see `principal_axes` for what is refused."""
    rows = features.detach().flatten(0, -2).double()
    if not 1 <= channels <= rows.shape[1] or len(rows) < 2:
        raise DataError(
            f"{len(rows)} features of width {rows.shape[1]} for {channels} channels; give at least"
            " 2, and channels from 1 to the width"
        )
    if not bool(rows.sum().isfinite()):
        raise DataError("features hold NaN or infinity; look at what computed them")
    return rows


def principal_axes(features: Tensor, channels: int) -> Axes:
    """Return the leading principal axes (KLT), orthonormal, by falling variance.

    Args:
        features: [.., D].
        channels: L, at most D.

    Raises:
        DataError: fewer than two features, NaN or infinity, more channels than features are wide.

    Example:
        >>> features = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> axes = principal_axes(features, 1)
        >>> axes.encoder.abs(), axes.variance
        (tensor([[1., 0.]]), tensor([4.5000]))
    """
    rows = _rows(features, channels)
    mean = rows.mean(0)
    values, vectors = torch.linalg.eigh((rows - mean).mT @ (rows - mean) / len(rows))
    found = vectors.flip(1).mT[:channels]
    variance = values.flip(0)[:channels].clamp(min=0)
    return Axes(found.float(), found.mT.float().contiguous(), mean.float(), variance.float())


def independent_axes(features: Tensor, channels: int) -> Axes:
    """Return independent components within the leading principal axes, each of variance one.

    Principal axes mix what a scene holds: every object moves every channel. Independent components
    keep causes apart, so that most channels are where they usually are and cost next to nothing.

    Args:
        features: [.., D].
        channels: L, at most D.

    Raises:
        DataError: see `principal_axes`.

    References:
        Hyvarinen, "Fast and robust fixed-point algorithms for independent component analysis", IEEE
        Transactions on Neural Networks 10 (3), 1999: symmetric, kurtosis as the contrast.

    Example:
        >>> axes = independent_axes(torch.eye(3).repeat(4, 1), 2)
        >>> torch.allclose(axes.encoder @ axes.decoder, torch.eye(2), atol=1e-5)
        True
    """
    found = principal_axes(features, channels)
    scale = found.variance.double().clamp(min=_SMALL).sqrt()
    rows = _rows(features, channels) - found.mean.double()
    white = rows @ found.encoder.double().mT / scale
    turn = torch.eye(channels, dtype=torch.float64, device=white.device)
    for _ in range(_ITERATIONS):
        y = white @ turn.mT
        pulls = (y**3).mT @ white / len(white) - 3 * y.square().mean(0)[:, None] * turn
        left, _, right = torch.linalg.svd(pulls)
        turn = left @ right
    encoder = turn @ (found.encoder.double() / scale[:, None])
    decoder = (found.decoder.double() * scale) @ turn.mT
    return Axes(encoder.float(), decoder.float(), found.mean, torch.ones_like(found.variance))


_AXES = {"independent": independent_axes, "principal": principal_axes}


@torch.no_grad()
def start_from_(
    layer: IBQuantizedLayer, features: Tensor, *, axes: str = "independent"
) -> IBQuantizedLayer:
    """Start encoder and decoder from axes of features; call it before training.

    The rows of the encoder are then small where features vary much, so train it with a learning
    rate about a tenth of the decoder's.

    Args:
        layer: not trained yet; returned.
        features: [.., D], some thousand tokens of training data.
        axes: ``"independent"`` or ``"principal"``.

    Raises:
        ConfigError: another name of axes.
        DataError: see `principal_axes`.
    """
    if axes not in _AXES:
        raise ConfigError(f"axes is {axes!r}; allowed are {', '.join(map(repr, _AXES))}")
    found = _AXES[axes](features, layer.config.latent_dim)
    layer.encoder.weight.copy_(found.encoder)
    layer.encoder.bias.copy_(-(found.encoder @ found.mean))
    layer.decoder.weight.copy_(found.decoder)
    layer.decoder.bias.copy_(found.mean)
    return layer
