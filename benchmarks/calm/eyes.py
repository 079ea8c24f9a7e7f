"""Every way of making tokens of a picture: towers stay as they are, the rest is trained."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.calm.heads import Heads
from cmibq.demo.album import Album
from cmibq.demo.reader import TEXT_WIDTH
from cmibq.demo.tile_models import Parts, make_projector, settle_
from cmibq.demo.tower_pair import WIDTH
from cmibq.fusion import build_fusion
from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.calm import CALMConfig

__all__ = ["Beside", "Composed", "Eyes", "Fed", "Late", "Single", "folded"]


def folded(states: Tensor) -> Tensor:
    """Return the four patches of every tile side by side, [B, 17, D] -> [B, 4, 4 D].

    Example:
        >>> folded(torch.arange(17.0).reshape(1, 17, 1))[0, 0].tolist()
        [1.0, 2.0, 5.0, 6.0]
    """
    batch, _, width = states.shape
    grid = states[:, 1:].reshape(batch, 2, 2, 2, 2, width)
    return grid.permute(0, 1, 3, 2, 4, 5).reshape(batch, 4, 4 * width)


class Eyes(nn.Module):
    """Two frozen towers, and heads that read the tokens that rows make of them.

    Args:
        parts: the towers.
        other: the second tower; None = the augmenting tower.
    """

    def __init__(self, parts: Parts, other: Any = None) -> None:
        super().__init__()
        # In a list: towers are not trained, saved or counted here.
        self.towers = [parts.anchor, other or parts.augmenting]
        self.heads = Heads()

    def seen(self, album: Album, which: int) -> tuple[Tensor, ...]:
        """Return the states of all layers of a tower in all pictures, from 0 = the first."""
        tower = self.towers[which]
        small = tower.config.image_size == album.anchor.shape[-1]
        return album.states(tower, album.anchor if small else album.augmenting)

    def last(self, album: Album, which: int) -> Tensor:
        """Return a vector per tile, a tower's last states: [N, 4, D], or [N, 4, 4 D] folded."""
        states = self.seen(album, which)[-1]
        return states[:, 1:] if states.shape[1] == 5 else folded(states)

    def trained(self) -> int:
        """Return the number of parameters that are trained, heads not counted."""
        own = {id(p) for p in self.heads.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in own)


def _projector(features: Tensor, hidden: int = TEXT_WIDTH) -> nn.Sequential:
    """Return a fresh projector for features [N, 4, D], which it sees standardised."""
    made = make_projector(features.shape[2], hidden)
    settle_(made, features)
    return made


class Single(Eyes):
    """One tower and a projector.

    Args:
        parts: see `Eyes`.
        album: training pictures; features are standardised by them.
        which: 0 = the anchor, 1 = the augmenting tower.
        hidden: width inside the projector.
    """

    def __init__(self, parts: Parts, album: Album, *, which: int, hidden: int) -> None:
        super().__init__(parts)
        self.which = which
        self.projector = _projector(self.last(album, which), hidden)

    def forward(self, album: Album, rows: Tensor) -> Tensor:
        """Return the tokens of some pictures, [B, 4, D]."""
        found: Tensor = self.projector(self.last(album, self.which)[rows])
        return found


class Fed(CALMVisionTower):
    """A composed tower whose augmenting tower ran before: `pixel_values` holds their states."""

    def pixels(self, given: Any) -> tuple[Any, Any]:
        """Return the anchor's pixels and the layers of the augmenting tower that are looked at."""
        return given[0], given[1]

    def augment(self, pixels: Any) -> dict[int, Tensor]:
        """Give the layers that are looked at."""
        return dict(zip(self.layers, pixels, strict=True))


class Composed(Eyes):
    """The composed tower and LLaVA's projector.

    Args:
        parts: see `Eyes`.
        album: training pictures; the anchor's features are standardised by them.
        config: where and how they meet.
        other: see `Eyes`.
        shuffle: show the augmenting tower another picture.
    """

    def __init__(
        self,
        parts: Parts,
        album: Album,
        config: CALMConfig,
        other: Any = None,
        *,
        shuffle: bool = False,
    ) -> None:
        super().__init__(parts, other)
        self.shuffle = shuffle
        tower = Fed(copy.deepcopy(self.towers[0]), self.towers[1], config)
        self.fusions, self.fed = tower.calm_modules, [tower]
        self.projector = _projector(self.last(album, 0))

    def fused(self, album: Album, rows: Tensor) -> Tensor:
        """Return the composed tower's patches of some pictures, [B, 4, D]."""
        at = (rows * 7919 + 13) % len(album) if self.shuffle else rows
        states = self.seen(album, 1)
        theirs = tuple(states[of][at] for of in self.fed[0].sources)
        found: Tensor = self.fed[0]((album.anchor[rows], theirs)).last_hidden_state[:, 1:]
        return found

    def forward(self, album: Album, rows: Tensor) -> Tensor:
        """Return the tokens of some pictures, [B, 4, D]."""
        found: Tensor = self.projector(self.fused(album, rows))
        return found


class Late(Eyes):
    """The same fusions, all after the anchor's last layer.

    Args:
        parts: see `Eyes`.
        album: training pictures; the anchor's features are standardised by them.
        config: how they meet.
    """

    def __init__(self, parts: Parts, album: Album, config: CALMConfig) -> None:
        super().__init__(parts)
        self.sources = Fed(copy.deepcopy(self.towers[0]), self.towers[1], config).sources
        self.fusions = nn.ModuleList(build_fusion(WIDTH, WIDTH, config) for _ in self.sources)
        self.projector = _projector(self.last(album, 0))

    def forward(self, album: Album, rows: Tensor) -> Tensor:
        """Return the tokens of some pictures, [B, 4, D]."""
        mine, theirs = self.seen(album, 0)[-1][rows], self.seen(album, 1)
        for fusion, of in zip(self.fusions, self.sources, strict=True):
            mine = fusion(mine, theirs[of][rows])
        found: Tensor = self.projector(mine[:, 1:])
        return found


class Beside(Eyes):
    """Both towers' last states side by side: in channels, or token after token (MoF).

    Args:
        parts: see `Eyes`.
        album: training pictures; features are standardised by them.
        interleave: token after token.
        hidden: width inside the projectors.
    """

    def __init__(self, parts: Parts, album: Album, *, interleave: bool, hidden: int) -> None:
        super().__init__(parts)
        self.interleave = interleave
        every = self._inputs(album, torch.arange(len(album)))
        self.projectors = nn.ModuleList(_projector(features, hidden) for features in every)

    def _inputs(self, album: Album, rows: Tensor) -> list[Tensor]:
        both = [self.last(album, which)[rows] for which in (0, 1)]
        return both if self.interleave else [torch.cat(both, 2)]

    def forward(self, album: Album, rows: Tensor) -> Tensor:
        """Return the tokens of some pictures, [B, 4 or 8, D]; those of a tile follow each other."""
        pairs = zip(self.projectors, self._inputs(album, rows), strict=True)
        return torch.stack([projector(x) for projector, x in pairs], 2).flatten(1, 2)
