from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from cmibq.cli.options import read_options
from cmibq.cli.yamlfile import list_shipped
from cmibq.errors import ConfigError
from cmibq.recipe import QuantRecipe


@dataclass(frozen=True)
class Toy:
    name: str = field(default="", metadata={"help": "what the run is called"})
    w_bit: int = field(default=4, metadata={"help": "bits per weight"})
    alpha: float = 0.5
    reweight: bool = False
    threads: int | None = None
    output_path: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.w_bit <= 8:
            raise ConfigError(f"w_bit is {self.w_bit}; allowed are 1..8")


def read(*words: str, shipped: Path | None = None) -> list[Toy]:
    return read_options("toy", Toy, words, about="Play.", shipped=shipped).runs


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_flags_alone_make_one_run() -> None:
    assert read() == [Toy()]
    made = read("--w_bit", "3", "--alpha=1", "--reweight", "--threads", "2")
    assert made == [Toy(w_bit=3, alpha=1.0, reweight=True, threads=2)]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--reweight"], True),
        (["--reweight", "true"], True),
        (["--reweight", "false"], False),
        (["--no_reweight"], False),
        ([], False),
    ],
)
def test_booleans_stand_alone_or_take_true_and_false(words: list[str], value: bool) -> None:
    assert read(*words)[0].reweight is value


def test_null_is_a_value_where_allowed() -> None:
    assert read("--threads", "null")[0].threads is None


def test_yaml_mapping_and_flags_that_override_it(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "w_bit: 3\nreweight: true\nname: from yaml\n")
    assert read("--config", file) == [Toy(w_bit=3, reweight=True, name="from yaml")]
    assert read("--config", file, "--w_bit", "2", "--reweight", "false") == [
        Toy(w_bit=2, name="from yaml")
    ]


def test_yaml_list_is_several_runs_and_flags_hold_for_all(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "- {name: a, w_bit: 2}\n- {name: b}\n")
    assert read("--config", file, "--alpha", "0.8") == [
        Toy(name="a", w_bit=2, alpha=0.8),
        Toy(name="b", alpha=0.8),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--w_bits", "3"], "unknown flag '--w_bits'; did you mean '--w_bit'?"),
        (["--w_bit", "x"], "--w_bit is 'x'; it must be a whole number"),
        (["--w_bit", "3.5"], "--w_bit is '3.5'; it must be a whole number"),
        (["--threads", "x"], "--threads is 'x'; it must be a whole number or null"),
        (["--w_bit"], "--w_bit needs a value: a whole number"),
        (["--w_bit", "9"], "w_bit is 9; allowed are 1..8"),
        (["--reweight", "maybe"], "--reweight is 'maybe'; it must be true or false"),
        (["--w_b", "3"], "unknown flag '--w_b'"),
        (["stray"], "stray"),
        (["--config", "nowhere.yaml"], "'nowhere.yaml', which does not exist"),
        (["--config", "."], "is '.', a folder"),
    ],
)
def test_wrong_flags_are_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(*words)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w_bits: 3", "a.yaml: unknown key 'w_bits'; did you mean 'w_bit'?"),
        ("3: 4", "a.yaml: unknown key 3"),
        ("w_bit: four", "a.yaml: w_bit is 'four'; it must be a whole number"),
        ("w_bit: [3]", "a.yaml: w_bit is [3]; it must be a whole number"),
        ("w_bit: null", "a.yaml: w_bit is None; it must be a whole number"),
        ("threads: x", "threads is 'x'; it must be a whole number or null"),
        ("name: 3", "a.yaml: name is 3; it must be text"),
        ("reweight: 3", "a.yaml: reweight is 3; it must be true or false"),
        ("w_bit: 9", "a.yaml: w_bit is 9; allowed are 1..8"),
        ("- w_bit: 3\n- {w_bit: 9, name: last}", "a.yaml, run 2 (last): w_bit is 9"),
        ("- w_bit: 3\n- 4", "a.yaml, run 2 is 4; it must be a mapping"),
        ("w_bit: 3\nw_bit: 4", "a.yaml, line 2: key 'w_bit' is repeated"),
        ("w_bit: 3\n  a: b", "a.yaml, line 2"),
        ("w_bit: [3", "a.yaml, line 1"),
        ("", "a.yaml is empty"),
        ("[]", "a.yaml is an empty list"),
        ("just words", "a.yaml is 'just words'; it must be a mapping"),
        ("!!python/object:os.system {}", "a.yaml, line 1"),
        ("- {output_path: x}\n- {output_path: x}", "runs 1 and 2 both have output_path 'x'"),
        ("- {output_path: x}\n- {output_path: ./x/}", "1 and 2 both have output_path './x/'"),
    ],
)
def test_wrong_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError) as caught:
        read("--config", file)
    assert message in str(caught.value)


def test_scales_are_written_once_and_read_often(tmp_path: Path) -> None:
    searched = "- {run_process: true, scale_path: s.pt, output_path: a}\n"
    read_only = "- {scale_path: s.pt, output_path: b}\n"
    file = write(tmp_path / "a.yaml", searched + read_only)
    assert len(read_options("q", QuantRecipe, ["--config", file], about="q").runs) == 2
    file = write(tmp_path / "b.yaml", searched + searched.replace(": a", ": c"))
    with pytest.raises(ConfigError, match=r"runs 1 and 2 both have scale_path 's\.pt'"):
        read_options("q", QuantRecipe, ["--config", file], about="q")


def test_binary_file_is_no_yaml(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="no YAML file"):
        read("--config", str(file))


def test_shipped_files_are_found_by_name(tmp_path: Path) -> None:
    (tmp_path / "llava").mkdir()
    write(tmp_path / "llava" / "small.yaml", "w_bit: 2\n")
    assert list_shipped(tmp_path) == {"llava/small": ""}
    assert read("--config", "llava/small", shipped=tmp_path) == [Toy(w_bit=2)]
    with pytest.raises(ConfigError, match="did you mean 'llava/small'"):
        read("--config", "llava/smal", shipped=tmp_path)


def test_print_config_gives_back_the_same_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("{w_bit: 3, name: 'a: b # c'}", "- {w_bit: 3}\n- {name: b}"):
        file = write(tmp_path / "a.yaml", text)
        options = read_options("toy", Toy, ["--config", file, "--print_config"], about="Play.")
        assert options.done
        printed = capsys.readouterr().out
        assert yaml.safe_load(printed)
        assert read("--config", write(tmp_path / "b.yaml", printed)) == options.runs


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_options("toy", Toy, ["--help"], about="Play.").done
    printed = capsys.readouterr().out
    assert "usage: cmibq toy" in printed
    assert "bits per weight" in printed
    assert "--reweight" in printed


def test_a_field_without_default_must_be_given() -> None:
    @dataclass(frozen=True)
    class Needy:
        runs: str

    with pytest.raises(ConfigError, match="runs is missing; give --runs"):
        read_options("needy", Needy, [], about="Want.")
    made = read_options("needy", Needy, ["--runs", "x"], about="Want.", from_file=False)
    assert made.runs == [Needy("x")]
    with pytest.raises(ConfigError, match="unknown flag '--config'"):
        read_options("needy", Needy, ["--config", "x"], about="Want.", from_file=False)
