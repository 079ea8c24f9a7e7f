from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ModelError
from cmibq.models import load, load_processor, read_family, skeleton, target_widths
from tests.fixtures import write_llava


def changed(folder: Path, to: Path, **fields: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | fields))
    return to


def test_loads_both_shapes(llava_dir: Path, llava_gqa_dir: Path) -> None:
    for folder in (llava_dir, llava_gqa_dir):
        loaded = load(folder, model="llava")
        assert loaded.path == folder
        assert loaded.adapter.family == "llava"
        assert not loaded.model.training
        assert loaded.processor.image_token == "<image>"


def test_keeps_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "m", dtype="bfloat16")
    assert {p.dtype for p in load(folder).model.parameters()} == {torch.bfloat16}


def test_settings_of_transformers_are_put_back(llava_dir: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(llava_dir)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("name", ["nowhere", "a.txt"])
def test_no_such_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ModelError, match="does not exist; pass a local Hugging Face model folder"):
        load(tmp_path / name)


def test_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model folder"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="is not an object"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type":\n "llava"')
    with pytest.raises(ModelError, match="line 2"):
        load(tmp_path)


def test_unsupported_family_lists_those_supported(llava_dir: Path, tmp_path: Path) -> None:
    other = changed(llava_dir, tmp_path / "m", model_type="blip_2")
    with pytest.raises(ModelError, match="family 'blip_2' is not supported; supported are llava"):
        load(other)


def test_unsupported_decoder_lists_those_supported(llava_dir: Path, tmp_path: Path) -> None:
    other = changed(llava_dir, tmp_path / "m", text_config={"model_type": "opt"})
    with pytest.raises(ModelError, match=r"decoder 'opt' .* supported are llama, mistral, qwen2"):
        read_family(other)


def test_wrong_or_unknown_model_argument(llava_dir: Path) -> None:
    with pytest.raises(ModelError, match="did you mean 'llava'"):
        read_family(llava_dir, model="lava")


def test_quantised_folder_is_refused(llava_dir: Path, tmp_path: Path) -> None:
    other = changed(llava_dir, tmp_path / "m", quantization_config={"quant_method": "cmibq"})
    with pytest.raises(ModelError, match="already quantised"):
        load(other)


def test_truncated_weights(llava_dir: Path, tmp_path: Path) -> None:
    other = changed(llava_dir, tmp_path / "m")
    path = other / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"weights of .* cannot be loaded"):
        load(other)


def test_missing_weights(llava_dir: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    other = changed(llava_dir, tmp_path / "m")
    tensors = load_file(other / "model.safetensors")
    lost = next(n for n in tensors if n.endswith("layers.1.mlp.up_proj.weight"))
    del tensors[lost]
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing keys .*layers\.1\.mlp\.up_proj"):
        load(other)


def test_weights_of_another_shape_are_named(llava_dir: Path, tmp_path: Path) -> None:
    other = changed(llava_dir, tmp_path / "m")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["intermediate_size"] *= 2
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"\d+ mismatched keys .*mlp\."):
        load(other)


def test_images_of_a_wrong_size_are_told(llava_dir: Path) -> None:
    one = load(llava_dir)
    with pytest.raises(ModelError, match=r"cannot take images of 7 x 9 pixels .*do_resize"):
        one.adapter.image_features(one.model, {"pixel_values": torch.zeros(1, 3, 7, 9)})


def test_pickled_weights_are_not_read(llava_dir: Path, tmp_path: Path) -> None:
    other = changed(llava_dir, tmp_path / "m")
    (other / "model.safetensors").unlink()
    torch.save({}, other / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(other)


def test_missing_processor(llava_dir: Path, tmp_path: Path) -> None:
    other = changed(llava_dir, tmp_path / "m")
    (other / "processor_config.json").unlink()
    with pytest.raises(ModelError, match=r"image processor|processor of"):
        load_processor(other)


def test_skeleton_has_names_and_shapes_but_no_weights(llava_dir: Path, tmp_path: Path) -> None:
    made, loaded = skeleton(llava_dir), load(llava_dir).model
    assert {n: p.shape for n, p in made.named_parameters()} == {
        n: p.shape for n, p in loaded.named_parameters()
    }
    assert all(p.is_meta for p in made.parameters())
    widths = target_widths(llava_dir)
    assert len(widths) == 14
    assert widths["model.language_model.layers.1.mlp.down_proj"] == 128
    other = changed(
        llava_dir,
        tmp_path / "m",
        vision_config={"model_type": "clip_vision_model", "hidden_size": "x"},
    )
    with pytest.raises(ModelError, match="does not describe a model"):
        skeleton(other)


@pytest.mark.parametrize("model", ["internvl2", "internvl3", "internvl"])
def test_published_names_of_families(tmp_path: Path, model: str) -> None:
    config = {"model_type": "internvl", "text_config": {"model_type": "qwen2"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_family(tmp_path, model=model).family == "internvl"
    with pytest.raises(ModelError, match=r"model is 'qwen2_vl' but .* holds a 'internvl'"):
        read_family(tmp_path, model="qwen2_vl")


def test_configuration_of_a_larger_model_is_refused_before_memory_is_taken(
    tmp_path: Path, llava_dir: Path
) -> None:
    folder = shutil.copytree(llava_dir, tmp_path / "m")
    (folder / "config.json").write_text('{"model_type": "llava"}')  # stands for 7B
    with pytest.raises(ModelError, match=r"a model of \d{10} parameters and the checkpoint has"):
        load(folder)


def test_weights_without_a_place_are_told(
    tmp_path: Path, llava_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads((llava_dir / "config.json").read_text())
    fewer = config["text_config"] | {"num_hidden_layers": 1}
    load(changed(llava_dir, tmp_path / "m", text_config=fewer))
    assert "9 weights of the checkpoint have no place" in caplog.text
    assert "layers.1" in caplog.text


def test_processor_of_another_model_is_refused(tmp_path: Path, llava_dir: Path) -> None:
    other = changed(llava_dir, tmp_path / "m", image_token_id=5, image_token_index=5)
    with pytest.raises(ModelError, match=r"token 3 for images and config.json says.* 5"):
        load(other)
