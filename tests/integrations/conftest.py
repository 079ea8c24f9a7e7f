from __future__ import annotations

from pathlib import Path

import pytest

from cmibq import io
from tests.eval.packages import write_package


@pytest.fixture(scope="session")
def packed(
    llava_gqa_dir: Path, items_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> io.Package:
    """A package with biases and grouped keys; do not write to it."""
    return write_package(llava_gqa_dir, tmp_path_factory.mktemp("hf") / "w3", items_path, bits=3)
