"""The loss terms of CM-IBQ."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cmibq.recipe.cm_ibq import CMIBQConfig

__all__ = ["Terms", "alignment_loss", "bitrate_loss", "composite", "ib_loss"]

_NATS_PER_BIT = 0.6931471805599453


class Terms(NamedTuple):
    """Loss terms, scalars, before their weights; `total` has them."""

    reconstruction: Tensor
    rate: Tensor
    """In nats per element of the latent."""
    bitrate: Tensor
    alignment: Tensor
    total: Tensor


def ib_loss(recon: Tensor, features: Tensor, rate: Tensor, elements: int) -> tuple[Tensor, Tensor]:
    """Return the mean squared error and the rate in nats per element.

    Args:
        recon: [.., D].
        features: [.., D], what it should be.
        rate: [B] bits per sample.
        elements: elements of the latent of one sample, ``T L``.
    """
    return functional.mse_loss(recon, features), rate.mean() * (_NATS_PER_BIT / elements)


def bitrate_loss(bit_allocation: Tensor, target_bits: float) -> Tensor:
    """Return the squared distance of the mean bits of every row from the target, averaged.

    With a hard budget it is 0.
    """
    return (bit_allocation.mean(-1) - target_bits).square().mean()


def alignment_loss(vision: Tensor, text: Tensor, temperature: Tensor | float) -> Tensor:
    """Return the symmetric InfoNCE loss between paired features; 0 for a batch of one.

    Args:
        vision: [B, L], pooled latents.
        text: [B, L].
        temperature: > 0.

    References:
        van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.
    """
    if len(vision) < 2:
        return (vision.sum() + text.sum()) * 0.0
    logits = functional.normalize(vision, dim=-1) @ functional.normalize(text, dim=-1).mT
    logits = logits / temperature
    pairs = torch.arange(len(vision), device=vision.device)
    there, back = (
        functional.cross_entropy(logits, pairs),
        functional.cross_entropy(logits.mT, pairs),
    )
    return (there + back) / 2


def composite(
    config: CMIBQConfig,
    found: dict[str, Tensor],
    target_bits: float,
    gamma: float | None = None,
) -> Terms:
    """Return all terms of one step.

    Args:
        config: weights.
        found: the diagnostics of the layer by name: reconstructed, features, mu, bit_allocation,
            rate; quantised and text_features for the alignment.
        target_bits: of this step.
        gamma: weight of the bit-rate term; None = the configuration's.
    """
    mu = found["mu"]
    elements = mu[0].numel()
    recon, rate = ib_loss(found["reconstructed"], found["features"], found["rate"], elements)
    bitrate = bitrate_loss(found["bit_allocation"], target_bits)
    alignment = recon.new_zeros(())
    if config.alignment_weight and found.get("text_features") is not None:
        q = found["quantised"]
        pooled = q.mean(1) if q.ndim == 3 else q
        alignment = alignment_loss(pooled, found["text_features"], config.temperature)
    total = config.reconstruction_weight * recon + config.beta * rate
    total = total + (config.gamma if gamma is None else gamma) * bitrate
    return Terms(recon, rate, bitrate, alignment, total + config.alignment_weight * alignment)
