from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as kinds

from cmibq import models
from cmibq.errors import ConfigError, ModelError
from cmibq.io import save
from cmibq.io.gguf import _order
from cmibq.io.tokens import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, read_vocabulary
from cmibq.nn import PackedEmbedding, PackedLinear, convert_
from cmibq.quant import PerGroup, QuantSpec
from cmibq.recipe.tools import ExportConfig

SPACE = "\u2581"


def test_rows_of_q_are_rotated_neighbour_by_neighbour() -> None:
    """Attention scores under llama.cpp's rotation are those of transformers."""

    class Config:
        num_attention_heads, num_key_value_heads, hidden_size, head_dim = 4, 2, 32, 8

    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 32)), rng.normal(size=(2, 16))
    angle = np.arange(2)[:, None] * 10000.0 ** (-np.arange(4) / 4)

    def halves(x: np.ndarray) -> np.ndarray:
        x = x.reshape(2, -1, 2, 4)
        a, b, c, s = x[:, :, 0], x[:, :, 1], np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.stack([a * c - b * s, b * c + a * s], 2).reshape(2, -1, 8)

    def neighbours(x: np.ndarray) -> np.ndarray:
        x = x.reshape(2, -1, 4, 2)
        a, b, c, s = x[..., 0], x[..., 1], np.cos(angle)[:, None], np.sin(angle)[:, None]
        return np.stack([a * c - b * s, b * c + a * s], -1).reshape(2, -1, 8)

    at_q, at_k = (_order(f"self_attn.{n}_proj", Config, "llama") for n in "qk")
    assert at_q is not None
    assert at_k is not None
    want = np.einsum("qhd,kgd->hgqk", halves(q), halves(k))
    got = np.einsum("qhd,kgd->hgqk", neighbours(q[:, at_q]), neighbours(k[:, at_k]))
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    assert _order("self_attn.q_proj", Config, "qwen2") is None
    assert _order("self_attn.v_proj", Config, "llama") is None


def write_tokenizer(folder: Path, core: Tokenizer, **config: Any) -> Path:
    core.add_special_tokens(["<s>", "</s>"])
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ x }}")
    return folder


def llama_like(folder: Path) -> Path:
    vocabulary = {"<unk>": 0, "<0x41>": 1, SPACE: 2, "a": 3, "b": 4, f"{SPACE}a": 5, "ab": 6}
    merges = [(SPACE, "a"), ("a", "b")]
    core = Tokenizer(kinds.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    return write_tokenizer(folder, core, bos_token="<s>", eos_token="</s>", add_bos_token=True)


def test_a_tokenizer_like_llamas(tmp_path: Path) -> None:
    found = read_vocabulary(llama_like(tmp_path), 12)
    assert found.model == "llama"
    assert found.tokens[5:] == (f"{SPACE}a", "ab", "<s>", "</s>", "[PAD9]", "[PAD10]", "[PAD11]")
    assert found.kinds[:4] == (UNKNOWN, BYTE, NORMAL, NORMAL)
    assert found.kinds[7:] == (CONTROL, CONTROL, UNUSED, UNUSED, UNUSED)
    assert found.scores is not None
    assert found.scores[5] > found.scores[6] > found.scores[3]  # the first merge wins
    assert found.special == {"bos": 7, "eos": 8}
    assert (found.add_bos, found.space_prefix) == (True, True)
    assert found.chat_template == "{{ x }}"


def test_scores_of_sentencepiece_are_taken(tmp_path: Path) -> None:
    def piece(text: str, score: float, kind: int) -> bytes:
        raw = text.encode()
        body = b"\x0a" + bytes([len(raw)]) + raw + b"\x15" + struct.pack("<f", score)
        body += b"\x18" + bytes([kind])
        return b"\x0a" + bytes([len(body)]) + body

    folder = llama_like(tmp_path)
    (folder / "tokenizer.model").write_bytes(piece("ab", -3.5, 1) + piece("a", -7.25, 1))
    scores = read_vocabulary(folder, 9).scores
    assert scores is not None
    assert (scores[6], scores[3]) == (-3.5, -7.25)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [(r"\p{N}{1,3}", "llama-bpe"), (r" ?\p{L}+|\p{N}| ?x", "qwen2"), ("", "gpt-2")],
)
def test_byte_level_tokenizers(tmp_path: Path, pattern: str, name: str) -> None:
    from tokenizers import Regex

    core = Tokenizer(kinds.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    core.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    core.decoder = decoders.ByteLevel()
    found = read_vocabulary(write_tokenizer(tmp_path, core, eos_token="</s>"), 5)
    assert (found.model, found.pre, found.merges) == ("gpt2", name, ("a b",))
    assert found.special == {"eos": 4}
    assert not found.add_bos


def test_tokenizers_that_llama_cpp_lacks(llava_dir: Path, tmp_path: Path) -> None:
    assert "WordLevel" in read_vocabulary(llava_dir, 32).problem
    assert "no tokenizer.json" in read_vocabulary(tmp_path, 32).problem


def packed(model: Path, out: Path, *, symmetric: bool = True, tables: bool = False) -> Path:
    loaded = models.load(model)
    spec = QuantSpec(4, PerGroup(32), symmetric)
    targets = dict.fromkeys(loaded.adapter.targets(loaded.model), spec)
    if tables:
        targets |= {"model.language_model.embed_tokens": QuantSpec(8, PerGroup(32), True)}
        targets |= {"lm_head": QuantSpec(8, PerGroup(32), True)}
    convert_(loaded.model, targets)
    save(loaded.model, model, out, recipe={})
    return out


@pytest.mark.parametrize(("symmetric", "tables"), [(True, False), (False, False), (True, True)])
def test_a_file_has_the_very_same_weights(
    tmp_path: Path, llava_gqa_dir: Path, symmetric: bool, tables: bool
) -> None:
    gguf = pytest.importorskip("gguf")
    from cmibq.eval import open_model
    from cmibq.ptq.export import export

    source = packed(llava_gqa_dir, tmp_path / "package", symmetric=symmetric, tables=tables)
    found = export(ExportConfig(path=str(source), output_path=str(tmp_path / "gguf"), exact=True))
    assert found["exact"] == found["layers"] == 21 + 2 * tables
    assert found["kinds"] == (
        {"Q5_0": 21} if not symmetric else {"Q4_0": 21} | ({"Q8_0": 2} if tables else {})
    )
    reader = gguf.GGUFReader(tmp_path / "gguf" / "model.gguf")
    tensors = {t.name: t for t in reader.tensors}
    assert len(tensors) == 2 + 1 + 3 * (9 + 4)  # tables, norm, three blocks with four biases
    model: Any = open_model(source)[0].model
    text = model.model.language_model
    layer: PackedLinear = text.layers[1].mlp.down_proj
    got = gguf.quants.dequantize(
        tensors["blk.1.ffn_down.weight"].data, tensors["blk.1.ffn_down.weight"].tensor_type
    )
    np.testing.assert_array_equal(got, layer.dequantize().numpy())
    bias = text.layers[1].self_attn.q_proj.bias.numpy()
    at = _order("self_attn.q_proj", model.config.text_config, "llama")
    np.testing.assert_array_equal(tensors["blk.1.attn_q.bias"].data, bias[at])
    assert reader.fields["llama.attention.head_count_kv"].contents() == 2
    assert reader.fields["tokenizer.ggml.model"].contents() == "no_vocab"
    assert isinstance(text.embed_tokens, PackedEmbedding) == tables
    told = json.loads((tmp_path / "gguf" / "export.json").read_text())
    assert told["largest_difference"] == 0


def test_the_projector_file(tmp_path: Path, llava_gqa_dir: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from cmibq.ptq.export import export

    source = packed(llava_gqa_dir, tmp_path / "package")
    export(ExportConfig(path=str(source), output_path=str(tmp_path / "gguf")))
    reader = gguf.GGUFReader(tmp_path / "gguf" / "mmproj.gguf")
    tensors = {t.name: t.data for t in reader.tensors}
    fields = {name: f.contents() for name, f in reader.fields.items()}
    assert fields["general.architecture"] == "clip"
    assert fields["clip.projector_type"] == "mlp"
    assert fields["clip.vision.block_count"] == 2  # vision_feature_layer -1: all of them
    assert fields["clip.vision.feature_layer"] == [2]
    assert fields["clip.use_gelu"] is False
    model: Any = models.load(llava_gqa_dir).model.model
    np.testing.assert_array_equal(
        tensors["mm.2.weight"],
        model.multi_modal_projector.linear_2.weight.detach().to(torch.float16).numpy(),
    )
    assert tensors["v.patch_embd.weight"].shape == (32, 3, 8, 8)
    assert sum(name.startswith("v.blk.1.") for name in tensors) == 16


def test_minima_that_are_rounded_are_told(
    tmp_path: Path, llava_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    from cmibq.cli.main import main

    source = packed(llava_dir, tmp_path / "package", symmetric=False)
    assert main(["export", str(source), "--output_path", str(tmp_path / "gguf")]) == 0
    told = capsys.readouterr()
    assert "14 x Q4_1" in told.out
    assert "--exact avoids that" in told.out
    assert "no tokenizer of kind WordLevel" in told.err


def test_other_layouts(tmp_path: Path, llava_dir: Path) -> None:
    from cmibq.io import load
    from cmibq.ptq.export import export

    source = packed(llava_dir, tmp_path / "package")
    out = str(tmp_path / "out")
    found = export(ExportConfig(path=str(source), output_path=out, format="compressed-tensors"))
    assert found["layers"] == 14
    assert load(out).manifest.layout == "compressed-tensors"
    asymmetric = packed(llava_dir, tmp_path / "b", symmetric=False)
    with pytest.raises(ModelError, match="zero points"):
        export(
            ExportConfig(path=str(asymmetric), output_path=out + "2", format="compressed-tensors")
        )
    with pytest.raises(ConfigError, match="is no package"):
        export(ExportConfig(path=str(llava_dir), output_path=out, format="cmibq"))
