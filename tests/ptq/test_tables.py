from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq import io, models
from cmibq.errors import ConfigError, ModelError
from cmibq.eval import open_model
from cmibq.models import save_float
from cmibq.nn import PackedEmbedding, PackedLinear
from cmibq.ptq.quantize import quantize
from cmibq.recipe import QuantRecipe
from tests.io.test_compressed_tensors import STOCK
from tests.ptq.test_quantize import recipe

PLAIN: dict[str, Any] = {"method": "rtn", "w_bit": 8}


@pytest.fixture(scope="module")
def tied_dir(llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer is its embedding."""
    loaded = models.load(llava_dir)
    model: Any = loaded.model
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.lm_head.weight = model.get_input_embeddings().weight
    out = tmp_path_factory.mktemp("tied") / "model"
    out.mkdir()
    save_float(loaded, out)
    return out


def tables(loaded: models.LoadedModel) -> tuple[Any, Any]:
    model: Any = loaded.model
    return model.get_input_embeddings(), loaded.adapter.lm_head(model)


def check_from_pretrained(out: Path, package: io.Package) -> None:
    from transformers import AutoModelForImageTextToText

    import cmibq.integrations.transformers

    assert cmibq.integrations.transformers.register() is None
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    check = io.check_probe(model, package)
    assert check is not None
    assert check.exact


@pytest.mark.parametrize("bits", [8, 4])
def test_tables_of_their_own(tmp_path: Path, llava_dir: Path, items_path: Path, bits: int) -> None:
    out = tmp_path / "out"
    asked = recipe(llava_dir, items_path, out, **PLAIN, embed_bit=bits, head_bit=8, w_sym=True)
    made = quantize(asked, progress=False)
    assert made.verification is not None
    assert made.verification["reload_exact"]
    assert made.verification["ok"]
    loaded, package = open_model(out)
    table, head = tables(loaded)
    assert isinstance(table, PackedEmbedding)
    assert type(head) is PackedLinear
    assert (table.bits, head.bits) == (bits, 8)
    assert package is not None
    assert package.manifest.layout == "cmibq"
    with pytest.raises(ModelError, match="a packed embedding, which transformers cannot open"):
        io.save(loaded.model, llava_dir, tmp_path / "b", recipe={}, layout="compressed-tensors")


def test_one_table_is_stored_once(tmp_path: Path, tied_dir: Path, items_path: Path) -> None:
    out = tmp_path / "out"
    asked = recipe(tied_dir, items_path, out, **PLAIN, embed_bit=8, head_bit=8)
    made = quantize(asked, progress=False)
    assert made.verification is not None
    assert made.verification["ok"]
    assert made.verification["reload_exact"]
    package = io.load(out)
    assert not package.config["tie_word_embeddings"]
    name = "model.language_model.embed_tokens"
    for leaf in ("qweight", "scales"):
        assert package.manifest.tied[f"lm_head.{leaf}"] == f"{name}.{leaf}"
    assert package.config["quantization_config"]["tied"] == {"lm_head": name}
    check_from_pretrained(out, package)
    table, head = tables(open_model(out)[0])
    assert torch.equal(table.dequantize(), head.dequantize())


def test_tables_that_are_one_need_one_width(
    tmp_path: Path, tied_dir: Path, items_path: Path
) -> None:
    asked = recipe(tied_dir, items_path, tmp_path / "out", **PLAIN, head_bit=8)
    with pytest.raises(ModelError, match="embed_bit is 16 and head_bit 8; give both the same"):
        quantize(asked, progress=False)


def test_half_precision_models_keep_their_type(tmp_path: Path, items_path: Path) -> None:
    from tests.fixtures import write_llava

    model = write_llava(tmp_path / "model", "mha", dtype="bfloat16")
    asked = recipe(model, items_path, tmp_path / "out", **PLAIN, embed_bit=8, head_bit=8)
    made = quantize(asked, progress=False)
    assert made.verification is not None
    assert made.verification["reload_exact"]
    loaded, _ = open_model(tmp_path / "out")
    assert tables(loaded)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"embed_bit": 9}, "embed_bit is 9; allowed are 2..8 or 16"),
        ({"embed_bit": 8, "format": "compressed-tensors"}, "opens packed linear layers only"),
        ({"head_bit": 8, "pseudo_quant": True}, "head_bit is 8 with pseudo_quant"),
    ],
)
def test_wrong_widths(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        QuantRecipe(**fields)


@pytest.mark.host
def test_stock_transformers_opens_a_packed_head(
    tmp_path: Path, llava_dir: Path, items_path: Path
) -> None:
    """See `test_stock_transformers_opens_it`."""
    python = os.environ.get("CMIBQ_STOCK_PYTHON", "")
    if not python:
        pytest.skip("CMIBQ_STOCK_PYTHON is not set")
    from safetensors.torch import save_file

    out = tmp_path / "out"
    quantize(recipe(llava_dir, items_path, out, **PLAIN, head_bit=8, w_sym=True), progress=False)
    _, head = tables(open_model(out)[0])
    save_file({"lm_head": head.dequantize()}, tmp_path / "weights")
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [python, "-c", STOCK, str(out), str(tmp_path / "weights")]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("difference"), done.stderr
    assert float(done.stdout.split()[1]) < 1e-3
