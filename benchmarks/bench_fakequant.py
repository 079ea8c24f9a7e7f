"""Fake quantisation forward and backward, per row and per column, one thread, beside torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from timing import SHAPES, report

from cmibq.ops.fakequant import reference, reference_backward
from cmibq.runtime import kernels


def main() -> None:
    torch.set_num_threads(1)
    for shape in SHAPES:
        rng = np.random.default_rng(0)
        x, g = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
        out = np.empty_like(x)
        for axis, name in enumerate(("row", "col")):
            n = shape[axis]
            bits = rng.integers(2, 9, n)  # bits vary per channel
            scale = (6 / 2.0**bits).astype(np.float32)
            lo, hi = (-(2.0 ** (bits - 1))).astype(np.float32), (2.0 ** (bits - 1) - 1)
            hi = hi.astype(np.float32)
            tensors = [torch.from_numpy(a) for a in (x, scale, lo, hi)]
            plain = partial(reference, *tensors, axis)
            moved = 2 * x.nbytes
            report(
                f"fakequant_{name}", (x, scale, lo, hi, out), shape=shape, moved=moved, peer=plain
            )
            gscale = np.empty(n)
            args = [x, g, scale, lo, hi, out, gscale]
            if axis:
                args.append(np.zeros((kernels().fakequant_bwd_blocks(*shape), n)))
            plain = partial(reference_backward, torch.from_numpy(g), *tensors, axis)
            moved = 3 * x.nbytes
            report(f"fakequant_bwd_{name}", args, shape=shape, moved=moved, peer=plain)


if __name__ == "__main__":
    main()
