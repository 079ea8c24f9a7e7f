"""Row and column reductions, one thread, beside torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from timing import SHAPES, report

from cmibq.ops.reduce import reference_absmax, reference_abssum, reference_minmax


def main() -> None:
    torch.set_num_threads(1)
    for shape in SHAPES:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        t = torch.from_numpy(x)
        options = {"shape": shape, "moved": x.nbytes}
        for axis, end in enumerate(("row", "col")):
            low, high = np.empty(shape[axis], np.float32), np.empty(shape[axis], np.float32)
            total, weight = np.empty(shape[axis]), [np.ones(shape[0])] * axis
            plain = partial(reference_minmax, t, axis)
            report(f"minmax_{end}", (x, low, high), peer=plain, **options)
            plain = partial(reference_absmax, t, axis)
            report(f"absmax_{end}", (x, low), peer=plain, **options)
            plain = partial(reference_abssum, t, None, axis)
            report(f"abssum_{end}", (x, *weight, total), peer=plain, **options)


if __name__ == "__main__":
    main()
