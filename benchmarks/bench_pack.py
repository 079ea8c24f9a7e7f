"""Packing and unpacking of 2-, 3- and 4-bit codes, one thread."""

from __future__ import annotations

import numpy as np
from timing import SHAPES, report


def main() -> None:
    rng = np.random.default_rng(0)
    for rows, cols in SHAPES:
        for bits in (2, 3, 4):
            code = rng.integers(0, 2**bits, (rows, cols)).astype(np.uint8)
            packed, back = np.empty((rows, cols * bits // 8), np.uint8), np.empty_like(code)
            options = {"shape": (rows, cols), "moved": code.nbytes + packed.nbytes}
            print(f"{bits} bits:")
            report("pack_row", (code, bits, packed), **options)
            report("unpack_row", (packed, bits, back), **options)


if __name__ == "__main__":
    main()
