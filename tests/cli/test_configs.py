from __future__ import annotations

import pytest

from cmibq.cli.main import main
from cmibq.cli.options import read_options
from cmibq.cli.quantize import CONFIGS
from cmibq.cli.yamlfile import list_shipped
from cmibq.recipe import EvalConfig, QuantRecipe

NAMES = list_shipped(CONFIGS)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_file_is_valid_and_described(name: str) -> None:
    cls = EvalConfig if name.endswith("eval") else QuantRecipe
    options = read_options("x", cls, ["--config", name], about="", shipped=CONFIGS)
    assert options.runs
    assert len(NAMES[name]) > 10
    for run in options.runs:
        if isinstance(run, QuantRecipe):
            acts = f"a{run.a_bit}" if run.a_bit < 16 else f"g{run.w_group}"
            assert name == f"llava/{run.method}-w{run.w_bit}{acts}"
            assert run.reweight is (run.method == "mbq")


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--list-configs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert len(lines) == 9


def test_flags_override_a_shipped_file(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["quantize", "--config", "llava/mbq-w3g128", "--w_bit", "2", "--print_config"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "w_bit: 2  # bits per weight" in printed
    assert "reweight: true" in printed
