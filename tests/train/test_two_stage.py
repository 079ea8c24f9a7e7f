"""Both stages as the seed calls them, and what their loop offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from cmibq.errors import ConfigError, DataError, ModelError
from cmibq.train import AlignmentHead, Loop, stage_one_pretrain, stage_two_finetune
from tests.train.hosts import config, data, host, same, state

CPU = torch.device("cpu")


def adamw(module: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=lr)


def test_stage_one_trains_the_layer_in_one_pass() -> None:
    model = host(latent_dim=2)
    before = state(model)
    for p in (*model.projector.parameters(), *model.head.parameters()):
        p.requires_grad_(False)
    made = data()
    for batch in made:
        batch["features"][..., 2:] = batch["features"][..., :2]  # two channels say it all
    batches = iter(made * 5)  # a loader without a length
    logs = stage_one_pretrain(
        model.cm_ibq, batches, adamw(model.cm_ibq), CPU, gamma=1.0, host=model
    )
    assert len(logs) == 30
    assert next(batches, None) is None
    assert {"reconstruction", "rate", "bitrate", "alignment", "total", "target_bits"} == {*logs[0]}
    assert logs[0]["target_bits"] == 4.0
    assert logs[-1]["total"] < 0.5 * logs[0]["total"]
    changed = same(before, state(model))
    assert changed
    assert all(name.startswith("cm_ibq.") for name in changed)


def test_stage_two_anneals_and_ends_at_the_target() -> None:
    model = host(whole=False)  # the rate is found from mu and the bits
    logs = stage_two_finetune(model.cm_ibq, model, data() * 5, adamw(model), CPU, anneal=True)
    bits = [log["target_bits"] for log in logs]
    assert (bits[0], bits[-1]) == (4.0, 2.0)
    assert bits == sorted(bits, reverse=True)
    assert model.cm_ibq.target_bits == 2.0
    assert logs[-1]["task"] < logs[0]["task"]
    assert all(log["rate"] > 0 for log in logs)
    with torch.no_grad():
        assert model.eval().cm_ibq(torch.randn(2, 2, 4), None)[4].sum() == 8


def test_the_rate_is_that_of_the_layer_where_a_host_leaves_it_out() -> None:
    logs = [
        stage_two_finetune(m.cm_ibq, m, data(), adamw(m), CPU)
        for m in (host(whole=True), host(whole=False))
    ]
    assert [pytest.approx(log) for log in logs[0]] == logs[1]


def test_without_annealing_the_target_stays() -> None:
    model = host()
    model.cm_ibq.target_bits = 3.0
    logs = stage_two_finetune(model.cm_ibq, model, data(2), adamw(model), CPU, anneal=False)
    assert [log["target_bits"] for log in logs] == [3.0, 3.0]
    assert model.cm_ibq.target_bits == 3.0


def test_stage_one_refuses_what_is_not_frozen() -> None:
    model = host()
    with pytest.raises(ModelError, match="optimiser holds 4 parameters that are not the layer's"):
        stage_one_pretrain(model.cm_ibq, data(), adamw(model), CPU)
    with pytest.raises(ModelError, match=r"host has 4 parameters.*projector.weight"):
        stage_one_pretrain(model.cm_ibq, data(), adamw(model.cm_ibq), CPU, host=model)
    with pytest.raises(ModelError, match="give an IBQuantizedLayer"):
        stage_one_pretrain(nn.Linear(2, 2), data(), adamw(model.cm_ibq), CPU)


def test_alignment_is_trained_with_its_head() -> None:
    model = host(alignment_weight=1.0)
    head = AlignmentHead(4, 4)
    both = torch.optim.AdamW([*model.cm_ibq.parameters(), *head.parameters()], lr=1e-2)
    before = state(head)
    logs = stage_one_pretrain(model.cm_ibq, data() * 10, both, CPU, alignment=head)
    assert logs[-1]["alignment"] < logs[0]["alignment"]
    assert same(before, state(head))


def test_accumulation_equals_the_large_batch() -> None:
    """Losses are means, so two batches of four give the step of one batch of eight."""
    halves, steps = data(4, rows=4), []
    whole = [
        {k: torch.cat([a[k], b[k]]) for k in a}
        for a, b in zip(halves[::2], halves[1::2], strict=True)
    ]
    for batches, loop in ((halves, Loop(accumulate=2)), (whole, Loop())):
        model = host()
        for quantizer in [model.cm_ibq.quantizer]:  # the same ranges for both
            quantizer.running_min.fill_(-3.0)
            quantizer.running_max.fill_(3.0)
            quantizer.observe = lambda x: None  # type: ignore[method-assign]
        model.cm_ibq.prior.started.fill_(1)  # it would start with the first batch
        optimiser = torch.optim.SGD(model.cm_ibq.parameters(), lr=0.1)
        logs = stage_one_pretrain(model.cm_ibq, batches, optimiser, CPU, loop=loop)
        assert len(logs) == 2
        steps.append(state(model))
    for name in steps[0].keys() - {"cm_ibq.draws"}:  # counts batches
        torch.testing.assert_close(steps[0][name], steps[1][name], atol=1e-6, rtol=1e-5)


def test_clipping_bounds_the_step() -> None:
    model = host()
    model.cm_ibq.prior.started.fill_(1)
    before = state(model)
    optimiser = torch.optim.SGD(model.cm_ibq.parameters(), lr=1.0)
    stage_one_pretrain(model.cm_ibq, data(1), optimiser, CPU, loop=Loop(clip_norm=1e-3))
    moved = [(state(model)[n] - before[n]).square().sum() for n, _ in model.named_parameters()]
    assert float(torch.stack(moved).sum().sqrt()) <= 1.001e-3


def test_half_precision() -> None:
    model = host()
    loop = Loop(autocast=torch.bfloat16)
    logs = stage_two_finetune(model.cm_ibq, model, data() * 4, adamw(model), CPU, loop=loop)
    assert logs[-1]["task"] < logs[0]["task"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_compiled_layer_gives_the_same_steps() -> None:
    logs = []
    for compiled in (False, True):
        layer = host().cm_ibq
        given: Any = torch.compile(layer, backend="eager") if compiled else layer
        logs.append(stage_one_pretrain(given, data(3), adamw(layer), CPU))
    assert [log["total"] for log in logs[0]] == pytest.approx([log["total"] for log in logs[1]])


def test_scheduler_and_callback_see_every_step() -> None:
    model, seen = host(), []
    optimiser = adamw(model.cm_ibq, 1.0)
    rates = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.5, total_iters=2)
    loop = Loop(scheduler=rates, on_step=lambda step, log: seen.append(step), accumulate=2)
    stage_one_pretrain(model.cm_ibq, data(5), optimiser, CPU, loop=loop)
    assert seen == [0, 1, 2]  # two batches, two batches, one
    assert optimiser.param_groups[0]["lr"] == 0.5


def test_passes_share_one_schedule() -> None:
    model = host()
    optimiser = adamw(model)
    bits = []
    for epoch in range(2):
        loop = Loop(steps=12, start=6 * epoch)
        logs = stage_two_finetune(model.cm_ibq, model, data(), optimiser, CPU, loop=loop)
        bits += [log["target_bits"] for log in logs]
        assert (model.cm_ibq.target_bits == 2.0) == (epoch == 1)
    once = host()
    logs = stage_two_finetune(once.cm_ibq, once, data() * 2, adamw(once), CPU)
    assert bits == [log["target_bits"] for log in logs]


def test_what_is_wrong_is_named() -> None:
    model = host()
    layer, optimiser = model.cm_ibq, adamw(model.cm_ibq)
    with pytest.raises(DataError, match="a batch of stage one has x; it needs a dict"):
        stage_one_pretrain(layer, [{"x": 1}], optimiser, CPU)
    with pytest.raises(ConfigError, match="accumulate is 0"):
        Loop(accumulate=0)
    with pytest.raises(ConfigError, match="clip_norm is nan"):
        Loop(clip_norm=float("nan"))
    with pytest.raises(ModelError, match="nested cm_ibq"):
        stage_two_finetune(layer, _Plain(), data(1), optimiser, CPU)


class _Plain(nn.Module):
    def forward(self, batch: Any, target_bits: float) -> Any:
        return batch


def test_a_loss_that_is_not_finite_stops_before_the_step() -> None:
    model = host()

    class Broken(nn.Module):
        def forward(self, batch: Any, target_bits: float) -> Any:
            told = model(batch, target_bits)
            return told | {"loss": told["loss"] * float("nan")}

    before = state(model.head)
    with pytest.raises(DataError, match="loss of step 0 of stage 2 is not finite"):
        stage_two_finetune(model.cm_ibq, Broken(), data(), adamw(model), CPU)
    assert same(before, state(model.head)) == []


def test_batches_that_were_done_are_not_made() -> None:
    """A loader that can start later is asked to."""

    class Loader:
        asked = -1

        def __len__(self) -> int:
            return 4

        def starting_at(self, batch: int) -> Iterator[Any]:
            self.asked = batch
            return iter(data(4)[batch:])

        def __iter__(self) -> Iterator[Any]:
            return self.starting_at(0)

    model, loader = host(), Loader()
    stage_one_pretrain(model.cm_ibq, loader, adamw(model.cm_ibq), CPU)
    assert loader.asked == 0
    assert config().stage2_bits == 2.0


def test_an_allocator_learns_by_trial() -> None:
    """Every step has a policy term until the maps are frozen; its network changes."""
    model = host(allocator="reinforce")
    before = state(model.cm_ibq.allocation)
    logs = stage_one_pretrain(model.cm_ibq, data(), adamw(model.cm_ibq), CPU)
    assert all("policy" in log for log in logs)
    assert same(before, state(model.cm_ibq.allocation))
    logs = stage_two_finetune(model.cm_ibq, model, data(), adamw(model), CPU)
    assert ["policy" in log for log in logs] == [True] * 5 + [False]
    assert model.cm_ibq.frozen


@pytest.mark.parametrize("mode", ["shared", "task"])
def test_the_last_steps_run_on_frozen_maps(mode: str) -> None:
    model = host(mode=mode)
    frozen: list[bool] = []
    loop = Loop(watch=lambda step, found: frozen.append(model.cm_ibq.frozen))
    stage_two_finetune(model.cm_ibq, model, data(10), adamw(model), CPU, loop=loop)
    assert frozen == [False] * 8 + [True] * 2
    assert int(model.cm_ibq.maps.sum(1)[0]) == 8


def test_a_layer_that_is_computed_twice_gives_the_same_steps() -> None:
    """Gradient checkpointing around the layer: ranges and noise of the first pass count."""
    from torch.utils.checkpoint import checkpoint

    logs, ends = [], []
    for twice in (False, True):
        model = host(stochastic_rounding=True)
        run = model.cm_ibq.run
        if twice:
            model.cm_ibq.run = lambda *a, **k: checkpoint(run, *a, use_reentrant=False, **k)  # type: ignore[method-assign]  # noqa: B023
        logs.append(stage_two_finetune(model.cm_ibq, model, data(), adamw(model), CPU))
        ends.append(state(model))
    assert logs[0] == logs[1]
    assert same(*ends) == []
