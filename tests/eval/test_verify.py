from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from cmibq import models
from cmibq.data import encode, read_items
from cmibq.errors import DataError
from cmibq.eval.answers import MOST_TOKENS, Answers, ask, random_text
from cmibq.eval.verify import LIMITS, Limit, compare


def said(*rows: list[float]) -> Answers:
    return Answers(torch.tensor(rows, dtype=torch.float32).log())


def test_kl_and_top1_by_hand() -> None:
    found = compare(
        said([0.5, 0.25, 0.25], [0.1, 0.8, 0.1]),
        said([0.25, 0.5, 0.25], [0.1, 0.8, 0.1]),
        bits=4,
        samples=1,
        held_out=True,
    )
    wanted = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert found.kl == pytest.approx(wanted / 2)
    assert found.kl_max == pytest.approx(wanted)
    mean = [0.3, 0.525, 0.175]
    blind = sum(
        p * math.log(p / m)
        for row in ([0.5, 0.25, 0.25], [0.1, 0.8, 0.1])
        for p, m in zip(row, mean, strict=True)
    )
    assert found.kl_blind == pytest.approx(blind / 2, rel=1e-5)
    assert (found.top1, found.places, found.ok) == (0.5, 2, True)
    assert json.loads(json.dumps(found.to_json()))["ok"]


def test_beyond_the_limit_is_said_with_numbers() -> None:
    before, after = said([0.98, 0.01, 0.01]), said([0.01, 0.98, 0.01])
    found = compare(before, after, bits=4, samples=1, held_out=True)
    assert not found.ok
    text = " ".join(found.reasons)
    assert "4.447 nats per token" in text
    assert "more than 1 that 4-bit" in text
    assert "at 0 % of the places" in text
    assert "use more bits" in text
    assert compare(before, after, bits=2, samples=1, held_out=True, limit=Limit(5, 0)).ok
    assert "far worse than" in compare(before, after, bits=2, samples=1, held_out=True).reasons[0]


def test_nan_and_a_reload_that_differs() -> None:
    before = said([0.5, 0.5])
    broken = Answers(torch.full((1, 2), math.nan))
    found = compare(before, broken, bits=2, samples=1, held_out=False)
    assert "NaN or infinite" in found.reasons[0]
    assert found.to_json()["kl"] is None
    found = compare(before, before, bits=8, samples=1, held_out=False, reload_exact=False)
    assert "read back from disk" in found.reasons[0]
    assert "calibration places" in found.summary()


def test_every_width_has_a_limit() -> None:
    assert sorted(LIMITS) == list(range(2, 9))
    limits = [LIMITS[bits].kl for bits in sorted(LIMITS)]
    assert limits == sorted(limits, reverse=True)


def test_asking_a_model(llava_dir: Path, items_path: Path) -> None:
    loaded = models.load(llava_dir)
    encoded = encode(read_items(items_path)[:3], loaded.processor)
    first = ask(loaded, encoded)
    assert first.logprobs.shape == (sum(int(s.answer.sum()) for s in encoded), 32)
    torch.testing.assert_close(first.logprobs.exp().sum(-1), torch.ones(len(first.logprobs)))
    assert len(first.captions) == 2
    again = ask(loaded, encoded)
    assert torch.equal(first.logprobs, again.logprobs)
    assert first.captions == again.captions
    assert len(ask(loaded, encoded * MOST_TOKENS, captions=0).logprobs) <= 256


def test_random_text_needs_no_data(llava_dir: Path) -> None:
    loaded = models.load(llava_dir)
    texts = random_text(loaded)
    assert not any((s.ids == 3).any() for s in texts)  # no image token
    found = ask(loaded, texts)
    assert found.captions == ()
    with pytest.raises(DataError, match="give samples with answers"):
        ask(loaded, [])


def test_nan_in_either_model_is_never_agreement() -> None:
    good, bad = said([0.5, 0.5]), Answers(torch.tensor([[math.nan, math.nan]]))
    for before, after in ((bad, good), (good, bad), (bad, bad)):
        found = compare(before, after, bits=4, samples=1, held_out=True)
        assert not found.ok
        assert "NaN" in found.reasons[0]
