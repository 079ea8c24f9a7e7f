"""Tokenizers as GGUF files describe them: tokens, their kinds, scores or merges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cmibq.fileio import read_json

__all__ = ["Vocabulary", "read_vocabulary"]

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, as ``llama_token_type``."""
_SPLITS: Final = (
    (r"\p{N}{1,3}", "llama-bpe"),
    (r"\p{N}|", "qwen2"),
)
"""What a pre-tokenizer's pattern contains -> its name in llama.cpp."""
_SPACE: Final = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer.

    Args:
        model: ``llama`` (SentencePiece), ``gpt2`` (byte-level BPE) or ``no_vocab``.
        tokens: text of every id.
        kinds: kind of every id.
        scores: of every id; None for ``gpt2``.
        merges: pairs of tokens that BPE joins, in order; None for ``llama``.
        pre: name of the pre-tokenizer in llama.cpp.
        special: name of a special token (``bos``, ``eos``, ``unk``, ``pad``) -> id.
        add_bos: whether a prompt begins with ``bos``.
        space_prefix: whether a blank is put in front of a prompt.
        chat_template: Jinja text, or empty.
        problem: why the tokenizer could not be written, or empty.
    """

    model: str
    tokens: tuple[str, ...] = ()
    kinds: tuple[int, ...] = ()
    scores: tuple[float, ...] | None = None
    merges: tuple[str, ...] | None = None
    pre: str = "default"
    special: dict[str, int] | None = None
    add_bos: bool = False
    space_prefix: bool = False
    chat_template: str = ""
    problem: str = ""


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a protobuf message: bytes, or an integer."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}.get(key & 7) or varint()
        yield key >> 3, data[at : at + size]
        at += size


def _pieces(path: Path) -> dict[str, tuple[float, int]]:
    """Return piece -> (score, kind) of a SentencePiece model."""
    import struct

    found = {}
    for number, value in _fields(path.read_bytes()):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            found[piece.get(1, b"").decode()] = (score, int(piece.get(3, NORMAL)))
    return found


def _pairs(model: dict[str, Any]) -> list[tuple[str, str]]:
    parts = (m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"])
    return [(str(left), str(right)) for left, right in parts]


def _texts(tokenizer: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Return text and kind of every id; ids that the tokenizer lacks are unused."""
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for text, number in tokenizer["model"]["vocab"].items():
        if number < size:
            tokens[number], kinds[number] = text, NORMAL
    for added in tokenizer.get("added_tokens") or []:
        if added["id"] < size:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = CONTROL if added.get("special") else USER
    return tokens, kinds


def _sentencepiece(folder: Path, tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    """Return what is special about BPE with bytes to fall back on, as Llama 2 has it."""
    tokens, kinds = _texts(tokenizer, size)
    file = folder / "tokenizer.model"
    known = _pieces(file) if file.is_file() else {}
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(_pairs(tokenizer["model"])):
        rank.setdefault(left + right, number)
    scores = []
    unknown = tokenizer["model"].get("unk_token")
    for number, text in enumerate(tokens):
        if kinds[number] == NORMAL and text.startswith("<0x") and len(text) == 6:
            kinds[number] = BYTE
        if text == unknown:
            kinds[number] = UNKNOWN
        score = float(-rank[text]) if text in rank else -1e6 if kinds[number] == NORMAL else 0.0
        scores.append(known[text][0] if text in known else score)
    prefix = _SPACE in json.dumps(tokenizer.get("normalizer") or {}, ensure_ascii=False)
    head = json.dumps([tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")])
    return {
        "model": "llama",
        "tokens": tuple(tokens),
        "kinds": tuple(kinds),
        "scores": tuple(scores),
        "space_prefix": prefix and ("Prepend" in head or '"always"' in head or '"first"' in head),
    }


def _byte_level(tokenizer: dict[str, Any], size: int) -> dict[str, Any]:
    tokens, kinds = _texts(tokenizer, size)
    pattern = json.dumps(tokenizer.get("pre_tokenizer") or {}).replace("\\\\", "\\")
    named = next((name for needle, name in _SPLITS if needle in pattern), "gpt-2")
    merges = tuple(" ".join(pair) for pair in _pairs(tokenizer["model"]))
    kind: dict[str, Any] = {"model": "gpt2", "pre": named, "merges": merges}
    return kind | {"tokens": tuple(tokens), "kinds": tuple(kinds)}


def _special(folder: Path, ids: dict[str, int]) -> tuple[dict[str, int], dict[str, Any]]:
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    found = {}
    for name in ("bos", "eos", "unk", "pad"):
        token = config.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text in ids:
            found[name] = ids[text]
    return found, config


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read the tokenizer of a model folder.

    Args:
        folder: with ``tokenizer.json``; scores are those of ``tokenizer.model`` if it is there.
        size: rows of the embedding.

    Returns:
        The vocabulary; one without tokens that says why where llama.cpp has no such tokenizer.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return Vocabulary("no_vocab", problem=f"{folder} has no tokenizer.json")
    tokenizer = read_json(file)
    model = tokenizer.get("model") or {}
    decoder = json.dumps(tokenizer.get("decoder") or {})
    if model.get("type") == "BPE" and model.get("byte_fallback"):
        kept = _sentencepiece(folder, tokenizer, size)
    elif model.get("type") == "BPE" and "ByteLevel" in decoder:
        kept = _byte_level(tokenizer, size)
    else:
        kind = model.get("type", "unknown")
        return Vocabulary("no_vocab", problem=f"llama.cpp has no tokenizer of kind {kind}")
    ids = {text: number for number, text in enumerate(kept["tokens"])}
    special, config = _special(folder, ids)
    template = folder / "chat_template.jinja"
    chat = template.read_text() if template.is_file() else config.get("chat_template") or ""
    post = json.dumps(tokenizer.get("post_processor") or {})
    begins = next((t for t, i in ids.items() if i == special.get("bos")), None)
    add = bool(config.get("add_bos_token", begins is not None and json.dumps(begins) in post))
    return Vocabulary(
        **kept,
        special=special,
        add_bos=add,
        chat_template=chat if isinstance(chat, str) else "",
    )
