"""What a run has found so far, block by block, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cmibq.errors import DataError
from cmibq.fileio import read_json, write_bytes, write_json
from cmibq.search import GroupResult

__all__ = ["BlockFound", "GroupFound", "Journal"]

_logger = logging.getLogger(__name__)


def _seal(tensors: Mapping[str, Tensor], text: str) -> str:
    """Hash the names and bytes of tensors and a text."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(path: Path, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
    text = json.dumps(notes)
    write_bytes(path, save(tensors, {"notes": text, "sha256": _seal(tensors, text)}))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and notes as they were written, or None where the file is not whole."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            head = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        if _seal(tensors, head["notes"]) != head["sha256"]:
            raise ValueError("the checksum differs")
        notes: dict[str, Any] = json.loads(head["notes"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        _logger.warning("%s cannot be read (%s); the block is done again", path, error)
        return None
    return tensors, notes


@dataclass(frozen=True)
class GroupFound:
    """What was found for one group.

    Args:
        result: scales, losses, exponent.
        errors: layer -> relative error of its output on the calibration tokens.
        modality: weight of an image token against an answer token, where the search had one.
    """

    result: GroupResult
    errors: dict[str, float]
    modality: float | None = None


BlockFound = dict[str, GroupFound]
"""Group name -> what was found."""


class Journal:
    """Files of one run, in a folder of its own beside the output.

    Args:
        folder: where the journals of this output lie.
        fingerprint: of the run; other runs do not see its files.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.own = folder / fingerprint[:32]
        self.scratch = folder / "scratch"

    def _block(self, index: int) -> Path:
        return self.own / f"block-{index:04d}.safetensors"

    def read_block(self, index: int) -> BlockFound | None:
        """Return what was found for a block, or None."""
        kept = _read(self._block(index))
        if kept is None:
            return None
        tensors, notes = kept
        return {
            name: GroupFound(
                GroupResult(tensors.get(name), note["losses"], note["ratio"]),
                note["errors"],
                note.get("modality"),
            )
            for name, note in notes.items()
        }

    def write_block(self, index: int, found: BlockFound) -> None:
        """Keep what was found for a block."""
        notes = {
            n: {
                "losses": g.result.losses,
                "ratio": g.result.ratio,
                "errors": g.errors,
                "modality": g.modality,
            }
            for n, g in found.items()
        }
        tensors = {n: g.result.scales for n, g in found.items() if g.result.scales is not None}
        _write(self._block(index), tensors, notes)

    def rounded(self) -> set[int]:
        """Return the numbers of the blocks whose rounding was kept."""
        paths = self.own.glob("rounded-[0-9][0-9][0-9][0-9].safetensors")
        return {int(path.stem[-4:]) for path in paths if _read(path) is not None}

    def read_rounded(self, index: int) -> tuple[dict[str, Tensor], dict[str, float]] | None:
        """Return the tensors of a rounded block and the errors of its layers, or None."""
        return _read(self.own / f"rounded-{index:04d}.safetensors")

    def write_rounded(
        self, index: int, tensors: dict[str, Tensor], errors: dict[str, float]
    ) -> None:
        """Keep the tensors of a rounded block and the errors of its layers."""
        _write(self.own / f"rounded-{index:04d}.safetensors", tensors, errors)

    def read_ratios(self) -> Tensor | None:
        """Return the weights of image tokens [blocks, kinds], or None."""
        try:
            return torch.tensor(read_json(self.own / "ratios.json"), dtype=torch.float64)
        except DataError:
            return None

    def write_ratios(self, ratios: Tensor) -> None:
        """Keep the weights of image tokens."""
        write_json(self.own / "ratios.json", ratios.tolist())

    def read_choice(self) -> dict[str, Any] | None:
        """Return the bits chosen for a budget, as `write_choice` had them, or None."""
        try:
            made: dict[str, Any] = read_json(self.own / "choice.json")
        except DataError:
            return None
        return made

    def write_choice(self, choice: dict[str, Any]) -> None:
        """Keep the bits chosen for a budget, JSON values."""
        write_json(self.own / "choice.json", choice)

    def remove(self) -> None:
        """Remove all journals of this output; the run is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)
