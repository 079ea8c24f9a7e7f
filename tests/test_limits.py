"""What a machine runs out of: memory, threads, and bytes that 32 bits can count."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from cmibq import arrays
from cmibq.runtime import native

C = native()
K = C.Kernels(None, 2)
GIB = 2**30
large = pytest.mark.skipif("CMIBQ_LARGE" not in os.environ, reason="needs 13 GB and a minute")


def sparse(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros of any size: pages that are only read share one page of memory."""
    size = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
    except OSError:
        pytest.skip("no address space for a large array")
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # the zero page is huge then, too
    return np.frombuffer(memory, dtype, count=int(np.prod(shape))).reshape(shape)


def test_reading_past_2_to_the_32_bytes() -> None:
    x = sparse((2, GIB // 2 + 8), np.float32)  # 4 GiB and 64 bytes
    x[1, -1], x[1, 7], x[0, 3] = 3, -2, 1
    np.testing.assert_array_equal(arrays.minmax(x), [[0, -2], [1, 3]])
    np.testing.assert_array_equal(arrays.absmax(x), [1, 3])
    np.testing.assert_array_equal(arrays.abssum(x), [1, 5])


def test_groups_past_2_to_the_31_elements() -> None:
    packed = sparse((2**20, 1024), np.uint8)  # 2**31 codes of 4 bits, 2**30 bytes
    packed[-1, -1] = 0x21
    with pytest.raises(ValueError, match=r"(packed|out): dimension"):
        K.unpack_row(packed, 4, np.empty((1, 8), np.uint8))
    tail = np.empty((1, 2048), np.uint8)
    K.unpack_row(packed[-1:], 4, tail)
    assert (tail[0, -2], tail[0, -1]) == (1, 2)


@large
def test_four_bits_past_2_to_the_33_codes() -> None:
    """8.6e9 codes are 4 GiB packed: needs 13 GB, and some seconds."""
    rows, cols = 2**18 + 1, 2**15
    codes = sparse((rows, cols), np.uint8)
    codes[-1], codes[2**17, -1] = np.arange(cols) % 16, 9
    packed = arrays.pack(codes, bits=4)
    assert packed.nbytes > 2**32
    np.testing.assert_array_equal(packed[-1, :4], [0x10, 0x32, 0x54, 0x76])
    assert packed[2**17, -1] == 0x90
    assert not packed[2**17, :-1].any()
    np.testing.assert_array_equal(arrays.unpack(packed, bits=4, cols=cols)[-1], codes[-1])


@large
def test_writing_past_2_to_the_32_bytes() -> None:
    x = sparse((3, 2**29 + 5), np.float32)  # 6 GiB in, 6 GiB out
    x[2, -1], x[0, 0], x[1, 2**28] = 1.3, -0.7, 200
    scale = np.full(3, 0.5, np.float32)
    out = arrays.fakequant(x, scale, -8 * scale / scale, 7 * scale / scale)
    assert (out[2, -1], out[0, 0], out[1, 2**28]) == (1.5, -0.5, 3.5)
    assert np.count_nonzero(out) == 3


def nothing(*shape: int, dtype: type = np.float32) -> np.ndarray:
    return np.empty(shape, dtype)


BYTES = nothing(64, dtype=np.uint8)
HOSTILE: dict[str, Callable[[], object]] = {
    # Each product of sizes in the workspace would be small, or 0, in 64 bits.
    "qgemm": lambda: K.qgemm_f32(
        nothing(2**60, 0), nothing(0, 0, dtype=np.uint8), 4, nothing(0, 1, dtype=np.uint16),
        None, None, nothing(2**60, 0), BYTES,
    ),
    "qlinear": lambda: K.qlinear_f32(
        nothing(2**60, 0), 8, nothing(0, dtype=np.uint8), 1, 4, None, 0, None, None, None, 0,
        nothing(2**60, 0), BYTES,
    ),
    "scaleloss": lambda: K.scaleloss(
        nothing(0, 2**60), nothing(0, 2**60), nothing(0, dtype=np.float64), nothing(0, 2**60),
        4, 0, 0, 0, 0, 0, nothing(0, dtype=np.int64), nothing(0, 0, dtype=np.float64), BYTES,
    ),
    "repack": lambda: K.qgemm_repack(
        nothing(0, dtype=np.uint8), sparse((2**34, 1), np.uint16), None, 2**31, 8, None,
        nothing(0, dtype=np.uint8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_sizes_whose_products_pass_2_to_the_64_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected (\d{19,20}|\d{5,})"):
        HOSTILE[name]()


def test_a_machine_without_memory() -> None:
    code = (
        "import resource, numpy as np\n"
        "from cmibq import arrays, memory\n"
        "x = np.ones((4096, 4096), np.float32); s = np.ones(4096, np.float32)\n"
        "arrays.gemm(x[:4], x), memory.clear()\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "for left in range(0, 5 * 2**26, 2**26):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + left, -1))\n"
        "    first = lambda: arrays.fakequant(x, s, -s, s)\n"
        "    for call in (first, lambda: arrays.gemm(x[:4], x)):\n"
        "        kept = []\n"
        "        try:\n"
        "            for _ in range(9): kept.append(call())\n"
        "        except MemoryError:\n"
        "            assert len(kept) < 9\n"
        "        assert call is not first or len(kept) <= left >> 26, (len(kept), left)\n"
        "print('done')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
