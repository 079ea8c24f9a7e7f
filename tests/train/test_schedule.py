"""Target bits by step."""

from __future__ import annotations

import pytest

from cmibq.errors import ConfigError
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.train import BitSchedule


@pytest.mark.parametrize("kind", ["linear", "cosine", "step"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 1000])
def test_starts_high_ends_low_and_never_rises(kind: str, steps: int) -> None:
    schedule = BitSchedule(8, 4, steps, kind, levels=3)
    bits = [schedule.bits(step) for step in range(steps)]
    assert bits == sorted(bits, reverse=True)
    assert all(4 <= b <= 8 for b in bits)
    if steps >= 3:
        assert bits[0] == 8
        assert bits[schedule.freeze_step - 1 :] == [4] * (steps - schedule.freeze_step + 1)
    assert schedule.bits(steps + 5) == 4


def test_values_by_hand() -> None:
    """20 steps, 2 held before, 4 after: from step 2 to step 15 in 13 equal parts."""
    linear = BitSchedule(8, 4, 20, "linear", 0.1, 0.2)
    assert linear.freeze_step == 16
    assert [linear.bits(s) for s in (0, 1, 2, 15, 16, 19)] == [8, 8, 8, 4, 4, 4]
    assert linear.bits(3) == pytest.approx(8 - 4 / 13)
    cosine = BitSchedule(8, 4, 11, "cosine", 0, 0)
    assert cosine.bits(5) == pytest.approx(6)
    assert cosine.bits(2) > BitSchedule(8, 4, 11, "linear", 0, 0).bits(2)
    steps = BitSchedule(8, 4, 9, "step", 0, 0, levels=3)
    assert [steps.bits(s) for s in range(9)] == [8, 8, 8, 6, 6, 6, 4, 4, 4]


def test_of_a_configuration() -> None:
    config = CMIBQConfig(feature_dim=2, stage1_bits=6, stage2_bits=3, schedule="cosine")
    schedule = BitSchedule.of(config, 10)
    assert (schedule.start, schedule.end, schedule.kind, schedule.steps) == (6, 3, "cosine", 10)
    with pytest.raises(ConfigError, match="steps is 0"):
        BitSchedule.of(config, 0)
