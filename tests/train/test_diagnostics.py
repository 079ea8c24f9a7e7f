"""Numbers and figures of a training, and where else they go."""

from __future__ import annotations

import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from cmibq.errors import ConfigError, DataError
from cmibq.fileio import write_json
from cmibq.report import bottleneck_plots as plots
from cmibq.report.bottleneck import LiveFigure, write_training_report
from cmibq.train import Journal, Loop, stage_two_finetune
from cmibq.train.diagnostics import (
    BitRecorder,
    channel_rates,
    coded_bytes,
    diagnose,
    entropy_bits,
    information_plane,
    rate_distortion,
)
from cmibq.train.journal import read_journal
from cmibq.train.trackers import TRACKERS, open_trackers
from tests.train.hosts import data, host

CPU = torch.device("cpu")


def trained(rate: str, folder: Path) -> Any:
    model = host(rate=rate, max_bits=6)
    loop = Loop(
        journal=Journal(folder / "log.jsonl"),
        watch=BitRecorder(folder / "bits.jsonl", 2, every=4),
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    stage_two_finetune(model.cm_ibq, model, data(20), optimiser, CPU, loop=loop)
    return model.eval()


def test_channel_rates_add_up_to_the_rate_of_the_layer(tmp_path: Path) -> None:
    for rate in ("discrete", "gaussian"):
        layer = trained(rate, tmp_path / rate).cm_ibq
        batches = data(3)
        bits, spent = channel_rates(layer, batches)
        with torch.no_grad():
            results = [layer.run(b["features"], b["task_embedding"]) for b in batches]
        per_element = sum(float(r.rate.sum()) for r in results) / (3 * 4 * 2)
        assert float(spent.sum()) == pytest.approx(per_element, rel=1e-4)
        assert float(bits.sum()) == 8  # floor(2 * 4)


def test_diagnosis_names_dead_channels_and_counts_bits(tmp_path: Path) -> None:
    layer = trained("discrete", tmp_path).cm_ibq
    told = diagnose(layer, data(2), targets=[1.0, 2.0, 4.0])
    assert json.loads(json.dumps(told)) == told
    assert sum(told["histogram"].values()) == 4
    assert all(told["bits"][i] < 0.01 or told["rates"][i] < 0.01 for i in told["dead"])
    assert told["bytes"] is None
    layer.finalize_()
    told |= {"bytes": diagnose(layer, data(2))["bytes"]}
    batch = data(2)[:1]
    sizes = layer.compress(batch[0]["features"], batch[0]["task_embedding"]).sizes
    assert coded_bytes(layer, batch) == sum(sizes) / 4
    assert 0 < told["bytes"] <= 8 + 2 * 4
    points = told["curve"]
    assert [p["target"] for p in points] == [1.0, 2.0, 4.0]
    assert points[0]["mse"] > points[2]["mse"]
    assert points[0]["bits"] < points[2]["bits"]
    assert len(diagnose(layer, data(1))["curve"]) >= 8
    with pytest.raises(DataError, match="no batches"):
        channel_rates(layer, [])


def test_rate_distortion_by_hand() -> None:
    """A layer that begins as the identity has the error of rounding, step^2 / 12, at 8 bits."""
    model = host(max_bits=8)
    model.cm_ibq.quantizer.running_min.fill_(-4.0)
    model.cm_ibq.quantizer.running_max.fill_(4.0)
    (point,) = rate_distortion(model.eval().cm_ibq, data(40), [8.0])
    assert point["mse"] == pytest.approx((8 / 255) ** 2 / 12, rel=0.1)
    assert point["snr"] == pytest.approx(-10 * math.log10(point["mse"]), abs=0.5)


def test_bounds_by_hand() -> None:
    """Four answers alike are two bits; a cross-entropy of a quarter bit per token, two tokens."""
    assert entropy_bits("abcd") == 2.0
    assert entropy_bits(["yes"]) == 0.0
    record = {"stage": 2, "step": 3, "rate": 0.5 * math.log(2), "task": 0.25 * math.log(2)}
    facts = {"elements": 8, "answer_tokens": 2, "answer_bits": 2.0}
    (point,) = information_plane([record, {"stage": 1, "step": 0, "rate": 1.0}], facts)
    assert point == {"step": 3, "rate": pytest.approx(4.0), "relevance": pytest.approx(1.5)}


def test_recorder_goes_on_where_training_does(tmp_path: Path) -> None:
    for start in (0, 3):
        recorder = BitRecorder(tmp_path / "bits.jsonl", 1, every=2)
        for step in range(start, 6):
            recorder(step, {"bit_allocation": torch.full((2,), float(step + 10 * start))})
    told = [(r["step"], r["bits"][0]) for r in read_journal(tmp_path / "bits.jsonl")]
    assert told == [(0, 0.0), (2, 2.0), (4, 34.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves behind."""
    out = tmp_path_factory.mktemp("run")
    layer = trained("discrete", out).cm_ibq
    write_json(out / "diagnostics.json", diagnose(layer, data(2)))
    write_json(out / "run.json", {"elements": 8, "answer_tokens": 1.0, "answer_bits": 1.58})
    return out


def test_figures_return_their_axes(folder: Path) -> None:
    from matplotlib.figure import Figure

    log, bits = read_journal(folder / "log.jsonl"), read_journal(folder / "bits.jsonl")
    found = json.loads((folder / "diagnostics.json").read_text())
    points = information_plane(log, json.loads((folder / "run.json").read_text()))
    for draw, given in (
        (plots.plot_losses, log),
        (plots.plot_bit_heatmap, bits),
        (plots.plot_bit_histogram, found),
        (plots.plot_channel_rates, found),
        (plots.plot_rate_distortion, found),
        (plots.plot_information_plane, points),
    ):
        ax = Figure().subplots()
        made = draw(given, ax)  # type: ignore[operator]
        assert made is ax
        assert made.get_xlabel()
        assert made.get_ylabel()


def test_the_page_is_whole_and_loads_nothing(folder: Path) -> None:
    text = write_training_report(folder).read_text()
    assert text.count("<svg") == 6
    assert "bytes per image" in text
    assert 'src="http' not in text
    assert "<script" not in text
    with pytest.raises(DataError, match=r"has no run\.json"):
        write_training_report(folder / "nothing")


def test_live_figures_are_drawn_anew(folder: Path) -> None:
    shown: list[Any] = []
    live = LiveFigure(2, every=3, show=shown.append)
    model = host()
    optimiser = torch.optim.AdamW(model.parameters())
    stage_two_finetune(model.cm_ibq, model, data(7), optimiser, CPU, loop=Loop(on_step=live))
    assert len(shown) == 2
    assert shown[0].axes[0].get_ylabel() == "loss term"


def test_trackers_get_every_term(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for both packages: what is called, and with what."""
    calls: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            calls.append(("open", folder))

        def add_text(self, *given: Any) -> None:
            calls.append(("text", *given))

        def add_scalar(self, *given: Any) -> None:
            calls.append(given)

        def close(self) -> None:
            calls.append(("close",))

    class Run:
        def log(self, told: dict[str, float]) -> None:
            calls.append(("wandb", told))

        def finish(self) -> None:
            calls.append(("finish",))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    wandb = types.ModuleType("wandb")
    wandb.init = lambda **given: calls.append(("init", given["mode"])) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for tracker in open_trackers(["tensorboard", "wandb"], tmp_path, {"beta": 0.1}):
        tracker(2, 5, {"task": 1.5})
        tracker.close()
    assert ("stage 2/task", 1.5, 5) in calls
    assert ("init", "offline") in calls
    assert ("wandb", {"stage 2/task": 1.5, "stage 2/step": 5}) in calls
    assert ("close",) in calls
    assert ("finish",) in calls
    assert {*TRACKERS} == {"tensorboard", "wandb"}
    with pytest.raises(ConfigError, match="unknown tracker 'mlflow'"):
        open_trackers(["mlflow"], tmp_path, {})
