"""The composed demo: three vision-language models in folders, and questions to begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, nn

from cmibq.demo.album import Album, grade_eyes, make_album
from cmibq.demo.model import END, IMAGE, PAD, build_chat_processor
from cmibq.demo.reader import reader_config, tile_tokenizer
from cmibq.demo.tile_models import PARTS, Parts, make_projector, trained_parts, unpack
from cmibq.demo.tiles import SIZE, TILE
from cmibq.demo.tower_pair import MEAN, STD
from cmibq.errors import ModelError
from cmibq.fileio import atomic_dir, read_json, sha256_bytes, write_json
from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.calm import CALMConfig

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = [
    "COMPOSED",
    "TileEyes",
    "composed_eyes",
    "composed_model",
    "image_processors",
    "single_model",
    "write_composed_demo",
]

COMPOSED: Final = PARTS.with_name("tiles_composed.safetensors")
_PRESETS: Final = (
    ("code", True, 2),
    ("new", True, 1),
    ("sum", True, 1),
    ("new", False, 1),
    ("code", False, 1),
)
"""Kind of question, whether the composed model is right, how many; the anchor alone is wrong in
those where it is right, except of "sum", which both can."""


class TileEyes(nn.Module):
    """A composed tower and the projector behind it.

    Args:
        tower: the composed tower.
        projector: behind it.
    """

    def __init__(self, tower: CALMVisionTower, projector: nn.Module) -> None:
        super().__init__()
        self.tower, self.projector = tower, projector

    def forward(self, album: Album, rows: Tensor) -> Tensor:
        """Return the reader's tokens of some pictures, ``(B, 4, D)``."""
        given = {"anchor": album.anchor[rows], "augmenting": album.augmenting[rows]}
        found: Tensor = self.projector(self.tower(given).last_hidden_state[:, 1:])
        return found


def composed_eyes(parts: Parts, path: Path = COMPOSED) -> TileEyes:
    """Return the composed tower and its projector as they ship.

    Args:
        parts: the towers; they become the composed tower's.
        path: file of the fusions and the projector.

    Raises:
        ModelError: the file is missing or does not fit.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise ModelError(
            f"{path} is missing; reinstall cmibq or make it with `python benchmarks/calm/ship.py`"
        )
    with safe_open(path, "pt") as opened:
        config = CALMConfig.from_dict(json.loads(opened.metadata()["calm"]))
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    tower = CALMVisionTower(parts.anchor, parts.augmenting, config)
    unpack(tensors, "fusions", tower.calm_modules)
    projector = make_projector()
    unpack(tensors, "projector", projector)
    return TileEyes(tower.eval(), projector)


def image_processors() -> tuple[Any, Any]:
    """Build the image processors of the anchor and of the augmenting tower."""
    import transformers

    # Since transformers 5 the plain name asks for torchvision; the Pillow one needs nothing.
    pillow = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)
    made = []
    for edge in (SIZE // 2, SIZE):
        made.append(
            pillow(
                do_resize=True,
                size={"height": edge, "width": edge},
                resample=4,  # box: halving is the mean of four pixels
                do_center_crop=False,
                do_convert_rgb=True,
                image_mean=[MEAN] * 3,
                image_std=[STD] * 3,
            )
        )
    return made[0], made[1]


def _llava(tower: Any, projector: nn.Module, reader: Any, tokens: int) -> Any:
    """Return a Hugging Face LLaVA of ready parts."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    number = tile_tokenizer().convert_tokens_to_ids
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=reader_config(),
        image_token_id=number(IMAGE),
        image_seq_length=tokens,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=number(PAD),
        eos_token_id=number(END),
    )
    model: Any = LlavaForConditionalGeneration(config).float()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.language_model.load_state_dict(reader.model.state_dict())
    model.lm_head.load_state_dict(reader.lm_head.state_dict())
    first, last = model.model.multi_modal_projector.linear_1, projector[2]  # type: ignore[index]
    first.load_state_dict(projector[0].state_dict())  # type: ignore[index]
    model.model.multi_modal_projector.linear_2.load_state_dict(last.state_dict())
    return model.eval()


def single_model(parts: Parts, which: str) -> LlavaForConditionalGeneration:
    """Return the vision-language model of one tower.

    Args:
        parts: towers, reader and projectors.
        which: ``"anchor"`` or ``"augmenting"``.
    """
    if which == "anchor":
        made: Any = _llava(parts.anchor, parts.anchor_projector, parts.reader, 4)
    else:
        made = _llava(parts.augmenting, parts.augmenting_projector, parts.reader, 16)
    model: LlavaForConditionalGeneration = made
    return model


def composed_model(
    parts: Parts, path: Path = COMPOSED
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Return the composed vision-language model as it ships, and its processor.

    Args:
        parts: towers, reader and projectors; the towers become the composed tower's.
        path: file of the fusions and the projector.
    """
    from cmibq.integrations.calm import attach_calm

    eyes = composed_eyes(parts, path)
    model = _llava(eyes.tower.detach(), eyes.projector, parts.reader, 4)
    small, large = image_processors()
    processor = build_chat_processor(small, tile_tokenizer(), TILE // 2)
    tower = attach_calm(
        *(model, parts.augmenting, eyes.tower.calm_config),
        processor=processor,
        augmenting_processor=large,
    )
    tower.calm_modules.load_state_dict(eyes.tower.calm_modules.state_dict())
    return model.eval(), processor


def _presets(parts: Parts, folder: Path, eyes: TileEyes) -> list[dict[str, str]]:
    """Choose development pictures, write them and return the questions about them."""
    from PIL import Image

    from cmibq.demo.tile_models import Alone

    album = make_album("dev", 200)
    right, _ = grade_eyes(eyes, parts.reader, album)
    alone = Alone(parts.anchor, parts.anchor_projector, small=True)
    before, _ = grade_eyes(alone, parts.reader, album)
    flat = [(row, at) for row, some in enumerate(album.asked) for at in range(len(some))]
    kinds = [kind for some in album.kinds for kind in some]
    made: list[dict[str, str]] = []
    for kind, good, count in _PRESETS:
        wrong = kind != "sum"
        fits = [
            number
            for number in range(len(flat))
            if kinds[number] == kind
            and bool(right[number]) == good
            and bool(before[number]) != wrong
        ]
        for number in fits[:count]:
            row, at = flat[number]
            name = f"tiles-{row:03d}.png"
            Image.fromarray(album.tiles.pixels[row]).save(folder / name)
            question, answer = album.asked[row][at]
            made.append(
                {"image": name, "question": question, "answer": answer, "note": _note(kind, good)}
            )
    return made


def _note(kind: str, good: bool) -> str:
    told = {
        "sum": "two digits: the anchor's own skill",
        "code": "a digit and a hue that stands for one: needs both towers",
        "new": "a digit and a hue whose pair was never shown in training: needs both towers",
    }[kind]
    return told if good else f"{told}; the composed model is wrong here"


def write_composed_demo(
    folder: Path, *, parts: Path = PARTS, composed: Path = COMPOSED
) -> dict[str, Path]:
    """Write three model folders and questions to begin with; finished ones are left as they are.

    ``anchor/``, ``augmenting/`` and ``composed/`` are Hugging Face LLaVA folders with processors;
    ``composed/`` also has its towers, fusions and ``presets.json`` with pictures.

    Args:
        folder: to write into; made if it is missing.
        parts: file of towers, reader and projectors.
        composed: file of fusions and the composed model's projector.

    Returns:
        The three folders by name.

    Raises:
        ModelError: weights are missing or do not fit.
        StorageError: something cannot be written.
    """
    made_of = sha256_bytes(parts.read_bytes() + composed.read_bytes()) if composed.exists() else ""
    paths = {name: folder / name for name in ("anchor", "augmenting", "composed")}
    for name, path in paths.items():
        marker = path / "demo-model.json"
        if marker.is_file() and read_json(marker).get("fingerprint") == made_of:
            continue
        known = trained_parts(parts)
        model: Any
        with atomic_dir(path, overwrite=True) as filling:
            if name == "composed":
                model, processor = composed_model(known, composed)
            else:
                model, images = single_model(known, name), image_processors()
                processor = build_chat_processor(
                    images[name == "augmenting"], tile_tokenizer(), TILE // 2
                )
            model.save_pretrained(filling)
            processor.save_pretrained(filling)
            if name == "composed":
                found = _presets(known, filling, composed_eyes(trained_parts(parts), composed))
                write_json(filling / "presets.json", found)
            write_json(filling / "demo-model.json", {"fingerprint": made_of})
    return paths
