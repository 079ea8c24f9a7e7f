from __future__ import annotations

import numpy as np
import pytest

from cmibq.arrays import (
    RangeStream,
    RangeTables,
    integer_frequencies,
    range_bits,
    range_decode,
    range_encode,
)
from cmibq.errors import PackageError
from tests.kernels.cases.rangecode import likely, some_tables

ONE = np.zeros((1, 4), np.int32)


def drawn(
    rng: np.random.Generator, rows: int, cols: int
) -> tuple[np.ndarray, RangeTables, np.ndarray]:
    tables = some_tables(rng)
    context = rng.integers(0, len(tables.first) - 1, (1, cols)).astype(np.int32)
    return likely(rng, tables, np.repeat(context, rows, 0)), tables, context


def test_worked_by_hand() -> None:
    """1, 0, 0, 1 of (3/4, 1/4): [.75, 1), [.75, .9375), [.75, .890625), [.85546875, .890625).

    In 256ths: 219 .. 228, so one byte says it, 219 the lowest.
    """
    tables = RangeTables.of([[49152, 16384]])
    stream = range_encode(np.uint8([[1, 0, 0, 1]]), tables, ONE)
    assert stream == RangeStream(bytes([219]), (1,))
    assert range_decode(stream, tables, ONE, 1).tolist() == [[1, 0, 0, 1]]


def test_frequencies_by_hand() -> None:
    assert integer_frequencies([1, 1]).tolist() == [32768, 32768]
    # Three get 1 each, 65533 are shared: 21844.33 each, so 21844; the first gets what is left.
    assert integer_frequencies([1, 1, 1]).tolist() == [21846, 21845, 21845]
    assert integer_frequencies([0, 1]).tolist() == [1, 65535]
    assert integer_frequencies([5]).tolist() == [65536]


def test_frequencies_sum_and_cost_little(rng: np.random.Generator) -> None:
    for n in (2, 3, 16, 255, 256):
        p = rng.dirichlet(np.full(n, 0.3), 50)
        f = integer_frequencies(p)
        assert (f.sum(1) == 65536).all()
        assert (f >= 1).all()
        loss = (p * (np.log2(np.maximum(p, 1e-300)) - np.log2(f / 65536))).sum(1)
        assert loss.max() < n / 65536 * 3


@pytest.mark.parametrize("lanes", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(0, 3), (1, 0), (1, 1), (1, 64), (7, 33), (40, 200)])
def test_what_goes_in_comes_out(
    rng: np.random.Generator, shape: tuple[int, int], lanes: int
) -> None:
    symbols, tables, context = drawn(rng, *shape)
    stream = range_encode(symbols, tables, context, lanes=lanes)
    assert np.array_equal(range_decode(stream, tables, context, shape[0]), symbols)
    information = range_bits(symbols, tables, context).sum() / 8
    assert len(stream.payload) <= information * (1 + 1e-5) + lanes


def test_unlikely_symbols_fit_too(rng: np.random.Generator) -> None:
    """Every symbol costs 16 bits; carries run through all bytes before."""
    tables = RangeTables.of([[65535, 1], [1, 65535], [1, 65534, 1]])
    for k, s in ((0, 1), (1, 0), (2, 0), (2, 2)):
        symbols, context = np.full((9, 50), s, np.uint8), np.full((1, 50), k, np.int32)
        stream = range_encode(symbols, tables, context)
        assert np.array_equal(range_decode(stream, tables, context, 9), symbols)
        assert 899 <= len(stream.payload) <= 901 or (s == 0 and k < 3)


def test_bytes_are_the_information_of_small_streams(rng: np.random.Generator) -> None:
    """Some ten bytes: never a byte above the information, a third of one on average."""
    tables = RangeTables.of([integer_frequencies(rng.dirichlet([0.4] * 4)) for _ in range(16)])
    context = np.arange(16, dtype=np.int32)[None]
    sizes, information = [], []
    for _ in range(400):
        symbols = likely(rng, tables, np.repeat(context, 4, 0))
        sizes.append(len(range_encode(symbols, tables, context).payload))
        information.append(range_bits(symbols, tables, context).sum() / 8)
        assert sizes[-1] < information[-1] + 1
    assert np.mean(sizes) - np.mean(information) < 0.4


def test_every_alteration_decodes_or_is_refused(rng: np.random.Generator) -> None:
    """Bytes are those of exactly one matrix of symbols, or refused."""
    symbols, tables, context = drawn(rng, 6, 30)
    for lanes in (1, 4):
        stream = range_encode(symbols, tables, context, lanes=lanes)
        refused = 0
        for trial in range(300):
            data = bytearray(stream.payload)
            if trial % 3 == 0:
                data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
            elif trial % 3 == 1:
                del data[int(rng.integers(len(data))) :]
            else:
                data += rng.bytes(int(rng.integers(1, 9)))
            sizes = (*stream.sizes[:-1], len(data) - sum(stream.sizes[:-1]))
            other = RangeStream(bytes(data), sizes)
            try:
                found = range_decode(other, tables, context, 6)
            except PackageError:
                refused += 1
            else:
                assert range_encode(found, tables, context, lanes=lanes) == other
        assert refused > 100


def test_bytes_at_the_end_are_refused() -> None:
    tables = RangeTables.of([[49152, 16384]])
    for payload in (b"\xdb\x00", b"\xdc", b"\xdb\x01", b"\xff" * 40):
        with pytest.raises(PackageError, match="truncated or altered"):
            range_decode(RangeStream(payload, (len(payload),)), tables, ONE, 1)


@pytest.mark.parametrize("seed", range(8))
def test_any_bytes_are_one_matrix_or_refused(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for trial in range(60):
        rows, cols, lanes = (int(n) for n in rng.integers((0, 0, 1), (20, 40, 5)))
        symbols, tables, context = drawn(rng, rows, cols)
        data = range_encode(symbols, tables, context, lanes=lanes).payload
        size = int(rng.integers(0, 40))
        data = (data[:size], rng.bytes(size), b"\xff" * size)[trial % 3]
        cuts = sorted(rng.integers(0, len(data) + 1, lanes - 1).tolist())
        other = RangeStream(data, tuple(np.diff([0, *cuts, len(data)]).tolist()))
        try:
            found = range_decode(other, tables, context, rows)
        except PackageError:
            continue
        assert range_encode(found, tables, context, lanes=lanes) == other


def test_bad_arguments() -> None:
    tables = RangeTables.of([[49152, 16384], [65536]])
    zero = np.zeros((1, 4), np.uint8)
    with pytest.raises(ValueError, match=r"symbols\[0\] is 2; every symbol must be below"):
        range_encode(zero + np.uint8(2), tables, ONE)
    with pytest.raises(ValueError, match=r"context\[0\] is 2; every context is the number"):
        range_encode(zero, tables, ONE + np.int32(2))
    with pytest.raises(ValueError, match=r"group\[0\] is 1; every row names"):
        range_encode(zero, tables, ONE, group=np.int32([1]))
    with pytest.raises(ValueError, match=r"lanes is 5; allowed are 1\.\.4"):
        range_encode(zero, tables, ONE, lanes=5)
    with pytest.raises(PackageError, match="sum to 65536"):
        RangeTables.of([[49152, 16385]])
    for cdf, rule in (([0, 0], "and rise"), ([1, 2], "begin with 0")):
        bad = RangeTables(np.array(cdf, np.uint16), np.array([0, 2], np.uint32))
        with pytest.raises(ValueError, match=rule):
            range_encode(zero, bad, ONE)
    bad = RangeTables(np.zeros(2, np.uint16), np.array([0, 1], np.uint32))
    with pytest.raises(ValueError, match=r"first\[1\] is 1; tables have 1..256 entries"):
        range_encode(zero, bad, ONE)
    with pytest.raises(PackageError, match="do not make a payload of 1"):
        range_decode(RangeStream(b"1", (2,)), tables, ONE, 1)
    with pytest.raises(ValueError, match=r"give 1\.\.256 finite numbers"):
        integer_frequencies([0.0, 0.0])
