"""Opening whatever can be talked to: a model folder, a composed model, a package."""

from __future__ import annotations

import os
from pathlib import Path

from cmibq.eval import open_model
from cmibq.models import LoadedModel

__all__ = ["open_any"]


def open_any(path: str | os.PathLike[str]) -> LoadedModel:
    """Load a Hugging Face model folder, a composed model or a cmibq package.

    Args:
        path: the folder.

    Raises:
        ModelError: the folder is missing, or holds no vision-language model.
        PackageError: a package is truncated, altered or newer than this library.
    """
    return open_model(Path(path).expanduser())[0]
