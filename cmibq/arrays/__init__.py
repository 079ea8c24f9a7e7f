"""The kernels for NumPy: arrays in, arrays out, without torch.

Every function takes C-contiguous arrays, allocates only its result (or writes to `out`), and gives
the same bits on every ISA and thread count.
"""

from __future__ import annotations

from cmibq.arrays.fakequant import fakequant, fakequant_backward

__all__ = ["fakequant", "fakequant_backward"]
