"""CALM for TinyLLaVA_Factory, as far as it goes without it: arguments, options, tables."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cmibq.errors import ConfigError, ModelError
from cmibq.integrations import tinyllava
from cmibq.integrations.tinyllava_args import translate
from cmibq.integrations.tinyllava_config import Wanted, describing
from cmibq.integrations.tinyllava_fork import fork_config, is_fork, read_weights
from cmibq.integrations.tinyllava_record import Record

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


def test_deepspeed_is_asked_for_before_training() -> None:
    if importlib.util.find_spec("deepspeed") is not None:
        pytest.skip("deepspeed is here")
    with pytest.raises(ModelError, match="use torchrun"):
        tinyllava.translate([*TOWERS, "--deepspeed", "zero3.json"])


class Host:
    """As much of the host's configuration as the wrapped methods touch."""

    image_aspect_ratio, vision_feature_layer, hidden_size = "square", -2, 64
    vision_model_name_or_path2 = ""

    def __init__(self, anchor: str, augmenting: str = "") -> None:
        self.vision_model_name_or_path = anchor
        self.vision_model_name_or_path2 = augmenting

    def load(self, wanted: Wanted, fields: dict[str, Any] | None = None) -> Any:
        """Call the wrapped method; return ``vision_config``."""
        self.vision_config: Any = None
        describing(lambda self, _: setattr(self, "vision_config", "host"), wanted)(self, fields)
        return self.vision_config


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A CLIP of 14 layers and a DINOv2 of 4, without weights."""
    hf = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("towers")
    shape = {"hidden_size": 32, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    vision = shape | {"num_hidden_layers": 14, "intermediate_size": 48}
    hf.CLIPConfig(vision_config=vision).save_pretrained(root / "clip")
    hf.Dinov2Config(**shape, num_hidden_layers=4).save_pretrained(root / "dino")
    size = {"height": 28, "width": 28}
    processor = {"size": {"shortest_edge": 28}, "crop_size": size}
    for name, kind in (("clip", "CLIPImageProcessor"), ("dino", "BitImageProcessor")):
        fields = {"image_processor_type": kind, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (root / name / "preprocessor_config.json").write_text(json.dumps(fields | processor))
    return root / "clip", root / "dino"


@pytest.fixture
def first(folders: tuple[Path, Path]) -> dict[str, Any]:
    """config.json of a first stage with two composition layers."""
    made = Host(f"calm:{folders[0]}", f"calm:{folders[1]}").load(
        Wanted(calm={"composition_layers": 2, "attention_heads": 4})
    )
    return {"vision_model_name_or_path": "calm:x", "vision_config": json.loads(str_of(made))}


def str_of(config: Any) -> str:
    """Return a configuration as it is saved."""
    text: str = config.to_json_string(use_diff=False)
    return text


def test_a_configuration_describes_both_towers(
    folders: tuple[Path, Path], first: dict[str, Any]
) -> None:
    fields = first["vision_config"]
    assert fields["calm"]["config"]["select_layer"] == -2
    assert fields["calm"]["augmenting"]["model_type"] == "dinov2"
    again = Host("calm:gone", "calm:gone").load(Wanted(), fields)
    assert (again.num_hidden_layers, again.model_name_or_path) == (14, "gone")
    tower = Record.of(again).tower(again)
    assert (tower.layers, tower.sources) == ((6, 12), (1, 3)), "13 layers are read"
    assert Record.of(again).images().size == {"height": 56, "width": 28}
    assert Host("clip").load(Wanted()) == "host"
    with pytest.raises(ModelError, match="no description"):
        Record.of(SimpleNamespace())


def test_a_second_stage_takes_over_what_the_first_had(
    folders: tuple[Path, Path], first: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(f"calm:{folders[0]}", f"calm:{folders[1]}")
    made = host.load(Wanted(start=first))
    assert not caplog.messages
    Host("calm:other", "calm:other").load(Wanted(start=first))
    assert "are not read" in caplog.text
    assert Record.of(made).config.composition_layers == 2
    with pytest.raises(ConfigError, match=r"composition_layers is 4, .* with 2; leave it out"):
        host.load(Wanted(start=first, flags={"composition_layers": 4}))
    host.vision_feature_layer = -1
    with pytest.raises(ConfigError, match="give --mm_vision_select_layer -2"):
        host.load(Wanted(start=first))


def test_a_second_stage_on_a_checkpoint_of_the_fork(folders: tuple[Path, Path]) -> None:
    host = Host(f"calm:{folders[0]}", f"calm:{folders[1]}")
    start = {"vision_model_name_or_path": f"calm:{folders[0]}", "vision_config": {}}
    config = Record.of(host.load(Wanted(start=start))).config
    assert (config.norm, config.anchor_layers, config.select_layer) == ("none", (3, 6, 9, 12), -1)


def test_towers_that_cannot_be_described(folders: tuple[Path, Path]) -> None:
    host = Host(f"calm:{folders[0]}")
    with pytest.raises(ConfigError, match="no augmenting tower"):
        host.load(Wanted())
    host = Host(f"calm:{folders[0]}", f"calm:{folders[1]}")
    host.image_aspect_ratio = "anyres"
    with pytest.raises(ConfigError, match="takes square or pad"):
        host.load(Wanted())


def test_flags_add_to_the_configuration() -> None:
    tinyllava._take({"calm": {"composition_layers": 2, "norm": "none"}})
    tinyllava.translate([*TOWERS, "--composition_layers", "3"])
    assert tinyllava._wanted.options == {"composition_layers": 3, "norm": "none"}
    assert tinyllava.translate(["--feature_cache=out/features", *TOWERS]) == TOWERS
    assert tinyllava._wanted.cache == "out/features"
    assert tinyllava._wanted.options == {"composition_layers": 2, "norm": "none"}
    with pytest.raises(ConfigError, match="norm is 'pre'"):
        tinyllava.translate([*TOWERS, "--norm", "pre"])
    tinyllava.uninstall()
    assert tinyllava._wanted.options == {}
