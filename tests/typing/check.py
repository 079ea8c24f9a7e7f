"""Checked by mypy --strict in `make types`: what the stubs promise to a caller."""

from __future__ import annotations

from typing import assert_type

import numpy as np
from numpy.typing import NDArray

from cmibq import arrays
from cmibq._C import Kernels
from cmibq.runtime import kernels

x = np.zeros((2, 3), np.float32)
one = np.ones(2, np.float32)
assert_type(arrays.fakequant(x, one, -one, one), NDArray[np.float32])
assert_type(kernels(threads=1), Kernels)
assert_type(kernels().isa, str)
