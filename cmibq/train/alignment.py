"""InfoNCE between quantised vision and text features, over the batches of all processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.errors import DataError
from cmibq.train.peers import gather_rows, world

__all__ = ["AlignmentHead", "alignment_loss"]

_COLDEST = 0.01
_NEVER = -1e9  # a logit of what takes no part; finite, so that a row without any has gradients


class AlignmentHead(nn.Module):
    """A learned temperature, and a projection where vision and text differ in width.

    It lives outside the layer, because it is not used in every forward and only while training.

    Args:
        latent_dim: L, width of the latent.
        text_dim: E, width of text features.
        temperature: to start with; it is learned, but stays at 0.01 or more.

    Example:
        >>> head = AlignmentHead(8, 4)
        >>> head(torch.zeros(1, 8), torch.ones(1, 4)).item()  # a batch of one
        0.0
    """

    def __init__(self, latent_dim: int, text_dim: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.projection: nn.Linear | None = None
        if latent_dim != text_dim:
            self.projection = nn.Linear(latent_dim, text_dim, bias=False)
            nn.init.orthogonal_(self.projection.weight)

    @property
    def temperature(self) -> Tensor:
        """The temperature in force."""
        return self.log_temperature.clamp(min=math.log(_COLDEST)).exp()

    def forward(
        self,
        vision: Tensor,
        text: Tensor,
        *,
        text_ids: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return `alignment_loss` of vision [B, L] projected, and text [B, E]."""
        if self.projection is not None:
            _check_width("vision", vision, self.projection.in_features)
            vision = self.projection(vision)
        return alignment_loss(vision, text, self.temperature, text_ids=text_ids, mask=mask)


def _check_width(name: str, rows: Tensor, width: int) -> None:
    if rows.ndim != 2 or rows.shape[1] != width:
        raise DataError(f"{name} has shape {list(rows.shape)}; the alignment needs [B, {width}]")


def _check(vision: Tensor, text: Tensor, ids: Tensor | None, mask: Tensor | None) -> None:
    if text.ndim != 2 or vision.ndim != 2 or len(text) != len(vision):
        raise DataError(
            f"vision has shape {list(vision.shape)} and text_features {list(text.shape)}; the"
            " alignment needs one row of each per sample; repeat the text of several images"
        )
    if text.shape[1] != vision.shape[1]:
        raise DataError(
            f"text_features are {text.shape[1]} wide and the latent {vision.shape[1]}; give"
            f" alignment=AlignmentHead({vision.shape[1]}, {text.shape[1]}), or alignment_weight=0"
        )
    for name, rows in (("text_ids", ids), ("image_mask", mask)):
        if rows is not None and len(rows) != len(vision):
            raise DataError(f"{name} has {len(rows)} rows; there are {len(vision)} samples")
    if ids is not None and ids.ndim != 2:
        raise DataError(f"text_ids has shape {list(ids.shape)}; give [{len(vision)}, N] token ids")


def _packed(ids: Tensor) -> Tensor:
    """Return ids with what is negative (padding) at the end: where it was makes no difference."""
    order = (ids < 0).to(torch.int8).argsort(dim=1, stable=True)
    return torch.where(ids < 0, -1, ids).gather(1, order)


def _wide(x: Tensor) -> Tensor:
    """Return half precision as float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _same(ids: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """Return which rows have the same text, bool [N, N], over all processes."""
    if ids is None:
        return torch.eye(rows, dtype=torch.bool, device=device)
    packed = _packed(ids)
    if world() > 1:
        width = torch.tensor([packed.shape[1]], device=device)
        torch.distributed.all_reduce(width, torch.distributed.ReduceOp.MAX)
        packed = functional.pad(packed, (0, int(width) - packed.shape[1]), value=-1)
        packed = gather_rows(packed)
    return (packed[:, None] == packed[None]).all(2)


def _one_way(logits: Tensor, same: Tensor, valid: Tensor) -> Tensor:
    """Return ``-log`` of the probability of all positives together, averaged over valid rows."""
    told = logits.masked_fill(~valid[None], _NEVER)
    positive = told.masked_fill(~same, _NEVER)
    loss = told.logsumexp(1) - positive.logsumexp(1)
    return torch.where(valid, loss, 0.0).sum() / valid.sum().clamp(min=1)


def alignment_loss(
    vision: Tensor,
    text: Tensor,
    temperature: Tensor | float,
    *,
    text_ids: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the symmetric InfoNCE loss between paired features, over all processes.

    Rows with the same token ids are positives of each other: the loss is minus the log of the
    probability of all positives together, the usual one where each row has one. Rows without an
    image (`mask`) or without text (all zeros) take no part. A batch of one gives 0.

    Args:
        vision: [B, L], pooled latents.
        text: [B, L].
        temperature: > 0.
        text_ids: int64 [B, N] token ids; negative ones are padding. None: all texts differ.
        mask: bool [B], rows that have an image.

    Raises:
        DataError: shapes that do not fit each other.

    References:
        van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018;
        several positives: Khosla et al., "Supervised Contrastive Learning", 2020, equation 3.

    Example:
        >>> rows = torch.eye(2)
        >>> round(float(alignment_loss(rows, rows, 1.0)), 4)  # log(1 + 1/e)
        0.3133
        >>> float(alignment_loss(rows, rows, 1.0, text_ids=torch.tensor([[5], [5]])))
        0.0
    """
    _check(vision, text, text_ids, mask)
    told = (text != 0).any(1) if mask is None else (text != 0).any(1) & mask
    pairs = [torch.where(told[:, None], _wide(rows), 0.0) for rows in (vision, text)]
    v, t = (gather_rows(functional.normalize(rows, dim=-1)) for rows in pairs)
    valid = gather_rows(told)
    logits = (v @ t.mT) / temperature
    same = _same(text_ids, len(v), v.device)
    return (_one_way(logits, same, valid) + _one_way(logits.mT, same, valid)) / 2
