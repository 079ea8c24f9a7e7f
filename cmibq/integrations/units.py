"""Which row of a batch every image, tile and frame of a Hugging Face model belongs to."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError
from cmibq.integrations.bridge import Bridge
from cmibq.integrations.request import Request, Units, pooled, prompt_and_text, runs

__all__ = ["describe", "fill"]

_PIXELS = ("pixel_values", "pixel_values_videos")
_TOKENS = {
    "image": ("image_token_id", "image_token_index"),
    "video": ("video_token_id", "video_token_index"),
}


def _tokens(config: Any, kind: str) -> list[int]:
    found = [getattr(config, name, None) for name in _TOKENS[kind]]
    return [value for value in found if isinstance(value, int)]


def _lengths(grid: Tensor, config: Any) -> tuple[int, ...]:
    """Return tokens per image or video of a grid [U, 3] (frames, rows, columns of patches)."""
    merge = config.vision_config.spatial_merge_size
    return tuple((grid.prod(-1) // merge**2).tolist())


def _tiles(host: Any, inputs: dict[str, Any]) -> list[int] | None:
    """Return the tiles of every image; None where images are not cut up."""
    home = sys.modules[type(host).__module__]
    count = getattr(home, "image_size_to_num_patches", None)
    sizes, images = inputs.get("image_sizes"), inputs.get("batch_num_images")
    if count is None or sizes is None:
        return None
    cut = [True] * len(sizes)
    if images is not None:
        cut = [n == 1 for n in torch.as_tensor(images).tolist() for _ in range(n)]
    config = host.config
    pins, edge = config.image_grid_pinpoints, config.vision_config.image_size
    pairs = zip(sizes, cut, strict=True)
    return [count(size, pins, edge) if whole else 1 for size, whole in pairs]


def _images(host: Any, inputs: dict[str, Any]) -> tuple[int, list[int], tuple[int, ...] | None]:
    """Return how many images there are, the units of each, and the tokens of every unit."""
    pixels, grid = inputs["pixel_values"], inputs.get("image_grid_thw")
    if grid is not None:
        return len(grid), [1] * len(grid), _lengths(grid, host.config)
    tiles = _tiles(host, inputs)
    if tiles is not None:
        return len(tiles), tiles, None
    sizes = inputs.get("image_sizes")
    if sizes is not None:  # Pixtral: patches of all images in one row
        edge = host.config.vision_config.patch_size
        patches = (torch.as_tensor(sizes) // edge).prod(-1).tolist()
        return len(sizes), [1] * len(sizes), tuple(patches)
    return len(pixels), [1] * len(pixels), None


def _videos(host: Any, inputs: dict[str, Any]) -> tuple[int, list[int], tuple[int, ...] | None]:
    """Return the same of videos; a unit is a frame, or a whole video where there is a grid."""
    grid, pixels = inputs.get("video_grid_thw"), inputs["pixel_values_videos"]
    if grid is not None:
        return len(grid), [1] * len(grid), _lengths(grid, host.config)
    return len(pixels), [pixels.shape[1]] * len(pixels), None


def _units(host: Any, inputs: dict[str, Any], ids: Tensor | None, kind: str) -> tuple[Units, bool]:
    """Return the units of a kind, and whether their rows are known."""
    count, each, lengths = (_images if kind == "image" else _videos)(host, inputs)
    per_row = None
    if ids is not None:
        marked = torch.isin(ids, torch.tensor(_tokens(host.config, kind), device=ids.device))
        per_row = runs(marked, count)
    if per_row is None:
        return Units(torch.zeros(sum(each), dtype=torch.int64), lengths), False
    rows = torch.arange(len(per_row), device=per_row.device).repeat_interleave(per_row)
    repeat = torch.tensor(each, device=rows.device)
    return Units(rows.repeat_interleave(repeat), lengths), True


def fill(request: Request, model: nn.Module, bridge: Bridge, inputs: dict[str, Any]) -> None:
    """Write into the request what the inputs of a Hugging Face model say.

    Args:
        request: to fill.
        model: with ``get_input_embeddings``.
        bridge: its bridge.
        inputs: keyword arguments of ``forward`` or ``generate``; ``cm_ibq_task``, task embeddings
            [R, E] or task ids [R], goes before the prompt.

    Raises:
        ModelError: mode is task, and images cannot be told apart by row.
    """
    host: Any = model
    given, ids = inputs.get("cm_ibq_task"), inputs.get("input_ids")
    if all(inputs.get(name) is None for name in _PIXELS):
        return
    kinds = [k for k, name in zip(_TOKENS, _PIXELS, strict=True) if inputs.get(name) is not None]
    found = [_units(host, inputs, ids, kind) for kind in kinds]
    request.kinds = tuple(units for units, _ in found)
    known = all(sure for _, sure in found)
    one_row = given is not None and len(given) == 1
    if bridge.options.layer.mode == "task" and not known and not one_row:
        raise ModelError(
            f"input_ids show no place for {len(found[0][0].rows)} images or tiles; give every image"
            " its tokens in input_ids, which mode 'task' needs to find the question"
        )
    request.embedding = given
    if ids is None:
        return
    tokens = [t for k in _TOKENS for t in _tokens(host.config, k)]
    describe(request, model, bridge, ids, tokens, inputs, known)


def describe(
    request: Request,
    model: nn.Module,
    bridge: Bridge,
    ids: Tensor,
    special: list[int],
    inputs: dict[str, Any],
    known: bool = True,
) -> None:
    """Write what the text says into a request: task embedding, text features.

    Args:
        request: to fill.
        model: with ``get_input_embeddings``.
        bridge: its bridge.
        ids: [R, S].
        special: ids that are no text.
        inputs: ``attention_mask`` and ``labels``, either may be missing.
        known: rows of the units are known.
    """
    host: Any = model
    options, marks = bridge.options, torch.tensor(special, device=ids.device)
    mask, labels = inputs.get("attention_mask"), inputs.get("labels")
    prompt, text = prompt_and_text(ids, marks, mask, labels, options.prompt_tokens)
    table = host.get_input_embeddings()
    if request.embedding is None and options.layer.mode == "task" and options.task == "text":
        request.embedding = pooled(table, ids, prompt)
    if request.embedding is None and options.task == "learned" and options.tasks == 1:
        request.embedding = torch.zeros(len(ids), dtype=torch.int64, device=ids.device)
    if known and options.layer.alignment_weight and (model.training or request.collect):
        request.text = pooled(table, ids, text)
        request.text_ids = ids.where(text, -1)
