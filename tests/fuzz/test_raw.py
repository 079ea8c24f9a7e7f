"""The bindings under calls that nearly fit: every argument may lie, the process stays.

The calls that random public calls make are repeated with other sizes, types, numbers and contents.
Longer, under the sanitizer: ``CMIBQ_FUZZ=500``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cmibq import runtime
from cmibq.arrays import pack, qgemm
from cmibq.runtime import native
from tests.fuzz.calls import CALLS
from tests.fuzz.draw import Rng

ROUNDS = int(os.environ.get("CMIBQ_FUZZ", "15"))
SEED = int(os.environ.get("CMIBQ_FUZZ_SEED", "1"))
NUMBERS = [0, 1, -1, 2, 3, 7, 8, 9, 16, 33, 64, 255, 256, 2**31, 2**32, 2**40, 2**48, 2**63 - 1]
REALS = [0.0, -1.0, np.nan, np.inf, 1e308, 5e-324]
TYPES = [np.float32, np.float64, np.uint8, np.int8, np.int64, np.uint16, np.int32]


class Recorder:
    """Kernels that note what they are called with."""

    def __init__(self, core: Any) -> None:
        self.core, self.calls = core, list[tuple[str, tuple[Any, ...]]]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.core, name)
        if not callable(method):
            return method

        def noted(*args: Any) -> Any:
            self.calls.append((name, args))
            return method(*args)

        return noted


def scramble(rng: Rng, a: np.ndarray) -> np.ndarray:
    made = np.array(a)
    content = made.reshape(-1).view(np.uint8)
    if content.size:
        at = rng.integers(0, content.size, int(rng.choice([1, 3, content.size])))
        content[at] = rng.integers(0, 256, at.size)
    return made


ARRAYS: list[Callable[[Rng, np.ndarray], Any]] = [
    lambda rng, a: a[:-1] if a.ndim else a,
    lambda rng, a: np.concatenate([a, a[:1]]) if a.ndim else a,
    lambda rng, a: np.ascontiguousarray(a[..., :-1]) if a.ndim else a,
    lambda rng, a: a.astype(TYPES[rng.integers(len(TYPES))]),
    lambda rng, a: a.reshape(-1).copy(),
    lambda rng, a: np.empty(tuple(int(n) for n in rng.integers(0, 5, a.ndim)), a.dtype),
    lambda rng, a: None,
    scramble,
    scramble,
    scramble,
]


def changed(rng: Rng, arg: Any) -> Any:
    if isinstance(arg, np.ndarray):
        with np.errstate(all="ignore"):
            return ARRAYS[rng.integers(len(ARRAYS))](rng, arg)
    if arg is None:
        return np.zeros(int(rng.integers(0, 70)), TYPES[rng.integers(len(TYPES))])
    if isinstance(arg, float):
        return REALS[rng.integers(len(REALS))]
    return NUMBERS[rng.integers(len(NUMBERS))]


@pytest.mark.parametrize("name", CALLS)
def test_refused_or_done(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng([SEED + 2, len(name)])
    for _ in range(ROUNDS):
        isa, other = (str(rng.choice(native().ISAS)) for _ in range(2))
        recorder = Recorder(native().Kernels(isa, 2))
        monkeypatch.setattr(runtime, "_MADE", {(isa, runtime.default_threads()): recorder})
        monkeypatch.setenv("CMIBQ_ISA", isa)
        call = CALLS[name](rng)
        call.function(**call.given)
        for method, args in recorder.calls[:20]:
            given = [np.array(a) if isinstance(a, np.ndarray) else a for a in args]
            for _ in range(int(rng.integers(1, 4))):
                at = int(rng.integers(len(given)))
                given[at] = changed(rng, given[at])
            try:
                getattr(native().Kernels(other, int(rng.integers(1, 4))), method)(*given)
            except (ValueError, TypeError, OverflowError, MemoryError) as error:
                words = str(error)
                if not words:
                    raise


def test_more_groups_than_inputs_are_no_division_by_zero() -> None:
    packed = pack(np.zeros((4, 192), np.uint8), bits=2)
    with pytest.raises(ValueError, match="scale has 256 groups for rows of 192 inputs"):
        qgemm(np.ones((35, 192), np.float32), packed, np.ones((4, 256), np.float16), bits=2)
