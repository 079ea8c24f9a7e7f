"""Packed weights times activations, beside torch on the float weight.

Peers: `linear`, torch's product with the float weight, and `unpack+linear`, which first unpacks the
weight to float in every call. Results go to memory that is used again (`out=`), so no page faults
are timed. One thread unless THREADS says otherwise; BITS and GROUP likewise (4, 64).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from timing import seconds

from cmibq import arrays
from cmibq.runtime import native

THREADS = int(os.environ.get("THREADS", "1"))
BITS = int(os.environ.get("BITS", "4"))
GROUP = int(os.environ.get("GROUP", "64"))
TOKENS = (1, 8, 32, 256, 1024)
SHAPES = [(128, 128), (512, 128), (128, 512), (512, 512), (4096, 4096)]
"""Outputs, inputs: the demo's layers, and a layer of a 7 B model."""


def calls(m: int, n: int, k: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield every way to multiply [m, k] by a weight [n, k]."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(n, k)).astype(np.float32)
    x, out = rng.normal(size=(m, k)).astype(np.float32), np.empty((m, n), np.float32)
    step, zero = arrays.qparams(w.reshape(-1, GROUP), BITS, half_scale=True)
    level = arrays.codes(w.reshape(-1, GROUP), step, zero, bits=BITS)
    packed = arrays.pack(level.reshape(n, k), bits=BITS)
    scale = step.astype(np.float16).reshape(n, -1).view(np.uint16)
    points = arrays.pack(zero.reshape(n, -1), bits=BITS)
    weight = (packed, BITS, scale, points, None, out)
    codes, xscale = arrays.codes_token(x)
    for isa in native().ISAS:
        if m * n * k > 1e9 and isa == "scalar":
            continue
        core = native().Kernels(isa, THREADS)
        work = np.empty(core.qgemm_workspace(m, n, k, scale.shape[1], BITS), np.uint8)
        if isa != "avx512vnni":  # same kernels as avx512
            yield f"f32 {isa}", partial(core.qgemm_f32, x, *weight, work)
        if isa != "avx512":  # same kernels as avx2
            yield f"s8 {isa}", partial(core.qgemm_s8, codes, xscale, *weight, work)
    dense, result = torch.from_numpy(w), torch.from_numpy(out)
    multiply = partial(torch.mm, torch.from_numpy(x), dense.T, out=result)
    yield "linear", multiply

    def unpack_and_multiply() -> None:
        arrays.unpack(packed, bits=BITS, cols=k)
        arrays.decode(level, step, zero, out=w.reshape(-1, GROUP))
        multiply()

    yield "unpack+linear", unpack_and_multiply


def main() -> None:
    torch.set_num_threads(THREADS)
    print(f"{BITS} bits, groups of {GROUP}, {THREADS} thread(s)")
    for n, k in SHAPES:
        for m in TOKENS:
            if m * n * k > 5e9:
                continue
            print(f"[{m}, {k}] x [{n}, {k}]")
            for name, call in calls(m, n, k):
                middle, spread = seconds(call, repeats=7)
                print(
                    f"  {name:14s} {1e6 * middle:9.1f} us +- {1e6 * spread:7.1f}"
                    f"  {2e-9 * m * n * k / middle:7.1f} GFLOP/s"
                )


if __name__ == "__main__":
    main()
