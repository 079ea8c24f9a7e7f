"""A Cholesky factor whose bits depend neither on the CPU nor on the number of threads.

LAPACK's does on both, and GPTQ carries a last bit of it on into other codes. Here the products are
the library's own float32 ones, and what lies on the diagonal is factored in double by plain NumPy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cmibq.products import multiply

__all__ = ["cholesky_", "damped_factor"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
_PANEL = 64
_TRIES = 16


def _small(a: F64) -> F64 | None:
    """Return the lower factor of a small matrix; None if it is not positive definite."""
    a = a.copy()
    for j in range(len(a)):
        if not a[j, j] > 0:
            return None
        a[j:, j] /= np.sqrt(a[j, j])
        a[j + 1 :, j + 1 :] -= a[j + 1 :, j, None] * a[j + 1 :, j]
    return np.asarray(np.tril(a))


def _inverse(low: F64) -> F64:
    """Return the inverse of a lower triangular matrix."""
    made = np.zeros_like(low)
    for i in range(len(low)):
        made[i, :i] = -(low[i, :i, None] * made[:i, :i]).sum(0)
        made[i, i] = 1.0
        made[i, : i + 1] /= low[i, i]
    return made


def cholesky_(a: F32) -> bool:
    """Overwrite a symmetric matrix by its lower Cholesky factor; what lies above is not set.

    Args:
        a: float32 [K, K], C-contiguous; its lower half is read.

    Returns:
        Whether it was positive definite; if not, its content is lost.

    References:
        Golub and Van Loan, "Matrix Computations", section 4.2.9 (left-looking, by panels).

    Example:
        >>> a = np.array([[4, 2], [2, 5]], np.float32)
        >>> cholesky_(a), np.tril(a).tolist()
        (True, [[2.0, 0.0], [1.0, 2.0]])
    """
    for at in range(0, len(a), _PANEL):
        end = min(at + _PANEL, len(a))
        if at:
            a[at:, at:end] -= multiply(a[at:, :at], a[at:end, :at].T, 0, 1.0, None, 0, None, None)
        low = _small(a[at:end, at:end].astype(np.float64))
        if low is None:
            return False
        a[at:end, at:end] = low
        if end < len(a):
            below = np.ascontiguousarray(a[end:, at:end])
            inverse = _inverse(low).astype(np.float32)
            a[end:, at:end] = multiply(below, inverse.T, 0, 1.0, None, 0, None, None)
    return True


def damped_factor(h: F32, order: NDArray[np.intp], damp: float) -> tuple[F32, float]:
    """Return the lower factor of ``h + c * I`` in another order of the inputs.

    ``c = damp * mean(diagonal)``; ten times as much where that is not positive definite yet.

    Args:
        h: float32 [K, K], symmetric, positive semidefinite.
        order: [K], which input comes where.
        damp: first try, > 0.

    Returns:
        (factor, c): float32 [K, K] with zeros above the diagonal.
    """
    mean = float(h.diagonal().mean(dtype=np.float64)) if len(h) else 0.0
    step = np.float32(damp * mean if mean > 0 else 1.0)
    for attempt in range(_TRIES):
        a = np.ascontiguousarray(h[np.ix_(order, order)])
        if attempt == _TRIES - 1:  # rounding noise alone cannot get here
            a *= np.eye(len(a), dtype=np.float32)
        a.ravel()[:: len(a) + 1] += step
        if cholesky_(a):
            for at in range(0, len(a), _PANEL):
                a[at : at + _PANEL, at + _PANEL :] = 0
            return a, float(step)
        step *= np.float32(10)
    raise AssertionError("a diagonal matrix was not positive definite")
