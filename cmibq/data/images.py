"""Images as the model's own processor makes them: pixels, grids and the tokens they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from cmibq.data.base import open_image, to_rgb
from cmibq.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["TILES", "Picture", "Pixels", "image_ids", "join_pixels", "load_images", "pictures_of"]

Pixels = dict[str, Tensor]
"""What a model's forward takes for one image, by name: ``pixel_values`` and its companions."""

_OF_TEXT = frozenset(("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"))
_COUNT = "batch_num_images"
TILES = "num_patches"
"""Rows of ``pixel_values`` that belong to an image where nothing else says so; not for forward."""


class Picture(NamedTuple):
    """An image where it stands in a sample.

    Args:
        path: the file.
        alone: no other image is in its sample; families such as LLaVA-OneVision cut only such
            images into tiles. True for all images of families to which it makes no difference.
        grid: patches in time, height and width, for models whose positions need them.
    """

    path: Path
    alone: bool = True
    grid: tuple[int, int, int] | None = None


def _knows_company(processor: Any) -> bool:
    """Whether an image is processed differently if its sample has several."""
    tool = getattr(processor, "image_processor", None)
    return _COUNT in getattr(tool, "model_input_names", ())


def pictures_of(paths: Iterable[Path], processor: Any) -> tuple[Picture, ...]:
    """Return the images of one sample as its processor will see them, without grids."""
    found = tuple(paths)
    alone = len(found) == 1 or not _knows_company(processor)
    return tuple(Picture(path, alone) for path in found)


def _one(image: Image, alone: bool, processor: Any) -> tuple[NDArray[np.int64], Pixels]:
    """Process one image as the whole processor does, beside a copy of itself if not alone."""
    copies = 1 if alone else 2
    images: list[Any] = [image] * copies
    made = processor(
        text=[processor.image_token * copies],
        images=images if alone else [images],
        return_tensors="pt",
        add_special_tokens=False,
    )
    ids = made["input_ids"][0].numpy().astype(np.int64)
    pixels = {n: v for n, v in made.items() if n not in _OF_TEXT}
    if not alone:
        pixels = {n: v if n == _COUNT else v[: len(v) // 2] for n, v in pixels.items()}
    if list(pixels) == ["pixel_values"]:
        pixels[TILES] = torch.tensor([len(pixels["pixel_values"])])
    return ids[: len(ids) // copies], pixels


def image_ids(
    size: tuple[int, int], alone: bool, processor: Any
) -> tuple[NDArray[np.int64], tuple[int, int, int] | None]:
    """Return what the processor writes for an image, which depends on its size alone.

    Args:
        size: width and height in pixels.
        alone: see `Picture`.
        processor: the model's processor.

    Returns:
        (token ids, marks of start and end included; grid or None, see `Picture`).
    """
    from PIL import Image

    ids, pixels = _one(Image.new("RGB", size), alone, processor)
    grid = pixels.get("image_grid_thw")
    if grid is None:
        return ids, None
    t, h, w = grid[0].tolist()
    return ids, (int(t), int(h), int(w))


def _equal_sizes(pictures: Sequence[Picture], images: list[Image], processor: Any) -> list[Pixels]:
    """Process images by an image processor that makes one size; all of them at once."""
    made = [torch.as_tensor(p) for p in processor.image_processor(images)["pixel_values"]]
    for picture, pixels in zip(pictures, made, strict=True):
        if pixels.shape != made[0].shape:
            raise DataError(
                f"image {str(picture.path)!r} is {tuple(pixels.shape)} after processing,"
                f" {str(pictures[0].path)!r} is {tuple(made[0].shape)}; set do_resize and size in"
                " processor_config.json so that all come out alike"
            )
    return [{"pixel_values": pixels.float()[None]} for pixels in made]


def load_images(pictures: Sequence[Picture], processor: Any) -> list[Pixels]:
    """Load images through the processor.

    Args:
        pictures: which, and how they stand in their samples.
        processor: the model's processor.

    Returns:
        For each image what the model takes for it, float tensors as float32; see `join_pixels`.

    Raises:
        DataError: an image cannot be decoded or processed, or a processor that should make one
            size does not.
    """
    images = []
    for picture in pictures:
        with open_image(picture.path) as image:
            images.append(to_rgb(image))
    names = list(getattr(processor.image_processor, "model_input_names", ()))
    if names == ["pixel_values"] and not getattr(type(processor), "images_kwargs", None):
        return _equal_sizes(pictures, images, processor)
    made = []
    for picture, image in zip(pictures, images, strict=True):
        try:
            pixels = _one(image, picture.alone, processor)[1]
        except ValueError as error:
            raise DataError(f"image {str(picture.path)!r} cannot be processed ({error})") from error
        made.append({n: v.float() if v.is_floating_point() else v for n, v in pixels.items()})
    return made


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first dimension; a shorter second one (tiles) is filled with zeros."""
    if parts[0].ndim >= 5:
        tiles = max(p.shape[1] for p in parts)
        parts = [pad(p, (0, 0) * 3 + (0, tiles - p.shape[1])) for p in parts]
    shapes = {tuple(p.shape[1:]) for p in parts}
    if len(shapes) > 1:
        raise DataError(
            f"images come out of the processor in several sizes ({', '.join(map(str, shapes))});"
            " set do_resize and size in processor_config.json so that all come out alike"
        )
    return torch.cat(list(parts))


def join_pixels(parts: Sequence[Pixels]) -> Pixels:
    """Return what a model takes for several images, in their order.

    Raises:
        DataError: they cannot be put together: the processor does not make one size.

    Example:
        >>> one = {"pixel_values": torch.ones(2, 3), "image_grid_thw": torch.tensor([[1, 1, 2]])}
        >>> two = {"pixel_values": torch.ones(4, 3), "image_grid_thw": torch.tensor([[1, 2, 2]])}
        >>> {name: list(value.shape) for name, value in join_pixels([one, two]).items()}
        {'pixel_values': [6, 3], 'image_grid_thw': [2, 3]}
    """
    return {name: _stack([p[name] for p in parts]) for name in parts[0]} if parts else {}
