from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch

from cmibq.errors import ConfigError
from cmibq.noise import inverse_normal
from cmibq.ops import noise_key, normal, uniform
from cmibq.ops.noise import philox, reference
from cmibq.runtime import kernels, native

# Random123, kat_vectors: philox4x32 10; counter, key, result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    got = philox([torch.tensor([c]) for c in counter], key)
    assert tuple(int(w) for w in got) == words


@pytest.mark.parametrize("isa", native().ISAS)
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_published_vectors_in_c(
    isa: str, counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    at, sample, step, stream = counter
    first = 64 * (at // 16) + at % 16
    out = np.empty((1, 49), np.float32)
    seed = np.array([key[0] | key[1] << 32], np.uint64).view(np.int64).item()
    kernels(isa=isa).noise(seed, step, sample, stream, first, None, out)
    assert [int(v * 2**24) for v in out[0, ::16]] == [w >> 8 for w in words]


@pytest.mark.parametrize("seed", [0, 2**40 + 5, -(2**63), 2**63 - 1])
@pytest.mark.parametrize("shape", [(3, 5, 13), (2, 64), (1, 1), (4,), (0, 7), (2, 0)])
def test_kernel_equals_reference(shape: tuple[int, ...], seed: int) -> None:
    key = noise_key(seed, 2**32 - 1, 7, 2**31)
    for draw, kind in ((uniform, False), (normal, True)):
        assert torch.equal(draw(shape, key), reference(key, shape, kind))


def test_halves_of_a_batch_draw_what_the_whole_draws() -> None:
    whole = normal((4, 5, 7), noise_key(1, 2))
    halves = [normal((2, 5, 7), noise_key(1, 2, first)) for first in (0, 2)]
    assert torch.equal(torch.cat(halves), whole)


def test_all_parts_of_the_key_count() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (2**32, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [tuple(normal((1, 100), noise_key(*k))[0].tolist()) for k in keys]
    assert len(set(drawn)) == len(keys)


def test_numbers_are_normal() -> None:
    y = normal((16, 2**16), noise_key(11, 0)).double().flatten().sort().values
    n = len(y)
    assert abs(float(y.mean())) < 4 / n**0.5
    assert abs(float(y.square().mean()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float(y.pow(4).mean()) - 3) < 4 * (96 / n) ** 0.5
    steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert float((torch.special.ndtr(y) - steps).abs().max()) < 1.95 / n**0.5  # p = 0.001


def test_table_is_near_the_inverse() -> None:
    value, slope, curve = inverse_normal().astype(np.float64)
    inverse = statistics.NormalDist().inv_cdf
    for f in np.linspace(0, 1, 9):
        y = value + f * (slope + f * curve)
        p = [2.0 ** (i // 16 - 32) * (1 + (i % 16 + f) / 16) for i in range(len(y))]
        assert np.abs(y + [inverse(q) for q in p]).max() < 2e-6


def test_step_may_be_a_tensor_and_compiles() -> None:
    def draw(step: torch.Tensor) -> torch.Tensor:
        return normal((2, 9), noise_key(3, step, 4))

    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for step in (torch.tensor(5), torch.tensor(6)):
        assert torch.equal(compiled(step), normal((2, 9), noise_key(3, int(step), 4)))


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.cmibq.noise.default, (noise_key(1, 2), [2, 3], True))


@pytest.mark.parametrize(
    ("shape", "key"),
    [((), noise_key(0, 0)), ((2, 2), torch.zeros(4)), ((2, 2**35), noise_key(0, 0))],
)
def test_refuses(shape: tuple[int, ...], key: torch.Tensor) -> None:
    with pytest.raises(ConfigError):
        normal(shape, key)


def test_refuses_a_table_of_another_size() -> None:
    with pytest.raises(ValueError, match="table"):
        kernels().noise(0, 0, 0, 0, 0, np.zeros((3, 2), np.float32), np.zeros((1, 1), np.float32))
