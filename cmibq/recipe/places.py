"""Where a named input lies on this machine; nothing is ever downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["hub_folder", "local_path", "placeholder"]

_STAND_IN = re.compile(r"/?(your|path/to)/")


def hub_folder(name: str, kind: str) -> Path | None:
    """Return the folder of a model or data set in the Hugging Face cache of this machine.

    Args:
        name: ``owner/name``, as on the hub.
        kind: ``"model"`` or ``"dataset"``.

    Returns:
        The snapshot that ``main`` stands for, or the only one; None where there is none.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    folder = cache / f"{kind}s--{name.replace('/', '--')}"
    ref = folder / "refs" / "main"
    if ref.is_file():
        found = [folder / "snapshots" / ref.read_text().strip()]
    else:
        found = sorted((folder / "snapshots").glob("*"))
    return found[0] if len(found) == 1 and found[0].is_dir() else None


def local_path(text: str, kind: str) -> Path:
    """Return the file or folder that a text names: a path, or else a name in the cache.

    Args:
        text: a path, or ``owner/name`` of what the Hugging Face cache of this machine holds.
        kind: ``"model"`` or ``"dataset"``.

    Returns:
        The path as given where nothing of either kind is there.

    Example:
        >>> str(local_path("models/llava", "model"))
        'models/llava'
    """
    path = Path(text).expanduser()
    return path if path.exists() else hub_folder(text, kind) or path


def placeholder(text: str) -> bool:
    """Return whether a path is one of those that shipped files leave for the user to fill in.

    Example:
        >>> placeholder("your/coco/caption/path"), placeholder("data/calib.json")
        (True, False)
    """
    return _STAND_IN.match(text) is not None
