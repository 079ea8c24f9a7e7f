from __future__ import annotations

import hashlib
import io
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, load_file
from torch import Tensor

from cmibq.errors import ModelError, PackageError
from cmibq.io.tensors import read_tensors, write_tensors

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def examples() -> dict[str, Tensor]:
    torch.manual_seed(0)
    made = {str(d)[6:]: (torch.randn(3, 5) * 9).to(d) for d in DTYPES}
    view = torch.arange(12.0).reshape(3, 4).t()
    return made | {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "view": view}


def written(tensors: dict[str, Tensor], **metadata: str) -> bytes:
    file = io.BytesIO()
    digest, size = write_tensors(file, tensors, metadata)
    content = file.getvalue()
    assert (digest, size) == (hashlib.sha256(content).hexdigest(), len(content))
    return content


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a
    )


def test_others_read_what_is_written(tmp_path: Path) -> None:
    content = written(examples(), note="ü")
    assert same(load(content), examples())
    (tmp_path / "a.safetensors").write_bytes(content)
    assert same(load_file(tmp_path / "a.safetensors"), examples())
    found, metadata = read_tensors(tmp_path / "a.safetensors")
    assert same(found, examples())
    assert metadata == {"format": "pt", "note": "ü"}


def test_every_tensor_is_aligned_to_its_elements() -> None:
    content = written(examples())
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    for name, tensor in examples().items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_no_tensors() -> None:
    assert load(written({})) == {}


def test_unknown_data_type() -> None:
    with pytest.raises(ModelError, match=r"a: data type torch\.complex64 cannot be saved"):
        written({"a": torch.zeros(1, dtype=torch.complex64)})


def test_reading_does_not_hold_on_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(written({"a": torch.ones(1000)}))
    found, _ = read_tensors(path)
    with path.open("r+b") as file:
        file.truncate(10)
    assert found["a"].sum() == 1000


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="cannot be read"):
        read_tensors(tmp_path / "no.safetensors")


def test_truncation_at_every_byte(tmp_path: Path) -> None:
    content = written({"a": torch.arange(6.0), "b": torch.arange(3, dtype=torch.uint8)})
    path = tmp_path / "a.safetensors"
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(PackageError, match=r"a\.safetensors"):
            read_tensors(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(PackageError):
        read_tensors(path)


def test_every_bit_of_the_header_flipped(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0), "b": torch.arange(3, dtype=torch.uint8)}
    content = written(tensors)
    path = tmp_path / "a.safetensors"
    length = struct.unpack("<Q", content[:8])[0]
    for bit in range(8 * (8 + length)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found, _ = read_tensors(path)
        except PackageError:
            continue
        assert sum(t.numel() * t.element_size() for t in found.values()) == 27


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


HOSTILE = {
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "header past the end": struct.pack("<Q", 100) + b"{}",
    "no header": struct.pack("<Q", 0),
    "not an object": struct.pack("<Q", 2) + b"[]",
    "deep": struct.pack("<Q", 90_000) + b"[" * 90_000,
    "not UTF-8": struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc",
    "256 TiB": header(a={"dtype": "F64", "shape": [2**45], "data_offsets": [0, 2**48]}),
    "product wraps around": header(
        a={"dtype": "U8", "shape": [4194305, 4194305, 211106198978564], "data_offsets": [0, 4]}
    )
    + bytes(4),
    "overlap": header(
        a={"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        b={"dtype": "U8", "shape": [4], "data_offsets": [2, 6]},
    )
    + bytes(6),
    "hole": header(
        a={"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
        b={"dtype": "U8", "shape": [2], "data_offsets": [4, 6]},
    )
    + bytes(6),
    "backwards": header(a={"dtype": "U8", "shape": [2], "data_offsets": [2, 0]}) + bytes(2),
    "negative": header(a={"dtype": "U8", "shape": [-2], "data_offsets": [0, 2]}) + bytes(2),
    "size differs": header(a={"dtype": "F32", "shape": [1], "data_offsets": [0, 2]}) + bytes(2),
    "named twice": struct.pack("<Q", 108)
    + b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    + b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}  '
    + bytes(1),
    "fraction": header(a={"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}) + bytes(1),
    "bytes left over": header(a={"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}) + bytes(2),
    "metadata": header(__metadata__={"a": 1}),
    "metadata list": header(__metadata__=[1]),
    "entry": header(a=1),
    "unknown type": header(a={"dtype": "Q4", "shape": [1], "data_offsets": [0, 1]}) + bytes(1),
    "zero size far off": header(a={"dtype": "U8", "shape": [0], "data_offsets": [2**40, 2**40]}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(PackageError):
        read_tensors(path)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 400))
def test_random_bytes_never_crash(noise: bytes, length: int) -> None:
    path = Path(f"/tmp/cmibq-noise-{os.getpid()}.safetensors")
    try:
        path.write_bytes(struct.pack("<Q", length) + noise)
        with pytest.raises(PackageError):
            read_tensors(path)
    finally:
        path.unlink()
