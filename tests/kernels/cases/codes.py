"""Cases of codes: values to codes and back, per row and per token."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.kernels.cases.base import Arrays, Case, nasty, some_nasty


def _grids(rng: np.random.Generator, rows: int, bits: int) -> dict[str, np.ndarray]:
    scales = np.array([0.5, 0.1, 3.7e-3, 2.0**-24], np.float32)
    zero = rng.integers(0, 2**bits, rows).astype(np.uint8)
    return {"bits": np.array(bits), "scale": rng.choice(scales, rows), "zero": zero}


def _make(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    bits = int(rng.integers(1, 9))
    return {"x": nasty(rng, rows, cols), **_grids(rng, rows, bits)}


def _make_decode(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    return {"c": rng.integers(0, 256, (rows, cols)).astype(np.uint8), **_grids(rng, rows, 8)}


def _make_token(rng: np.random.Generator, rows: int, cols: int) -> Arrays:
    return {"x": some_nasty(rng, rows, cols)}


def _codes(k: object, a: Arrays) -> Arrays:
    out = np.full(a["x"].shape, 77, np.uint8)
    k.codes_row(a["x"], a["scale"], a["zero"], int(a["bits"]), out)
    return {"out": out}


def _codes_oracle(a: Arrays) -> Arrays:
    z, top = a["zero"][:, None].astype(np.float32), np.float32(2 ** int(a["bits"]) - 1)
    with np.errstate(all="ignore"):
        code = np.rint(np.clip(a["x"] / a["scale"][:, None], -z, top - z)) + z
    return {"out": np.nan_to_num(code, nan=0.0)}


def _decode(k: object, a: Arrays) -> Arrays:
    out = np.full(a["c"].shape, 77, np.float32)
    k.decode_row(a["c"], a["scale"], a["zero"], out)
    return {"out": out}


def _decode_oracle(a: Arrays) -> Arrays:
    level = a["c"].astype(np.float32) - a["zero"][:, None].astype(np.float32)
    return {"out": level * a["scale"][:, None] + np.float32(0)}


def token_scale(x: np.ndarray, bits: int) -> np.ndarray:
    high = np.abs(x).max(1, initial=0, keepdims=True)
    return np.maximum(high, np.float32(1e-5)) / np.float32(2 ** (bits - 1) - 1)


def _token(k: object, a: Arrays) -> Arrays:
    out = {"out": np.full(a["x"].shape, 77, np.int8), "scale": np.empty(len(a["x"]), np.float32)}
    k.codes_token_s8(a["x"], *out.values())
    return {**out, "fake": _fake_token(k, a)}


def _fake_token(k: object, a: Mapping[str, np.ndarray]) -> np.ndarray:
    out = np.full_like(a["x"], 77)
    k.fakequant_token(a["x"], 8, out)
    return out


def _token_oracle(a: Arrays) -> Arrays:
    with np.errstate(all="ignore"):
        scale = token_scale(a["x"], 8)
        code = np.rint(np.clip(a["x"] / scale, np.float32(-128), np.float32(127)))
        fake = code * scale + np.float32(0)
    return {"out": np.nan_to_num(code, nan=0.0), "scale": scale[:, 0], "fake": fake}


CASES: dict[str, Case] = {
    "codes_f32_row": Case(_make, _codes, _codes_oracle),
    "decode_f32_row": Case(_make_decode, _decode, _decode_oracle),
    "codes_f32_s8_row": Case(_make_token, _token, _token_oracle),
}
