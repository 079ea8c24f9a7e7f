"""Imports point downwards only, hosts are imported inside functions only, files stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS: list[set[str]] = [
    {"errors"},
    {"registry", "fileio"},
    {"_C"},
    {"runtime", "memory"},
    {"strips", "noise"},
    {"products"},
    {"arrays", "ops"},
    {"quant"},
    {"recipe"},
    {"search", "alloc", "fusion"},
    {"nn"},
    {"data", "io"},
    {"models"},
    {"eval"},
    {"ptq", "train"},
    {"integrations"},
    {"report"},
    {"serve", "demo", "launch"},
    {"cli"},
    {"__main__", "main", "main_quant"},
]
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
HOSTS = {"transformers", "llava", "tinyllava", "sam2", "lmms_eval"}
MAY_USE_HOSTS = {"models", "data", "eval", "integrations", "demo"}
NO_TORCH = {
    "errors",
    "registry",
    "fileio",
    "runtime",
    "memory",
    "strips",
    "noise",
    "products",
    "arrays",
    "recipe",
    "report",
}
NO_TORCH |= {"cli"}
FILES = sorted((ROOT / "cmibq").rglob("*.py"))


def unit(path: Path) -> str:
    parts = path.relative_to(ROOT / "cmibq").with_suffix("").parts
    return parts[0]


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return (module, at top level?) of every import that runs (not those for type checkers)."""
    tree = ast.parse(path.read_text())
    checked = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    inner = {
        id(node)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(f)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in checked:
            continue
        if isinstance(node, ast.Import):
            found += [(a.name, id(node) not in inner) for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import of {node.module}"
            found += [(f"{node.module}.{a.name}", id(node) not in inner) for a in node.names]
    return found


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 10


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    own = unit(path)
    if own == "__init__":
        assert not [m for m, top in imports(path) if top and m.startswith("cmibq.")]
        return
    assert own in LEVEL, f"cmibq.{own} has no level; add it to LEVELS"
    for module, _ in imports(path):
        if not module.startswith("cmibq."):
            continue
        other = module.split(".")[1]
        if other in (own, "__version__"):
            continue
        assert other in LEVEL, f"{module} has no level"
        assert LEVEL[other] < LEVEL[own], f"cmibq.{own} imports {module}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_hosts_and_torch_stay_where_they_belong(path: Path) -> None:
    own = unit(path)
    for module, top in imports(path):
        package = module.split(".")[0]
        if package in HOSTS:
            assert own in MAY_USE_HOSTS, f"cmibq.{own} imports {package}"
            assert not top, f"{package} is imported at the top of the file"
        if package == "torch":
            assert not (own in NO_TORCH and top), f"cmibq.{own} imports torch at the top"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.end_lineno:
            doc = ast.get_docstring(node, clean=False)
            length = node.end_lineno - node.lineno + 1 - (len(doc.splitlines()) if doc else 0)
            assert length <= 40, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_state_what_is_public(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    names = [
        t.id
        for n in tree.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        if isinstance(t, ast.Name)
    ]
    public = [
        n
        for n in tree.body
        if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
    ]
    assert not public or "__all__" in names, "public names but no __all__"
