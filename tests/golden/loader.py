"""Read golden numbers: arrays made by the published code (see README.md of this folder)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FOLDER", "load", "load_json"]

FOLDER = Path(__file__).resolve().parent


def load(name: str) -> dict[str, np.ndarray]:
    """Return all arrays of one golden file.

    Args:
        name: File name without ``.npz``, for example ``"quantisers"``.

    Returns:
        Array name -> array, as stored (inputs may be float16: their float32 values are exact).

    Raises:
        FileNotFoundError: No such golden file; the message lists those there are.
    """
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.npz"))
        raise FileNotFoundError(f"no golden file {name!r}: expected one of {known}")
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def load_json(name: str) -> Any:
    """Return the content of ``<name>.json`` of this folder."""
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
