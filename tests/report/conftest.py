from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.synthetic import make_runs


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of synthetic results; do not write to it."""
    return make_runs(tmp_path_factory.mktemp("runs"))
