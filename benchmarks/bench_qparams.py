"""Grids from minimum and maximum and from a search of 20 ranges, one thread, beside torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from timing import SHAPES, report

from cmibq.ops.qparams import reference, reference_mse


def main() -> None:
    torch.set_num_threads(1)
    for shape in SHAPES:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        t, rows = torch.from_numpy(x), shape[0]
        scale, zero, err = np.empty(rows, np.float32), np.empty(rows, np.uint8), np.empty(rows)
        plain = partial(reference, t, 4, 6)
        report("qparams_row", (x, 4, 6, scale, zero), shape=shape, moved=x.nbytes, peer=plain)
        plain = partial(reference_mse, t, 4, 6, 20, 0.5)
        args = (x, 4, 6, 20, 0.5, scale, zero, err)
        report("qparams_mse_row", args, shape=shape, moved=20 * x.nbytes, peer=plain)


if __name__ == "__main__":
    main()
