"""Rounding that lets later inputs make up for the error of earlier ones: GPTQ on NumPy arrays.

Rounding the rows of W to Q costs ``tr (W - Q) H (W - Q)^T``. With the factor ``H = L D L^T`` (L
unit lower triangular, the inputs in reverse order of work) that is ``sum_k D_k r_k**2``, where r_k
is what rounding adds at input k to ``w_k + sum_j (w_j - q_j) L_jk``, j over the inputs done before.
GPTQ is to round each of these sums to the nearest level (QuIP calls it LDLQ and proves it the
same); neither the inverse of H nor an update of all that is left is needed.

A *sweep* repeats that with the exact ``H / H_kk`` in place of L and all other inputs in place of
those done before: coordinate descent, which never makes the error larger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmibq.arrays.cholesky import damped_factor
from cmibq.arrays.moments import check_moments, output_error
from cmibq.errors import ConfigError
from cmibq.products import multiply
from cmibq.strips import STRIP, Bits, check_bits

__all__ = ["Compensated", "gptq"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
_BLOCK, _PART = 128, 16
_VALUES_AT_ONCE = 1 << 23


class Compensated(NamedTuple):
    """Codes of a weight, and what they cost."""

    codes: U8
    """uint8 [N, K], ``0 .. 2**bits - 1``."""
    error: F64
    """float64 [N], ``d H d^T`` of every output; never more than that of the nearest codes."""


@dataclass(frozen=True, eq=False)
class _Work:
    """Weight and grids with inputs in the rows, in reverse order of work: all [K, N] or [G, N]."""

    w: F32
    scale: F32
    low: F32
    high: F32
    group: NDArray[np.intp]

    def nearest(self, k: int, t: F32) -> F32:
        """Return the levels that are nearest to the values t [N] of input k."""
        g = self.group[k]
        return np.asarray(np.rint(np.clip(t / self.scale[g], self.low[g], self.high[g])))

    def codes(self, level: F32) -> U8:
        """Return the codes [K, N] of levels."""
        return np.asarray(level - self.low[self.group], np.uint8)

    def value(self, k: int, level: F32) -> F32:
        """Return what levels of input k stand for."""
        return np.asarray(level * self.scale[self.group[k]])


def _sweep_(work: _Work, m: F32, e: F32, level: F32, first: bool) -> None:
    """Round the inputs one by one to ``w_k + sum_j e_j m_jk``, blocked.

    Args:
        work: weight and grids.
        m: float32 [K, K], share of the error of input j that is made up for at input k; the
            diagonal is not read in the first pass and is 0 in others.
        e: float32 [K, N], errors ``w - q``; updated.
        level: float32 [K, N]; updated.
        first: nothing is rounded yet: `e` is 0 and `m` lower triangular.
    """
    for stop in range(len(m), 0, -_BLOCK):
        start = max(stop - _BLOCK, 0)
        rows = slice(stop, None) if first else slice(None)
        t = work.w[start:stop].copy()
        if stop < len(m) or not first:
            t += multiply(m[rows, start:stop].T, e[rows], 0, 1.0, None, 0, None, None)
        for end in range(stop, start, -_PART):
            at = max(end - _PART, start)
            before = e[at:end].copy()
            for k in range(end - 1, at - 1, -1):
                level[k] = work.nearest(k, t[k - start])
                new = work.w[k] - work.value(k, level[k])
                t[at - start : k - start] += m[k, at:k, None] * (new - e[k])
                e[k] = new
            if at > start:
                change = e[at:end] - before
                t[: at - start] += multiply(
                    m[at:end, start:at].T, change, 0, 1.0, None, 0, None, None
                )


def _descent(h: F32, order: NDArray[np.intp], damp: float) -> F32:
    """Return the matrix of a sweep: ``h_jk / h_kk``, 0 on the diagonal."""
    m = np.ascontiguousarray(h[np.ix_(order, order)])
    m /= m.diagonal().copy() + np.float32(damp)
    np.fill_diagonal(m, 0)
    return m


def _prepare(
    w: F32, scale: F32, zero: F32, width: F32, order: NDArray[np.intp], part: slice
) -> _Work:
    """Return the work on some of the outputs; `scale` and `zero` are [N, G], `width` is [N]."""
    z = np.ascontiguousarray(zero[part].T)
    s = np.ascontiguousarray(scale[part].T)
    rows = np.ascontiguousarray(w[part].T[order])
    top = (2.0 ** width[part] - 1).astype(np.float32)
    return _Work(rows, s, -z, top - z, order // (w.shape[1] // s.shape[0]))


def _check(w: F32, scale: F32, zero: U8, damp: float, sweeps: int) -> None:
    groups, rest = divmod(len(scale), len(w))
    if rest or not groups or w.shape[1] % groups or zero.shape != scale.shape:
        raise ConfigError(
            f"scale has {len(scale)} and zero {len(zero)} numbers for a weight {list(w.shape)}; "
            "give one per group, row by row"
        )
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ConfigError(
            "scale has numbers that are not finite and > 0; give those of clip_search"
        )
    if not damp > 0 or sweeps < 0:
        raise ConfigError(f"damp is {damp} and sweeps {sweeps}; allowed are > 0 and >= 0")


def _errors(e: F32, inverse: NDArray[np.intp], h: F32) -> F64:
    return output_error(np.ascontiguousarray(e[inverse].T), h)


class _State(NamedTuple):
    """Codes [K, N] on the way: the last ones, the best ones, and their cost [N]."""

    last: U8
    best: U8
    cost: F64


def _begin(work: _Work, factor: F32, h: F32, inverse: NDArray[np.intp]) -> _State:
    """Round inputs to the nearest levels, and one after the other; tell which is better."""
    level = np.stack([work.nearest(k, row) for k, row in enumerate(work.w)])
    e = work.w - level * work.scale[work.group]
    best, cost = work.codes(level), _errors(e, inverse, h)
    e[:] = 0
    _sweep_(work, factor, e, level, True)
    last, new = work.codes(level), _errors(e, inverse, h)
    better = new < cost
    best[:, better], cost[better] = last[:, better], new[better]
    return _State(last, best, cost)


def _descend(
    work: _Work, m: F32, h: F32, inverse: NDArray[np.intp], state: _State, sweeps: int
) -> _State:
    """Take sweeps of coordinate descent, until one makes no output better."""
    last, best, cost = state
    level = last + work.low[work.group]
    e = work.w - level * work.scale[work.group]
    for _ in range(sweeps):
        _sweep_(work, m, e, level, False)
        new = _errors(e, inverse, h)
        better = new < cost
        if not better.any():
            break
        best[:, better], cost[better] = work.codes(level)[:, better], new[better]
    return _State(last, best, cost)


def gptq(
    w: F32,
    h: F32,
    scale: F32,
    zero: U8,
    *,
    bits: Bits,
    damp: float = 0.01,
    act_order: bool = True,
    sweeps: int = 2,
) -> Compensated:
    """Choose codes so that the output, not each weight, is rounded as well as possible.

    Args:
        w: float32 [N, K], finite.
        h: float32 [K, K] from `second_moments`.
        scale: float32 [N * G], grids of the groups, row by row, from `clip_search` or `qparams`.
        zero: uint8 [N * G], as `scale`.
        bits: 1..8, or one width for every 16 outputs.
        damp: share of the mean of the diagonal of `h` that is added to it.
        act_order: begin with the inputs that count most; groups stay where they are.
        sweeps: passes of coordinate descent after the first one; they stop where nothing changes.

    Returns:
        `Compensated`. An output for which the nearest codes are better keeps those.

    Raises:
        ConfigError: an option is out of range, a shape does not fit.
        ModelError: `h` has NaN or a negative diagonal.

    References:
        Frantar et al., "GPTQ", ICLR 2023, algorithm 1; Chee et al., "QuIP", NeurIPS 2023, theorem 6
        (the form without an inverse); Behdin et al., "QuantEase", 2023 (coordinate descent).

    Example:
        >>> w = np.array([[0.4, 0.4]], np.float32)  # two inputs that are nearly the same
        >>> h = np.array([[1, 0.9], [0.9, 1]], np.float32)
        >>> grid = (np.ones(1, np.float32), np.zeros(1, np.uint8))
        >>> gptq(w, h, *grid, bits=2).codes  # the nearest ones are 0 and 0
        array([[0, 1]], dtype=uint8)
    """
    check_moments(w, h)
    if not w.size:
        return Compensated(np.zeros(w.shape, np.uint8), np.zeros(len(w)))
    _check(w, scale, zero, damp, sweeps)
    outs, cols = w.shape
    by = -h.diagonal() if act_order else np.arange(cols)
    order = np.argsort(by, kind="stable")[::-1]
    inverse = np.argsort(order)
    s, z = scale.reshape(outs, -1), zero.reshape(outs, -1).astype(np.float32)
    width = np.repeat(check_bits(bits, outs, least=1), STRIP)[:outs]
    step = max(_VALUES_AT_ONCE // cols, STRIP)
    parts = [slice(at, at + step) for at in range(0, outs, step)]
    factor, damping = damped_factor(h, order, damp)
    factor /= factor.diagonal().copy()
    works = (_prepare(w, s, z, width, order, part) for part in parts)
    states = [_begin(work, factor, h, inverse) for work in works]
    del factor  # large matrices: h and one more at a time
    m = _descent(h, order, damping) if sweeps else h
    codes, cost = np.empty(w.shape, np.uint8), np.empty(outs)
    for n, part in enumerate(parts):
        work = _prepare(w, s, z, width, order, part)
        state = _descend(work, m, h, inverse, states[n], sweeps)
        codes[part] = state.best[inverse].T
        cost[part] = state.cost
    return Compensated(codes, cost)
