from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmibq.errors import ConfigError, DataError
from cmibq.eval import Comparison, Sample, read_samples, write_samples


def run(right: np.ndarray, loss: float = 0.0) -> list[Sample]:
    return [
        Sample(
            id=f"q{i}",
            kind="even",
            scans=(i // 2,),
            question="is ä even?",
            answer="yes",
            pred="yes" if ok else "no",
            correct=bool(ok),
            logprob=-0.1 - loss * i,
            image="a.png",
        )
        for i, ok in enumerate(right)
    ]


@pytest.fixture
def runs(rng: np.random.Generator) -> dict[str, list[Sample]]:
    best = rng.random(400) < 0.95
    worst, middle = best.copy(), best.copy()
    worst[:100] = False
    middle[:20] = False
    return {"float": run(best), "rtn": run(worst, 0.01), "awq": run(middle, 0.001)}


def test_means_differences_and_flips(runs: dict[str, list[Sample]]) -> None:
    result = Comparison(runs, baseline="float")
    accuracy = {name: np.mean([s.correct for s in samples]) for name, samples in runs.items()}
    assert result.n_questions == 400
    assert result.mean("rtn").value == accuracy["rtn"]
    difference = result.difference("awq", "rtn")
    assert difference.value == pytest.approx(accuracy["awq"] - accuracy["rtn"])
    assert 0 < difference.low < difference.high
    flips = np.mean([a.pred != b.pred for a, b in zip(runs["float"], runs["rtn"], strict=True)])
    assert result.flips("rtn").value == flips
    assert result.flips("float").value == 0
    assert result.excess_loss("rtn").value == pytest.approx(0.01 * 199.5)
    assert result.excess_loss("float") == (0, 0, 0, 0)


def test_gap_closed(runs: dict[str, list[Sample]]) -> None:
    result = Comparison(runs, baseline="float")
    gap = result.gap_closed("awq", worst="rtn", best="float")
    right = {name: sum(s.correct for s in samples) for name, samples in runs.items()}
    share = (right["awq"] - right["rtn"]) / (right["float"] - right["rtn"])
    assert gap.value == pytest.approx(share)
    assert 0.5 < gap.low < gap.value < gap.high < 1
    assert result.gap_closed("float", "rtn", "float").value == 1
    assert result.gap_closed("awq", "rtn", "float", "logprob").value == pytest.approx(0.9)


def test_questions_are_matched_by_id(runs: dict[str, list[Sample]]) -> None:
    shuffled = {**runs, "awq": runs["awq"][::-1]}
    assert Comparison(shuffled).difference("awq", "rtn") == Comparison(runs).difference(
        "awq", "rtn"
    )


def test_other_questions_are_refused(runs: dict[str, list[Sample]]) -> None:
    with pytest.raises(DataError, match=r"'awq' answered other questions.*q399.*same data"):
        Comparison({**runs, "awq": runs["awq"][:-1]})
    with pytest.raises(DataError, match="two answers with one id"):
        Comparison({"a": [*runs["awq"], runs["awq"][0]]})


def test_names_are_checked(runs: dict[str, list[Sample]]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'float'"):
        Comparison(runs, baseline="floot")
    with pytest.raises(ConfigError, match="runs is empty"):
        Comparison({})
    result = Comparison(runs)
    with pytest.raises(ConfigError, match="unknown run 'aqw'; did you mean 'awq'"):
        result.mean("aqw")
    with pytest.raises(ConfigError, match="allowed are accuracy"):
        result.mean("awq", "speed")
    with pytest.raises(ConfigError, match="name the float model"):
        result.flips("awq")


def test_without_scans_items_of_one_image_go_together() -> None:
    alone = [replace(s, scans=(), image=f"{i}.png") for i, s in enumerate(run(np.arange(40) % 2))]
    pairs = [replace(s, image=f"{i // 8}.png") for i, s in enumerate(alone)]
    none = [replace(s, image="") for s in alone]
    wide = [replace(s, correct=i // 8 % 2 == 0) for i, s in enumerate(pairs)]
    assert Comparison({"a": alone}).mean("a") == Comparison({"a": none}).mean("a")
    assert Comparison({"a": wide}).mean("a").stderr > 2 * Comparison({"a": none}).mean("a").stderr


def test_samples_round_trip(tmp_path: Path, runs: dict[str, list[Sample]]) -> None:
    write_samples(tmp_path / "s.jsonl", runs["awq"])
    assert read_samples(tmp_path / "s.jsonl") == runs["awq"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ("[]", "line 2: no answer record"),
        ('{"id": "a"}', "line 2: no answer record; missing answer"),
        ("", "line 2: not valid JSON"),
    ],
)
def test_damaged_samples(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "s.jsonl"
    write_samples(path, run(np.ones(3)))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(DataError, match=message):
        read_samples(path)


def test_unknown_fields_are_left_out_and_wrong_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    write_samples(path, run(np.ones(1)))
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"later": 1}))
    assert read_samples(path) == run(np.ones(1))
    path.write_text(json.dumps(row | {"logprob": "x"}))
    with pytest.raises(DataError, match="line 1: could not convert"):
        read_samples(path)
    with pytest.raises(DataError, match="run cmibq eval"):
        read_samples(tmp_path / "none.jsonl")
