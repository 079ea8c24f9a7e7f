"""What the documents say is true: examples run, links lead somewhere, commands exist."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.docs import pages
from tests.docs.pages import PAGES, ROOT, Block

OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def run(block: Block, names: dict[str, Any]) -> None:
    if ">>> " not in block.text:
        exec(compile("\n" * block.line + block.text, block.where, "exec"), names)
        return
    test = doctest.DocTestParser().get_doctest(
        block.text, names, block.where, str(block.page), block.line
    )
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    said: list[str] = []
    runner.run(test, out=said.append, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, "".join(said)


@pytest.fixture
def desk(llava_dir: Path, items_path: Path, tmp_path: Path) -> Path:
    """A folder with what the pages speak of: a model of one's own, and items."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my-llava").symlink_to(llava_dir)
    shutil.copytree(items_path.parent, tmp_path / "data")
    for name in ("calibration", "test"):
        shutil.copy(items_path, tmp_path / "data" / f"{name}.json")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_examples_run(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The python blocks of a page run in order, in one namespace, in a folder of their own."""
    if "my-llava" in page.read_text():
        request.getfixturevalue("desk")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "example"}
    for block in pages.blocks(page):
        if block.runs:
            run(block, names)


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_blocks_name_their_language(page: Path) -> None:
    assert [b.where for b in pages.blocks(page) if not b.lang] == []


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for where, target in pages.links(page):
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in pages.anchors(path)):
            dead.append(f"{where}: {target}")
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_make_words_exist(page: Path) -> None:
    text = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY:(.*)$", text, re.MULTILINE)
    known = {word for line in phony for word in line.split()} | {".venv"}
    assert [f"{w}: make {t}" for w, t in pages.make_words(page) if t not in known] == []


class Parsed(Exception):
    """Raised in place of running a command, once its flags are known to be right."""


def parse(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a command and its flags without reading files or running anything."""
    from cmibq.cli import main, options

    if words[0] in ("--help", "--version"):
        return
    assert words[0] in main.COMMANDS, f"no command {words[0]}"
    module = importlib.import_module(f"cmibq.cli.{main.COMMANDS[words[0]][0]}")

    def read(command: str, cls: type[Any], given: Sequence[str], **settings: Any) -> Any:
        own = options._OWN if settings.get("from_file", True) else {}
        extra = {**own, **(settings.get("switches") or {})}
        parser = options._build_parser(command, cls, "", extra)
        options._read_flags(parser, cls, list(given), extra)
        raise Parsed

    def parsed() -> Any:
        raise Parsed

    if words[0] == "doctor":  # reads its flag without the options of the other commands
        monkeypatch.setattr(module, "examine", parsed)
    else:
        monkeypatch.setattr(module, "read_options", read)
    flags = [w for w in words[1:] if w not in (*main._GLOBAL, "--help")]
    with pytest.raises(Parsed):
        module.run(flags)


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_commands_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, words in pages.cmibq_commands(page):
        try:
            parse(words, monkeypatch)
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"{where}: cmibq {' '.join(words)}: {error}") from error


def yaml_keys(block: Block) -> Sequence[Mapping[str, Any]]:
    import yaml

    content = yaml.safe_load(block.text)
    return content if isinstance(content, list) else [content]


@pytest.mark.parametrize("page", PAGES, ids=pages.name)
def test_yaml_examples_are_recipes(page: Path) -> None:
    """A YAML block is a recipe of `quantize`, or of what the line before says."""
    from cmibq.recipe import EvalConfig, QuantRecipe
    from cmibq.recipe.train import TrainRecipe
    from cmibq.recipe.train_calm import CALMRecipe

    for block in pages.blocks(page):
        if block.lang == "yaml":
            kind: type[Any] = EvalConfig if "eval" in block.lead else QuantRecipe
            kind = TrainRecipe if "train" in block.lead else kind
            kind = CALMRecipe if "train calm" in block.lead else kind
            for run_ in yaml_keys(block):
                kind(**run_)


def test_documents_name_no_machine() -> None:
    """No path of a build machine, no package registry."""
    found = [
        f"{pages.name(page)}:{number}: {line.strip()}"
        for page in PAGES
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if re.search(r"(/work|/tmp|/home|/root|/opt)\b|pypi|artifactory|index-url", line)
    ]
    assert found == []


FORMATS = pages.DOCS / "formats.md"


def unnamed(names: Iterable[str]) -> list[str]:
    text = FORMATS.read_text()
    return sorted(name for name in names if f"`{name}`" not in text)


def test_formats_names_every_field_of_files() -> None:
    from cmibq.eval.samples import Sample
    from cmibq.io.manifest import LayerSpec, Manifest

    kinds = (Manifest, LayerSpec, Sample)
    assert unnamed(f.name for kind in kinds for f in dataclasses.fields(kind)) == []


def test_formats_names_every_field_of_reports(tmp_path: Path) -> None:
    from cmibq.report.build import build_report
    from cmibq.report.collect import load_runs
    from cmibq.report.options import ReportOptions
    from tests.report.synthetic import make_runs

    runs = load_runs(make_runs(tmp_path, n_images=4))
    report = build_report(runs, ReportOptions(runs=str(tmp_path)))
    in_rows = {name for row in report["rows"] for name in row}
    assert unnamed({*report, *in_rows} - {"gap_closed_ci", "gap_closed_logprob_ci"}) == []


def test_formats_names_every_field_of_results(
    llava_dir: Path, items_path: Path, tmp_path: Path
) -> None:
    from cmibq.eval import evaluate
    from cmibq.recipe import EvalConfig

    common = {"data_path": str(items_path), "limit": 4, "speed_prompts": 0}
    plain = EvalConfig(
        model_args=f"pretrained={llava_dir}", output_path=str(tmp_path / "float"), **common
    )
    evaluate(plain, progress=False)
    result = evaluate(
        EvalConfig(
            model_args=f"pretrained={llava_dir}", baseline=str(tmp_path / "float"),
            pseudo_quant=True, w_bit=4, w_group=32, **common,
        ),
        progress=False,
    )  # fmt: skip
    ours = {name for name in result if not name.endswith("_stderr") and name != "skipped"}
    assert unnamed(ours) == []
