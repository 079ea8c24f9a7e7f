"""Two image processors that behave like one."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from cmibq.errors import ConfigError
from cmibq.models.composed import CALMVisionTower
from cmibq.models.packed import DualProcessor, PackedProcessor
from cmibq.recipe.calm import CALMConfig
from tests.models.towers import clip, dino, processors

pytest.importorskip("transformers")


def photo(width: int = 50, height: int = 70) -> Image.Image:
    g = torch.Generator().manual_seed(width)
    noise = torch.randint(0, 256, (height, width, 3), generator=g, dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def test_one_tensor_holds_both() -> None:
    mine, theirs = processors()
    both = PackedProcessor(mine, theirs)
    made = both([photo(), photo(90, 40)], return_tensors="pt")["pixel_values"]
    assert made.shape == (2, 3, 70, 42)
    assert both.crop_size == both.size == {"height": 70, "width": 42}
    assert tuple(both.image_mean) == tuple(mine.image_mean)
    assert tuple(both.image_std) == tuple(mine.image_std)
    alone = theirs(photo(90, 40), return_tensors="pt")["pixel_values"][0]
    tower = CALMVisionTower(clip(), dino(), CALMConfig())
    first, second = tower.pixels(made)
    assert torch.equal(second[1], alone)
    assert torch.equal(first[0], mine(photo(), return_tensors="pt")["pixel_values"][0])
    assert not made[:, :, :28, 28:].any()
    assert torch.equal(both.preprocess(photo(), return_tensors="pt")["pixel_values"], made[:1])
    parts = DualProcessor(mine, theirs)([photo(), photo(90, 40)])["pixel_values"]
    assert torch.equal(parts["anchor"], first)
    assert torch.equal(parts["augmenting"], second)


def test_a_packed_tensor_comes_apart_again() -> None:
    mine, theirs = processors()
    both = PackedProcessor(mine, theirs)
    made = both(photo(), return_tensors="pt")["pixel_values"]
    parts = both.unpack(made)
    for name, one in both.items():
        assert torch.equal(parts[name], one(photo(), return_tensors="pt")["pixel_values"]), name
    with pytest.raises(ConfigError, match=r"\(70, 42\)"):
        both.unpack(made[..., :28, :28])


def test_a_dictionary() -> None:
    mine, theirs = processors()
    both = DualProcessor(mine, theirs)
    assert dict(both) == {"anchor": mine, "augmenting": theirs}
    assert {k: p(photo()) for k, p in both.items()}.keys() == {"anchor", "augmenting"}
    assert both.to_dict() == mine.to_dict()


def test_refusals() -> None:
    mine, theirs = processors()
    both = PackedProcessor(mine, theirs)
    both.check(((28, 28), (42, 42)))
    with pytest.raises(ConfigError, match="augmenting processor makes images of 42 x 42"):
        both.check(((28, 28), (56, 56)))
    with pytest.raises(ConfigError, match="'anyres'"):
        both(photo(), image_aspect_ratio="anyres")
    with pytest.raises(ConfigError, match="augmenting is None"):
        PackedProcessor(mine, None)
    with pytest.raises(ConfigError, match="does not process an image"):
        PackedProcessor(mine, 3)
    theirs.do_center_crop = False
    with pytest.raises(ConfigError, match=r"images of two shapes.*anyres"):
        PackedProcessor(mine, theirs)
    with pytest.raises(AttributeError):
        both.nothing  # noqa: B018
