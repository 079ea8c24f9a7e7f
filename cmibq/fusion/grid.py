"""Where tokens lie in their image, told from how many there are."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from cmibq.errors import ConfigError

__all__ = ["grid_positions", "square_grid"]

_MOST_PREFIX = 8
_MOST_WAVES = 8  # half waves across an image


def square_grid(tokens: int) -> tuple[int, int]:
    """Return (tokens before the patches, edge of the square of patches).

    The fewest tokens before the patches that leave a square: 0 for SigLIP's 729, 1 for CLIP's 577,
    5 for 261 of DINOv2 with four registers.

    Raises:
        ConfigError: no square with at most eight tokens before it.

    Example:
        >>> square_grid(577), square_grid(261), square_grid(729)
        ((1, 24), (5, 16), (0, 27))
    """
    for prefix in range(min(_MOST_PREFIX, tokens - 1) + 1):
        edge = math.isqrt(tokens - prefix)
        if edge * edge == tokens - prefix:
            return prefix, edge
    raise ConfigError(
        f"{tokens} tokens are no square of patches behind at most {_MOST_PREFIX} others;"
        " simple_add (between towers of unequal grids) and placed_attention need square images,"
        " choose gated_attention"
    )


def grid_positions(tokens: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return sines and cosines of where the patches lie, of the size of normalised features.

    A quarter of the channels each has the sine and the cosine of the row, and of the column, in
    waves of up to four periods per image. Places are shares of the image, so the patches of two
    towers with different grids have like codes where they show the same. Tokens before the patches
    get zeros.

    Args:
        tokens: of a square of patches, see `square_grid`.
        width: C, 4 at least.
        device: where; None = the default one.

    Returns:
        float32 [tokens, C], rows of norm ``sqrt(C)`` where 4 divides C.

    Raises:
        ConfigError: the patches are no square.

    References:
        Vaswani et al., "Attention Is All You Need", NeurIPS 2017, section 3.5, with even steps of
        frequency and in two dimensions.

    Example:
        >>> grid_positions(5, 8).shape, grid_positions(5, 8)[1].square().sum()
        (torch.Size([5, 8]), tensor(8.0000))
    """
    prefix, edge = square_grid(tokens)
    each = width // 4
    place = (torch.arange(edge, device=device) + 0.5) / edge
    waves = math.pi * _MOST_WAVES / max(each, 1) * torch.arange(1, each + 1, device=device)
    one = torch.cat([torch.sin(place[:, None] * waves), torch.cos(place[:, None] * waves)], 1)
    rows, columns = one[:, None].expand(-1, edge, -1), one[None].expand(edge, -1, -1)
    both = torch.cat([rows, columns], 2).flatten(0, 1) * math.sqrt(2)
    return functional.pad(both, (0, width - 4 * each, prefix, 0))
