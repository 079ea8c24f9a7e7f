"""The how-to pages are followed word for word in a scratch copy of the source tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import pages
from tests.docs.pages import DOCS, ROOT

PARTS = ("cmibq", "csrc", "tests", "docs", "benchmarks", "setup.py", "pyproject.toml", "README.md")
REUSE = Path(__file__).with_name("reuse_objects.py")
HEAVY = ("__pycache__", "_build", "weights", "*.npz", "images")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the sources, with the extension as it is built here."""
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns(*HEAVY))
        elif (ROOT / part).exists():
            shutil.copy(ROOT / part, tmp_path)
    return tmp_path


def child(tree: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(tree), "CMIBQ_DEBUG": "1"}
    env["CC"] = f"{sys.executable} {REUSE}"  # what the page does not touch is not compiled again
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tree,
        env=env,
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-8000:]}"
    return done.stdout


def insert(path: Path, text: str) -> None:
    """Add lines where a reader would: imports to the imports, prototypes before the #endif."""
    old = path.read_text()
    if path.suffix == ".h":
        head, mark, tail = old.rpartition("\n#endif")
        path.write_text(head + "\n" + text + mark + tail)
    elif path.name in ("__init__.py", "cases.py"):
        lines, added = old.splitlines(), text.splitlines()
        last = max(
            i for i, line in enumerate(lines) if re.match(r"from (cmibq|tests|benchmarks)", line)
        )
        while "(" in lines[last] and ")" not in lines[last]:
            lines[last : last + 2] = [lines[last] + lines[last + 1]]
        close = max(i for i, line in enumerate(lines) if line in ("}", "]", ")"))
        lines[close:close] = [line for line in added if line.startswith(" ")]
        lines[last + 1 : last + 1] = [line for line in added if not line.startswith(" ")]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text(old.rstrip("\n") + "\n" + text)


def follow(page: str, tree: Path) -> list[str]:
    """Write and extend the files a page names; return their paths."""
    touched = []
    for block in pages.blocks(DOCS / "howto" / page):
        if not block.target:
            continue
        verb, path = block.target
        if verb == "New file":
            assert not (tree / path).exists(), f"{block.where}: {path} exists already"
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(block.text)
        else:
            assert (tree / path).exists(), f"{block.where}: there is no {path}"
            insert(tree / path, block.text)
        touched.append(path)
    return touched


def quoted_tests(page: str) -> list[list[str]]:
    """Return the arguments of the pytest commands on a page."""
    lines = pages.commands(DOCS / "howto" / page)
    return [words[3:] for _, words in lines if words[1:3] == ["-m", "pytest"]]


def test_add_a_kernel(tree: Path) -> None:
    assert "csrc/kernels/negate/scalar.c" in follow("add-a-kernel.md", tree)
    assert "negate" not in child(tree, "setup.py", "-q", "build_ext", "--inplace"), "warnings"
    for words in quoted_tests("add-a-kernel.md"):
        assert " passed" in child(tree, "-m", "pytest", *words)
    assert "negate" in child(tree, "benchmarks/run.py", *"--axis negate --quick --out x".split())
    assert " passed" in child(tree, "-m", "pytest", "-q", "tests/benchmarks", "-k", "every_case")
    new = ("tests/ops/test_negate.py", "cmibq/arrays/negate.py", "cmibq/ops/negate.py")
    assert " passed" in child(tree, "-m", "pytest", "-q", *new, "tests/test_layers.py")


def test_add_a_method(tree: Path) -> None:
    assert "cmibq/search/largest.py" in follow("add-a-method.md", tree)
    for words in quoted_tests("add-a-method.md"):
        assert " passed" in child(tree, "-m", "pytest", *words)


def test_add_a_model_family(tree: Path) -> None:
    assert "cmibq/models/vipllava.py" in follow("add-a-model-family.md", tree)
    for words in quoted_tests("add-a-model-family.md"):
        assert " passed" in child(tree, "-m", "pytest", *words)
