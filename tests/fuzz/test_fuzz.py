"""Random calls of every public function: right, or refused with a name; inputs stay untouched.

Longer: ``CMIBQ_FUZZ=5000 CMIBQ_FUZZ_SEED=7 pytest tests/fuzz``, also under the sanitizer.
"""

from __future__ import annotations

import copy
import os
import sys
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from cmibq import ops
from cmibq.runtime import native
from tests.fuzz.base import Call
from tests.fuzz.calls import CALLS
from tests.fuzz.draw import hostile

ROUNDS = int(os.environ.get("CMIBQ_FUZZ", "25"))
SEED = int(os.environ.get("CMIBQ_FUZZ_SEED", "1"))
NOT_IN_OPS = ("backward", "qparams", "scaleloss", "percentile", "histogram", "klclip", "search")
ops_attention = sys.modules["cmibq.ops.attention"]
REFUSALS = (ValueError, TypeError, MemoryError, OverflowError)


def listed(made: Any) -> list[np.ndarray]:
    return [np.asarray(v) for v in (made if isinstance(made, (tuple, list)) else [made])]


def run(call: Call, given: dict[str, Any]) -> list[np.ndarray]:
    before = copy.deepcopy(given)
    made = listed(call.function(**given))
    for name, old in before.items():
        if isinstance(old, np.ndarray) and name != "out" and old.dtype != object:
            np.testing.assert_array_equal(given[name], old, err_msg=f"{name} was written to")
    return made


def attempt(call: Call, given: dict[str, Any]) -> tuple[list[np.ndarray], str | None]:
    """Return results, or the words of a refusal; what is no array has no shape, says Python."""
    try:
        return run(call, given), None
    except REFUSALS as error:
        return [], str(error)
    except AttributeError as error:
        if "object has no attribute" not in str(error) or "numpy" in str(error):
            raise
        return [], str(error)


def compare(call: Call, got: list[np.ndarray]) -> None:
    if call.oracle is None:
        return
    with np.errstate(all="ignore"):
        want = listed(call.oracle(**call.given))
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        if isinstance(call.tolerance, float) and call.tolerance == 0:
            np.testing.assert_array_equal(a, b)
        elif np.isfinite(call.tolerance):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=call.tolerance)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a hostile value in NumPy's arithmetic
@pytest.mark.parametrize("name", CALLS)
def test_right_or_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    for turn in range(ROUNDS):
        monkeypatch.setenv("CMIBQ_ISA", str(rng.choice(native().ISAS)))
        call = CALLS[name](rng)
        good = run(call, call.given)
        compare(call, good)
        if call.out is not None and rng.random() < 0.5:
            place = np.full_like(good[call.out], 77)
            again = run(call, call.given | {"out": place})
            assert np.shares_memory(again[call.out], place) or not place.size
            for a, b in zip(again, good, strict=True):
                np.testing.assert_array_equal(a, b)
        bad, same = hostile(rng, call.given)
        made, refusal = attempt(call, bad)
        assert refusal != "", (turn, name, bad)
        if same and refusal is None:
            for a, b in zip(made, good, strict=True):
                np.testing.assert_array_equal(a, b)


def tensors(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    made = {k: torch.from_numpy(np.array(v)) if isinstance(v, np.ndarray) else v
            for k, v in given.items()}  # fmt: skip
    floats = {k: v.to(dtype) for k, v in made.items()
              if isinstance(v, torch.Tensor) and v.dtype == torch.float32}  # fmt: skip
    return made | floats


def torch_results(made: Any) -> list[torch.Tensor]:
    if isinstance(made, ops_attention.Attended):
        return [made.out]
    return [made] if isinstance(made, torch.Tensor) else list(made)


@pytest.mark.parametrize("name", [n for n in CALLS if n not in NOT_IN_OPS])
def test_ops_give_what_arrays_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng([SEED + 1, zlib.crc32(name.encode())])
    for _ in range(ROUNDS):
        isa = str(rng.choice(native().ISAS))
        monkeypatch.setenv("CMIBQ_ISA", isa)
        call = CALLS[name](rng)
        op = getattr(ops, call.function.__name__)
        for a, b in zip(
            torch_results(op(**tensors(call.given, torch.float32))), run(call, call.given),
            strict=True,
        ):  # fmt: skip
            if name == "gemm" and isa == "scalar":  # torch multiplies there
                np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=call.tolerance)
            else:
                np.testing.assert_array_equal(a.numpy(), b)
        for dtype in (torch.float64, torch.bfloat16):
            made = torch_results(op(**tensors(call.given, dtype)))
            assert made[0].shape == run(call, call.given)[0].shape
