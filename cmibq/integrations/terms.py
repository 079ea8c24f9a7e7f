"""The loss terms of one call of a host, over all of its images."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cmibq.integrations.bridge import Bridge
from cmibq.integrations.request import Request
from cmibq.train import Terms, composite
from cmibq.train.peers import world

__all__ = ["terms_of"]


def terms_of(bridge: Bridge, request: Request) -> Terms | None:
    """Return the terms of a call; None where it had no image (and no other process may have one).

    None as well where the bridge shall not find any, which still meets the other processes.

    With several processes each of them calls this once per forward, images or not: terms are means
    over the images of all.

    Args:
        bridge: in training mode.
        request: after the forward.
    """
    if not request.found and world() == 1:
        return None
    if not request.agreed:
        bridge.idle(bridge.agree(0, request))
    if not bridge.find_terms:
        return None
    found = _joined(request.found, request.flat) if request.found else _nothing(bridge)
    target, config = bridge.layer.target_bits, bridge.options.layer
    if not request.flat:
        return composite(config, found, target, alignment=bridge.alignment)
    terms = composite(replace(config, alignment_weight=0.0), found, target)
    if bridge.alignment is None or "text_features" not in found:
        return terms
    pooled = found["pooled"]
    aligned = bridge.alignment(
        pooled,
        found["text_features"],
        text_ids=found["text_ids"],
        mask=found.get("image_mask"),
    )
    total = terms.total + config.alignment_weight * aligned
    return terms._replace(alignment=aligned, total=total)


def _joined(parts: list[dict[str, Tensor]], flat: bool) -> dict[str, Tensor]:
    """Return parts as one: samples are images, or tokens where images are unlike in length."""
    made: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in (_tokens(part) if flat else part).items():
            if name != "task_embedding":
                made.setdefault(name, []).append(value)
    shared = {"bit_allocation", "logvar"}  # [L], where all samples have the same
    return {
        name: values[0] if name in shared and values[0].ndim == 1 else torch.cat(values)
        for name, values in made.items()
    }


def _tokens(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return diagnostics of images [B, T, ..] as those of their tokens; ``pooled`` is per image."""
    made = {"pooled": part["quantised"].mean(1)}
    count, tokens = part["features"].shape[:2]
    for name, value in part.items():
        if value.ndim == 3:
            made[name] = value.flatten(0, 1)
        elif name == "rate":
            made[name] = (value / tokens).repeat_interleave(tokens)
        elif name == "bit_allocation" and value.ndim == 2 and len(value) == count:
            made[name] = value.repeat_interleave(tokens, 0)
        else:
            made[name] = value
    return made


def _nothing(bridge: Bridge) -> dict[str, Tensor]:
    """Return one sample that takes no part in anything."""
    c = bridge.options.layer
    device = bridge.layer.encoder.weight.device
    wide, latent = (torch.zeros(1, 1, n, device=device) for n in (c.feature_dim, c.latent_dim))
    made = {"features": wide, "reconstructed": wide, "mu": latent, "quantised": latent}
    made |= {"logvar": latent, "bit_allocation": latent[0], "rate": latent[0, :, 0]}
    made["image_mask"] = torch.zeros(1, dtype=torch.bool, device=device)
    if c.alignment_weight:
        made["pooled"] = latent[:, 0]
        made["text_features"] = torch.zeros(1, bridge.options.text_width, device=device)
        made["text_ids"] = torch.full((1, 1), -1, device=device)
    return made
