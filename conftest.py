"""Operators are registered once, also where pytest collects the file of one operator alone."""

from __future__ import annotations

from pathlib import Path

OPS = Path(__file__).parent / "cmibq" / "ops"


def pytest_collect_file(file_path: Path) -> None:
    """Import `cmibq.ops` first: pytest executes a file again whose package has just imported it."""
    if file_path.parent == OPS:
        import cmibq.ops  # noqa: F401
