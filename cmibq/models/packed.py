"""Two image processors that behave like one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cmibq.errors import ConfigError

__all__ = ["DualProcessor", "PackedProcessor", "both_of", "pack"]


def _size_of(processor: Any, name: str) -> tuple[int, int]:
    """Return the (height, width) that a processor gives to images of any shape.

    Raises:
        ConfigError: it is no image processor, or sizes follow the image.
    """
    from PIL import Image

    seen = set()
    for size in ((97, 61), (40, 80)):
        try:
            made = processor(Image.new("RGB", size), return_tensors="pt")["pixel_values"]
        except Exception as error:  # a processor may raise anything
            raise ConfigError(
                f"{name} is {type(processor).__name__}, which does not process an image ({error});"
                " pass a Hugging Face image processor"
            ) from error
        seen.add(tuple(made.shape[1:]))
    if len(seen) > 1 or len(next(iter(seen))) != 3:
        raise ConfigError(
            f"{name} gives {', '.join(map(str, sorted(seen)))} for images of two shapes; composed"
            " towers take one size (no tiles, no anyres): set crop_size, or size to height and"
            " width"
        )
    return next(iter(seen))[1:]


def pack(mine: Tensor, theirs: Tensor) -> Tensor:
    """Put the anchor's pixels above those of the augmenting tower, zeros to the right.

    Args:
        mine: [n, 3, Ha, Wa].
        theirs: [n, 3, Hb, Wb].

    Returns:
        [n, 3, Ha + Hb, max(Wa, Wb)].

    Example:
        >>> pack(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 3, 3))[0, 0].tolist()[1:3]
        [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    wide = max(mine.shape[-1], theirs.shape[-1])
    parts = [functional.pad(x, (0, wide - x.shape[-1])) for x in (mine, theirs)]
    return torch.cat(parts, dim=-2)


def both_of(given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the pixels of anchor and augmenting tower in a dictionary.

    Raises:
        ConfigError: one is missing, or they are of different batches.
    """
    for name in ("anchor", "augmenting"):
        if name not in given:
            raise ConfigError(
                f"pixel_values lacks {name!r}; give pixels under 'anchor' and 'augmenting'"
            )
    mine, theirs = given["anchor"], given["augmenting"]
    if len(mine) != len(theirs):
        raise ConfigError(
            f"pixel_values has {len(mine)} images for the anchor and {len(theirs)} for the"
            " augmenting tower; give both the same images"
        )
    return mine, theirs


class DualProcessor(Mapping[str, Any]):
    """The processors of both towers, as a dictionary that processes images like one of them.

    Args:
        anchor: image processor of the anchor.
        augmenting: image processor of the augmenting tower.

    Raises:
        ConfigError: one is missing, or gives sizes that follow the image.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, anchor: Any, augmenting: Any) -> None:
        self._parts = {"anchor": anchor, "augmenting": augmenting}
        for name, one in self._parts.items():
            if one is None:
                raise ConfigError(f"{name} is None; a composed tower needs both image processors")
        self.sizes = tuple(_size_of(one, name) for name, one in self._parts.items())

    def __getitem__(self, name: str) -> Any:
        """Return the processor "anchor" or "augmenting"."""
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._parts)

    def __len__(self) -> int:
        """Return two."""
        return len(self._parts)

    def __getattr__(self, name: str) -> Any:
        """Return what the anchor's processor has (``image_mean``, ``do_rescale``, ...)."""
        if name.startswith("__") or name == "_parts":
            raise AttributeError(name)
        return getattr(self._parts["anchor"], name)

    def check(self, sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
        """Refuse processors of other towers.

        Args:
            sizes: (height, width) that the anchor and the augmenting tower take.

        Raises:
            ConfigError: naming the processor and both sizes.
        """
        for name, own, wanted in zip(self._parts, self.sizes, sizes, strict=True):
            if own != tuple(wanted):
                raise ConfigError(
                    f"the {name} processor makes images of {own[0]} x {own[1]} pixels, but the"
                    f" tower takes {wanted[0]} x {wanted[1]}; pass the tower's own processor"
                )

    def preprocess(self, images: Any, **options: Any) -> dict[str, Any]:
        """Return {"pixel_values": {"anchor": ..., "augmenting": ...}} of one image or a list."""
        if options.pop("image_aspect_ratio", None) == "anyres":
            raise ConfigError(
                "image_aspect_ratio is 'anyres'; composed towers take 'square', 'pad'"
            )
        options["return_tensors"] = "pt"
        both = {n: p(images, **options)["pixel_values"] for n, p in self._parts.items()}
        return {"pixel_values": both}

    def __call__(self, images: Any, **options: Any) -> Any:
        """See `preprocess`."""
        return self.preprocess(images, **options)

    def to_dict(self) -> dict[str, Any]:
        """Return the anchor's fields: a folder of a composed model stays one of its host."""
        made: dict[str, Any] = self._parts["anchor"].to_dict()
        return made

    def save_pretrained(self, folder: Any, **options: Any) -> Any:
        """Save the anchor's processor; the other one lies in the composed tower's folder."""
        return self._parts["anchor"].save_pretrained(folder, **options)


class PackedProcessor(DualProcessor):
    """The processors of both towers as one whose ``pixel_values`` are one tensor (see `pack`).

    Hosts that know nothing of composed towers stack, move and convert it like any image. Sizes
    (``crop_size``, ``size``) are those of the packed image, ``image_mean`` and ``image_std`` the
    anchor's.

    Args:
        anchor: image processor of the anchor.
        augmenting: image processor of the augmenting tower.

    Raises:
        ConfigError: one is missing, or gives sizes that follow the image.
    """

    def __init__(self, anchor: Any, augmenting: Any) -> None:
        super().__init__(anchor, augmenting)
        (ha, wa), (hb, wb) = self.sizes
        self.crop_size = {"height": ha + hb, "width": max(wa, wb)}
        self.size = copy.copy(self.crop_size)

    def unpack(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the pixels of "anchor" and "augmenting" of a packed tensor, as views.

        Args:
            pixels: [..., 3, Ha + Hb, max(Wa, Wb)].

        Raises:
            ConfigError: another size.
        """
        (ha, wa), (hb, wb) = self.sizes
        if tuple(pixels.shape[-2:]) != (ha + hb, max(wa, wb)):
            raise ConfigError(
                f"images have {tuple(pixels.shape[-2:])} pixels, but both towers together take"
                f" {(ha + hb, max(wa, wb))}; use the processor that came with the model"
            )
        return {"anchor": pixels[..., :ha, :wa], "augmenting": pixels[..., ha:, :wb]}

    def preprocess(self, images: Any, **options: Any) -> dict[str, Any]:
        """Return {"pixel_values": [n, 3, Ha + Hb, max(Wa, Wb)]} of one image or a list."""
        from transformers import BatchFeature

        both = super().preprocess(images, **options)["pixel_values"]
        made: dict[str, Any] = BatchFeature({"pixel_values": pack(*both.values())})
        return made
