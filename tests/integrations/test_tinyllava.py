"""CALM for TinyLLaVA_Factory, as far as it goes without it: arguments, options, tables."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations import tinyllava
from cmibq.integrations.tinyllava_args import translate
from cmibq.integrations.tinyllava_fork import fork_config, is_fork, read_weights

TOWERS = ["--vision_tower", "calm:clip", "--vision_tower2", "calm:dino"]


def test_the_hosts_spelling_is_passed_on() -> None:
    args = ["--model_name_or_path", "llm", *TOWERS, "--fp16", "--output_dir=o"]
    left, told = translate(args)
    assert left == ["--model_name_or_path", "llm", "--fp16", "--output_dir=o", *TOWERS]
    assert told == {}
    plain = ["--vision_tower2=dino", "--vision_tower=calm:clip"]
    assert translate(plain)[0] == TOWERS


def test_other_scripts_and_towers_are_left_alone() -> None:
    for args in (["--model-path", "o", "--norm", "x"], ["--vision_tower", "clip", "--norm", "x"]):
        assert translate(args) == (args, {})


def test_the_readmes_spelling() -> None:
    towers = ["--vision_tower", "calm", "--model_name_or_path=clip", "--model_name_or_path2=dino"]
    assert translate(towers)[0] == TOWERS
    left, _ = translate([*towers, "--llm_model_name_or_path", "tinyllama"])
    assert left == ["--model_name_or_path", "tinyllama", *TOWERS]
    named = ["--vision_tower=calm", "--anchor_model=clip", "--augmenting_model=dino"]
    left, _ = translate([*named, "--model_name_or_path", "tinyllama"])
    assert left == ["--model_name_or_path", "tinyllama", *TOWERS]


def test_the_readmes_spelling_in_stage_two(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"llm_model_name_or_path": "mine"}')
    towers = ["--vision_tower", "calm", "--model_name_or_path=clip", "--model_name_or_path2=dino"]
    left, _ = translate([*towers, "--pretrained_model_path", str(tmp_path)])
    start = ["--pretrained_model_path", str(tmp_path)]
    assert left == [*start, "--model_name_or_path", "mine", *TOWERS]


def test_options_of_calm() -> None:
    flags = "--composition_layers 2 --fusion_strategy cross_attention --anchor_layers=1,3"
    left, told = translate([*TOWERS, *flags.split(), "--gradient_checkpointing", "True"])
    assert left == ["--gradient_checkpointing", "True", *TOWERS]
    want = {"composition_layers": 2, "fusion_strategy": "cross_attention", "anchor_layers": (1, 3)}
    assert told == want
    with pytest.raises(ConfigError, match=r"--composition_layers is 'two'; give int"):
        translate([*TOWERS, "--composition_layers", "two"])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--vision_tower", "calm:clip"], "no augmenting tower"),
        (["--vision_tower", "calm:", "--vision_tower2", "calm:dino"], "no anchor tower"),
        (["--vision_tower", "calm", "--model_name_or_path2", "dino"], "no anchor tower"),
        (["--vision_tower", "calm", "--model_name_or_path", "clip"], "no augmenting tower"),
        (["--vision_tower", "calm", "--model_name_or_path"], "has no value"),
    ],
)
def test_what_is_refused(args: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translate(args)


def test_a_wrong_configuration_is_refused_before_the_host_is_touched() -> None:
    for config, message in (
        ({"composition_layers": 2}, "give an object with"),
        ({"calm": {"layers": 2}}, "no field 'layers'"),
        ({"cm_ibq": {"stage2_bit": 2}}, "stage2_bit"),
    ):
        with pytest.raises(ConfigError, match=message):
            tinyllava.install(config)


def test_without_the_host_the_next_step_is_told() -> None:
    with pytest.raises(ModelError, match="checkout"):
        tinyllava.install()
    tinyllava.uninstall()


def test_names_of_the_fork() -> None:
    assert is_fork({"vision_model_name_or_path": "calm:clip", "vision_config": {"hidden_size": 1}})
    assert not is_fork({"vision_model_name_or_path": "calm:clip", "vision_config": {"calm": {}}})
    assert not is_fork({"vision_model_name_or_path": "clip"})
    config = fork_config("clip", "dino", (24, 24))
    assert (config.layers_of(23), config.norm) == ((3, 6, 9, 12), "none")
    with pytest.raises(ConfigError, match="12 layers or more"):
        fork_config("clip", "dino", (4, 24))
    with pytest.raises(ConfigError, match="layers 4"):
        fork_config("clip", "dino", (12, 6))


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no weights"):
        read_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"no archive")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin cannot be read"):
        read_weights(tmp_path)


def test_the_table_of_towers_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {"clip": 1, "mof": 2}
    tinyllava._register(table, 3)
    assert list(table) == ["calm", "clip", "mof"], "a path with calm in it must still find clip"
    tinyllava.uninstall()
    assert table == {"clip": 1, "mof": 2}
    theirs: dict[str, Any] = {"calm": 0, "clip": 1}
    tinyllava._register(theirs, 3)
    tinyllava.uninstall()
    assert theirs == {"clip": 1, "calm": 0}


def test_the_tune_type_needs_a_composed_tower() -> None:
    from cmibq.integrations.tinyllava_host import tuning

    wrapped = tuning(lambda self, model: "host")
    recipe = SimpleNamespace(training_arguments=SimpleNamespace(tune_type_vision_tower="calm"))
    with pytest.raises(ConfigError, match="not composed"):
        wrapped(recipe, torch.nn.Linear(1, 1))
    recipe.training_arguments.tune_type_vision_tower = "frozen"
    assert wrapped(recipe, torch.nn.Linear(1, 1)) == "host"


def test_flags_add_to_the_configuration() -> None:
    tinyllava._take({"calm": {"composition_layers": 2, "norm": "none"}})
    tinyllava.translate([*TOWERS, "--composition_layers", "3"])
    assert tinyllava._wanted.options == {"composition_layers": 3, "norm": "none"}
    tinyllava.translate(TOWERS)
    assert tinyllava._wanted.options == {"composition_layers": 2, "norm": "none"}
    with pytest.raises(ConfigError, match="norm is 'pre'"):
        tinyllava.translate([*TOWERS, "--norm", "pre"])
    tinyllava.uninstall()
    assert tinyllava._wanted.options == {}
