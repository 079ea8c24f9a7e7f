from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fixtures import items_path, llava_dir, llava_gqa_dir

__all__ = ["items_path", "llava_dir", "llava_gqa_dir"]

SKIPS = Path(__file__).with_name("skips.txt")
_skipped: dict[str, str] = {}


@pytest.fixture
def rng() -> np.random.Generator:
    """One seeded generator per test."""
    return np.random.default_rng(20261121)


def _listed(node: str) -> bool:
    rows = [line.split(maxsplit=1) for line in SKIPS.read_text().splitlines()]
    names = [row[0] for row in rows if len(row) == 2 and not row[0].startswith("#")]
    return any(node == n or (n.endswith("*") and node.startswith(n[:-1])) for n in names)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped:
        _skipped[report.nodeid] = str(report.longrepr)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.outcome == "skipped":
        _skipped[report.nodeid] = str(report.longrepr)


def pytest_sessionfinish(session: pytest.Session) -> None:
    unlisted = {n: why for n, why in _skipped.items() if not _listed(n)}
    if unlisted and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for node, why in _skipped.items():
        if not _listed(node):
            terminalreporter.write_line(f"FAILED {node}: skipped but not in tests/skips.txt: {why}")
