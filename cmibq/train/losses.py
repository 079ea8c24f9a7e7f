"""The loss terms of CM-IBQ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cmibq.errors import DataError
from cmibq.ops.sqdiff import mean_square_error
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.train.alignment import AlignmentHead, alignment_loss
from cmibq.train.peers import mean_weights

__all__ = ["NEEDED", "Terms", "bitrate_loss", "composite", "gaussian_rate", "ib_loss"]

NEEDED = ("reconstructed", "features", "mu", "logvar", "bit_allocation")
"""Keys that a ``cm_ibq`` dictionary must have; `composite` names the optional ones."""


class Terms(NamedTuple):
    """Loss terms, scalars, before their weights; `total` has them."""

    reconstruction: Tensor
    rate: Tensor
    """In nats per element of the latent."""
    bitrate: Tensor
    alignment: Tensor
    total: Tensor


def _wide(x: Tensor) -> Tensor:
    """Return half precision as float32: sums of squares and exponents need it."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def ib_loss(
    recon: Tensor, features: Tensor, rate: Tensor, elements: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the mean squared error and the rate in nats per element.

    Args:
        recon: [B, .., D].
        features: [B, .., D], what it should be.
        rate: [B] bits per sample.
        elements: elements of the latent of one sample, ``T L``.
        weights: [B] of samples; None = all alike.

    Raises:
        DataError: shapes that do not fit each other.

    Example:
        >>> import torch
        >>> error, rate = ib_loss(torch.ones(2, 3), torch.zeros(2, 3), torch.tensor([3.0, 6.0]), 3)
        >>> float(error), round(float(rate), 4)  # 1.5 bits per element
        (1.0, 1.0397)
    """
    if recon.shape != features.shape:
        raise DataError(
            f"reconstructed has shape {list(recon.shape)} and features {list(features.shape)}; give"
            " the features that went into the layer"
        )
    if rate.shape != recon.shape[:1]:
        raise DataError(f"rate has shape {list(rate.shape)}; it needs [{len(recon)}], bits of each")
    if weights is None:
        weights = mean_weights(None, len(recon), recon.device)
    # A row that does not count may hold anything: 0 * nan is nan, so it is taken out first.
    kept = weights > 0
    error = mean_square_error(_wide(recon), _wide(features).to(_wide(recon).dtype))
    error = (error.where(kept, error.new_zeros(())) * weights).sum()
    bits = _wide(rate).where(kept, error.new_zeros(()))
    return error, (bits * weights).sum() * (math.log(2.0) / elements)


def gaussian_rate(mu: Tensor, logvar: Tensor) -> Tensor:
    """Return the KL divergence from the standard normal distribution in bits, [B].

    Args:
        mu: [B, .., L].
        logvar: [B, .., L].

    References:
        Alemi et al., "Deep Variational Information Bottleneck", 2017, equation 17; Kingma and
        Welling, "Auto-Encoding Variational Bayes", 2014, appendix B.

    Example:
        >>> import torch
        >>> gaussian_rate(torch.ones(1, 2), torch.zeros(1, 2))  # half a nat each
        tensor([1.4427])
    """
    mu, logvar = _wide(mu), _wide(logvar)
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar)
    return kl.flatten(1).sum(1) / math.log(2.0)


def bitrate_loss(
    bit_allocation: Tensor, target_bits: float, weights: Tensor | None = None
) -> Tensor:
    """Return the squared distance of the mean bits of every row from the target, averaged.

    With a hard budget the mean is the target, and `composite` takes the term as 0.

    Args:
        bit_allocation: [L], or [B, L].
        target_bits: wanted mean.
        weights: [B] of samples; None = all alike.

    Example:
        >>> import torch
        >>> float(bitrate_loss(torch.tensor([3.0, 4.0]), 4.0))
        0.25
    """
    distance = (_wide(bit_allocation).mean(-1) - target_bits).square()
    if weights is None or distance.ndim == 0:
        return distance.mean()
    return (distance * weights).sum()


def _alignment(
    config: CMIBQConfig, found: Mapping[str, Tensor | None], head: AlignmentHead | None
) -> Tensor | None:
    """Return the alignment loss; None where it is off or there is no text."""
    text, quantised = found.get("text_features"), found.get("quantised")
    if not config.alignment_weight or text is None:
        return None
    if quantised is None:
        raise DataError(
            "cm_ibq has text_features but no quantised; return the layer's first output"
        )
    pooled = quantised.flatten(1, -2).mean(1) if quantised.ndim > 2 else quantised
    more = {"text_ids": found.get("text_ids"), "mask": found.get("image_mask")}
    if head is not None:
        loss: Tensor = head(pooled, text, **more)
        return loss
    return alignment_loss(pooled, text, config.temperature, **more)


def composite(
    config: CMIBQConfig,
    found: Mapping[str, Tensor | None],
    target_bits: float,
    gamma: float | None = None,
    *,
    alignment: AlignmentHead | None = None,
) -> Terms:
    """Return all terms of one step.

    Args:
        config: weights.
        found: what the layer gave, by name: reconstructed, features, mu, logvar, bit_allocation;
            rate [B] in bits (needed with the discrete rate). For the alignment: quantised,
            text_features [B, E], and text_ids [B, N] if texts may be alike. image_mask, bool [B]:
            rows without an image take no part in any term.
        target_bits: of this step.
        gamma: weight of the bit-rate term; None = the configuration's. With a hard budget the term
            is 0 whatever its weight.
        alignment: temperature and projection of the alignment; None = those of the configuration.

    Raises:
        DataError: a key is missing, or shapes do not fit.
    """
    missing = [name for name in NEEDED if found.get(name) is None]
    if missing:
        raise DataError(f"cm_ibq has no {', '.join(missing)}; return what the layer gave by name")
    told = {name: value for name, value in found.items() if value is not None}
    mu, rate = told["mu"], told.get("rate")
    if rate is None and config.rate == "discrete":
        raise DataError("cm_ibq has no rate; use layer.run, which returns it")
    if rate is None:
        rate = gaussian_rate(mu, told["logvar"])
    mask = told.get("image_mask")
    if mask is not None and mask.shape != mu.shape[:1]:
        raise DataError(
            f"image_mask has shape {list(mask.shape)}; it needs [{len(mu)}], one per row"
        )
    weights = mean_weights(mask, len(mu), mu.device)
    elements = max(math.prod(mu.shape[1:]), 1)
    recon, rate = ib_loss(told["reconstructed"], told["features"], rate, elements, weights)
    bitrate = recon.new_zeros(())
    if config.budget == "soft":
        bitrate = bitrate_loss(told["bit_allocation"], target_bits, weights)
    aligned = _alignment(config, found, alignment)
    aligned = recon.new_zeros(()) if aligned is None else aligned
    total = config.reconstruction_weight * recon + config.beta * rate
    total = total + (config.gamma if gamma is None else gamma) * bitrate
    return Terms(recon, rate, bitrate, aligned, total + config.alignment_weight * aligned)
