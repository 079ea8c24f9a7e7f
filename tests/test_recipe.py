from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from cmibq.errors import ConfigError
from cmibq.recipe import EvalConfig, QuantRecipe, fingerprint, parse_model_args


@pytest.mark.parametrize("cls", [QuantRecipe, EvalConfig])
def test_every_field_has_a_default_and_help(cls: type) -> None:
    for f in dataclasses.fields(cls):
        assert f.default is not dataclasses.MISSING
        assert f.metadata["help"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"w_bit": 9}, r"w_bit is 9; allowed are 1\.\.8 or 16"),
        ({"w_bit": 0}, "w_bit is 0"),
        ({"w_bit": 16}, "w_bit is 16: nothing to quantise"),
        ({"w_bit": 1}, "w_bit is 1; packed layers compute with w_bit 2..8"),
        ({"a_bit": 1}, "a_bit is 1"),
        ({"a_bit": 4}, "a_bit is 4; packed layers compute with a_bit 8 or 16"),
        ({"a_bit": 8, "w_bit": 16}, "a_bit is 8 but w_bit is 16"),
        ({"a_bit": 8, "w_bit": 1}, "w_bit is 1 with a_bit 8"),
        ({"w_group": 12}, "w_group is 12; allowed are multiples of 8"),
        ({"w_group": -2}, "w_group is -2"),
        ({"alpha": 1.5}, "alpha is 1.5"),
        ({"variant": "publishd"}, "variant is 'publishd'; allowed are default, reference"),
        ({"loss_mode": "l1"}, "loss_mode is 'l1'; allowed are mae, mse"),
        ({"n_grid": 1}, "n_grid is 1"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 100_000}, "threads is 100000; allowed are integers from 1 to 1024"),
        ({"calib_data": "pileval", "few_shot_format": True}, "applies to coco only"),
        ({"calib_data": "pileval", "reweight": True}, "applies to coco only"),
        ({"few_shot_format": True, "interleave_format": True}, "choose one"),
        ({"calib_data": "pileval", "interleave_format": True}, "applies to coco only"),
        ({"calib_data": "pileval", "text_data_path": "x"}, "applies to coco only"),
        ({"distort": True, "method": "rtn"}, "distort is set with method 'rtn'"),
        ({"text_data_path": "x"}, "set without interleave_format"),
        ({"bad_items": "drop"}, "bad_items is 'drop'; allowed are error, skip"),
        ({"method": "awq", "reweight": True}, "it belongs to mbq"),
        ({"pseudo_quant": True, "a_bit": 8, "output_path": "x"}, "cannot be written"),
    ],
)
def test_quant_recipe_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantRecipe(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"w_bit": 9}, "w_bit is 9"),
        ({"limit": 0}, "limit is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"pseudo_quant": True}, "pseudo_quant is set but w_bit is 16"),
        ({"pseudo_quant": True, "w_bit": 4, "method": "mbq"}, "needs scale_path"),
        ({"w_bit": 4}, "w_bit set without pseudo_quant"),
        ({"scale_path": "x"}, "scale_path set without pseudo_quant"),
        ({"speed_tokens": 0}, "speed_tokens is 0"),
    ],
)
def test_eval_config_refuses(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvalConfig(**fields)  # type: ignore[arg-type]


def test_group_size_of_weight_activation_recipes() -> None:
    assert not QuantRecipe().symmetric
    assert QuantRecipe(variant="reference").group_size == 128
    assert QuantRecipe(a_bit=8).symmetric
    assert QuantRecipe(a_bit=8).group_size == 128
    assert QuantRecipe(a_bit=8, variant="reference").group_size == -1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write pretrained=DIR"),
        ("models/llava", "write pretrained=DIR"),
        ("device_map=auto", "write pretrained=DIR"),
        ("pretrain=x", "did you mean 'pretrained'"),
        ("pretrained=x,device_map=cuda", "device_map of model_args is 'cuda'"),
    ],
)
def test_model_args_refuses(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_args(text)


def test_model_args_keeps_equal_signs_in_paths() -> None:
    assert parse_model_args(" pretrained = a=b ") == Path("a=b")
    assert parse_model_args("pretrained=a, b/c,d,device_map=cpu,") == Path("a, b/c,d")


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    def made(place: str, weights: bytes, items: str, **fields: object) -> str:
        folder = tmp_path / place
        folder.mkdir(exist_ok=True)
        (folder / "model.safetensors").write_bytes(weights)
        (tmp_path / f"{place}.json").write_text(items)
        paths = {"model_args": f"pretrained={folder}", "data_path": str(tmp_path / f"{place}.json")}
        return fingerprint(QuantRecipe(**paths, **fields))  # type: ignore[arg-type]

    first = made("a", b"1", "[]")
    assert made("b", b"1", "[]", name="other", threads=1, overwrite=True) == first
    assert made("c", b"2", "[]") != first
    assert made("d", b"1", "[ ]") != first
    assert made("e", b"1", "[]", w_bit=3) != first
    assert fingerprint(QuantRecipe(), {"i.png": "1"}) != fingerprint(QuantRecipe(), {"i.png": "2"})


@pytest.mark.parametrize("name", ["reweight", "distort"])
def test_gradients_and_distorted_inputs_need_the_language_model(name: str) -> None:
    QuantRecipe(scope="lm,vision", **{name: True})
    with pytest.raises(ConfigError, match=rf"{name} set with scope 'vision'.*add lm to scope"):
        QuantRecipe(scope="vision", **{name: True})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "none"),
        ({"w_bit": 3}, "gptq"),
        ({"w_bit": 2}, "learned"),
        ({"w_bit": 2, "compensate": "none"}, "none"),
        ({"w_bit": 2, "bias_correction": True}, "gptq"),
        ({"w_bit": 2, "method": "awq"}, "none"),
        ({"w_bit": 2, "variant": "reference"}, "none"),
        ({"w_bit": 2, "output_path": "", "scale_path": "s.pt"}, "none"),
        ({"max_bytes": "1GB"}, "gptq"),
        ({"compensate": "gptq"}, "gptq"),
    ],
)
def test_mbq_makes_up_for_rounding_where_that_costs_much(
    fields: dict[str, Any], expected: str
) -> None:
    recipe = QuantRecipe(**{"run_process": True, "output_path": "out"} | fields)
    assert recipe.compensation == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_path": Path("out")}, r"output_path is PosixPath\('out'\); it must be text, such"),
        ({"w_bit": "4"}, "w_bit is '4'; it must be a whole number"),
        ({"w_group": 64.0}, "w_group is 64.0; it must be a whole number"),
        ({"n_samples": True}, "n_samples is True; it must be a whole number"),
        ({"run_process": 1}, "run_process is 1; it must be true or false"),
        ({"threads": "2"}, "threads is '2'; it must be a whole number or null"),
        ({"method": None}, "method is None; it must be text"),
    ],
)
def test_values_of_another_type_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantRecipe(**fields)


def test_whole_numbers_are_numbers_too() -> None:
    assert QuantRecipe(alpha=1).alpha == 1
