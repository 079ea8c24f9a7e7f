"""Composed towers in trainings, threads, copies and compilers."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from cmibq.errors import ConfigError, ModelError
from cmibq.models import composition
from cmibq.models.composed import CALMVisionTower
from cmibq.recipe.calm import CALMConfig
from tests.models.towers import clip, dino, pixels, processors

pytest.importorskip("transformers")


def make(anchor: Any = None, augmenting: Any = None, seed: int = 3, **fields: Any) -> Any:
    """Return a composed tower whose fusions do something."""
    config = CALMConfig(**({"composition_layers": 2, "attention_heads": 4} | fields))
    tower = CALMVisionTower(anchor or clip(), augmenting or dino(), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in tower.calm_modules.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return tower


def seen(tower: Any, given: Any = None) -> Tensor:
    with torch.no_grad():
        made: Tensor = tower(given or pixels()).last_hidden_state
    return made


def gradients(tower: Any, given: Any = None) -> list[Tensor]:
    tower.zero_grad()
    tower(given or pixels()).last_hidden_state.square().sum().backward()
    return [p.grad.clone() for p in tower.calm_modules.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def hooks(*towers: nn.Module) -> int:
    return sum(len(m._forward_hooks) for t in towers for m in t.modules())


def test_towers_are_frozen_and_in_evaluation() -> None:
    host = nn.ModuleList([make()])
    assert host.train()[0].calm_modules.training
    tower: Any = host[0]
    assert not any(
        m.training for t in (tower.anchor_tower, tower.augmenting_tower) for m in t.modules()
    )
    trained = {n.split(".")[0] for n, p in tower.named_parameters() if p.requires_grad}
    assert trained == {"calm_modules"}
    noisy = make(dino(drop_path_rate=0.5, hidden_dropout_prob=0.5), clip()).train()
    given = {"anchor": pixels()["augmenting"], "augmenting": pixels()["anchor"]}
    assert torch.equal(noisy(given).last_hidden_state, noisy(given).last_hidden_state)


def test_only_wanted_layers_are_kept_and_the_tower_runs_once() -> None:
    tower = make()
    calls: list[bool] = []
    tower.augmenting_tower.register_forward_hook(
        lambda *_: calls.append(torch.is_inference_mode_enabled())
    )
    found = tower.augment(pixels()["augmenting"])
    assert not any(t.is_inference() or t.requires_grad for t in found.values())
    gc.collect()
    kept = [t for t in gc.get_objects() if type(t) is Tensor and t.shape == (2, 10, 24)]
    assert len(kept) == 2
    with torch.no_grad():
        assert all(t.is_inference() for t in tower.augment(pixels()["augmenting"]).values())
    tower(pixels()).last_hidden_state.sum().backward()
    assert calls == [True] * 3


def saved_bytes(tower: Any) -> int:
    """Return the bytes of activations that autograd keeps for a backward pass."""
    sizes: dict[int, int] = {}
    held = {p.untyped_storage().data_ptr() for p in tower.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in held:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with saved_tensors_hooks(pack, lambda t: t):
        tower(pixels()).last_hidden_state.sum()
    return sum(sizes.values())


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    tower = make(composition_layers=1, anchor_layers=(1,)).train()
    want, bytes_ = gradients(tower), saved_bytes(tower)
    tower.gradient_checkpointing = True
    assert equal(gradients(tower), want)
    assert saved_bytes(tower) < 0.6 * bytes_
    assert torch.equal(seen(tower), seen(tower.eval()))
    plain = [type(b) for b in clip().encoder.layers]
    assert [type(b).__name__ for b in tower.anchor_tower.encoder.layers] == [
        p.__name__ for p in plain
    ]
    assert [type(b) for b in tower.detach().encoder.layers] == plain


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_host_that_checkpoints_the_anchor(reentrant: bool) -> None:
    """Its switch reaches the tower; the frozen layers never take the host's own way."""
    tower = make().train()
    want = gradients(tower)
    kind = {"use_reentrant": reentrant}
    tower.anchor_tower.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kind)
    assert equal(gradients(tower), want)
    for module in tower.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    assert equal(gradients(tower), want)


def test_the_whole_tower_inside_a_checkpoint() -> None:
    tower = make().train()
    want = gradients(tower)
    for tower.gradient_checkpointing in (False, True):
        tower.zero_grad()
        made = checkpoint(lambda: tower(pixels()).last_hidden_state, use_reentrant=False)
        made.square().sum().backward()
        assert equal([p.grad for p in tower.calm_modules.parameters()], want)


def test_a_missing_gradient_path_is_none() -> None:
    """Every fusion up to the layer that is read gets a gradient: there are no dead modules."""
    tower = make(select_layer=-2, composition_layers=3)
    assert tower.layers == (0, 1, 2)
    made = tower(pixels(), output_hidden_states=True)
    made.hidden_states[-2].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for n, p in tower.calm_modules.named_parameters()
               if not n.endswith(("in_proj_bias",)))  # fmt: skip
    with pytest.raises(ConfigError, match=r"3 layers; choose 1\.\.3"):
        make(select_layer=-2, composition_layers=4)
    with pytest.raises(ConfigError, match=r"select_layer is -5.*choose -1\.\.-4"):
        make(select_layer=-5)
    with pytest.raises(ConfigError, match="tower has 6 layers"):
        make(clip(num_hidden_layers=8), composition_layers=7)


def test_recorded_hidden_states_are_the_fused_ones() -> None:
    tower = make().eval()
    states = tower(pixels(), output_hidden_states=True).hidden_states
    assert torch.equal(states[-1], seen(tower))
    alone = tower.anchor_tower(pixels()["anchor"], output_hidden_states=True).hidden_states
    same = [torch.equal(a, b) for a, b in zip(states, alone, strict=True)]
    assert same == [True, True, False, False, False]


def batches(count: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(5)
    shapes = {"anchor": (1, 3, 28, 28), "augmenting": (1, 3, 42, 42)}
    return [{n: torch.randn(s, generator=g) for n, s in shapes.items()} for _ in range(count)]


def test_threads_and_towers_that_share_an_anchor() -> None:
    anchor, augmenting = clip(), dino()
    first, second = make(anchor, augmenting), make(anchor, augmenting, seed=4)
    both = (first.train(), second.train())
    first.gradient_checkpointing = True
    given = batches(12)
    want = [seen(both[i % 2], x) for i, x in enumerate(given)]
    start = threading.Barrier(4)

    def run(i: int) -> Tensor:
        if i < 4:
            start.wait()
        made: Tensor = both[i % 2](given[i]).last_hidden_state
        made.sum().backward()
        return made

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(run, range(12)))
    assert equal(made, want)
    alone = anchor(given[0]["anchor"]).last_hidden_state
    first.detach()
    assert torch.equal(seen(second, given[1]), want[1])
    second.detach()
    assert hooks(augmenting) == 0
    assert torch.equal(anchor(given[0]["anchor"]).last_hidden_state, alone)


def test_one_tower_in_both_places() -> None:
    anchor = clip()
    one, other = make(anchor, anchor), make(clip(), clip())
    given = {"anchor": pixels()["anchor"], "augmenting": pixels()["anchor"].flip(0)}
    assert torch.equal(seen(one, given), seen(other, given))


def replica(module: nn.Module) -> nn.Module:
    """Return what `torch.nn.parallel.replicate` makes of a module for another device."""
    made = module._replicate_for_data_parallel()
    for name, child in module._modules.items():
        made._modules[name] = replica(child) if child is not None else None
    for name, p in module._parameters.items():
        other = p if p is None else p.detach().clone().mul_(2).requires_grad_(p.requires_grad)
        setattr(made, name, other)
    return made


def test_replicas_run_on_their_own_parameters() -> None:
    tower = make().train()
    tower.gradient_checkpointing = True
    want = gradients(tower)
    other: Any = replica(tower)
    made = other(pixels()).last_hidden_state
    assert not torch.allclose(made, seen(tower))
    tower.zero_grad()
    made.sum().backward()
    assert all(p.grad is None for p in tower.parameters())
    assert other.calm_modules[0].gate.grad.any()
    doubled = copy.deepcopy(tower)
    with torch.no_grad():
        for p in doubled.parameters():
            p.mul_(2)
    assert torch.equal(made, seen(doubled))
    assert equal(gradients(tower), want)


def test_a_copy_is_independent() -> None:
    tower = make().train()
    tower.gradient_checkpointing = True
    want = gradients(tower)
    other = copy.deepcopy(tower)
    assert equal(gradients(other), want)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert equal(gradients(tower), want)
    assert not seen(other).any()
    other.detach()
    assert equal(gradients(tower), want)


def test_hooks_go_away() -> None:
    anchor, augmenting = clip(), dino()
    before = anchor(pixels()["anchor"]).last_hidden_state
    tower = make(anchor, augmenting)
    assert hooks(anchor, augmenting) == 4
    assert tower.detach() is anchor
    assert hooks(anchor, augmenting) == 0
    assert torch.equal(anchor(pixels()["anchor"]).last_hidden_state, before)
    with pytest.raises(ModelError, match="this tower was detached"):
        tower(pixels())
    with pytest.raises(ConfigError, match="num_heads is 5"):
        make(anchor, augmenting, attention_heads=5)
    assert hooks(anchor, augmenting) == 0


def test_errors_leave_nothing_behind() -> None:
    anchor = clip()
    alone = anchor(pixels()["anchor"]).last_hidden_state
    tower = make(anchor)
    with pytest.raises(ConfigError, match="3 images for the anchor and 2"):
        tower(pixels() | {"anchor": torch.randn(3, 3, 28, 28)})
    fail = tower.calm_modules[1].register_forward_pre_hook(lambda *_: None)
    fail.remove()

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    tower.calm_modules[1].attend = broken
    with pytest.raises(RuntimeError, match="broken"):
        tower(pixels())
    assert composition._COMPOSING.get() is None
    assert composition._CAPTURING.get() is None
    assert torch.equal(anchor(pixels()["anchor"]).last_hidden_state, alone)
    del tower.calm_modules[1].attend
    assert seen(tower).isfinite().all()


def test_pixels() -> None:
    tower = make()
    given = pixels()["anchor"]
    first, second = tower.pixels(given)
    assert first is given
    assert second.shape == (2, 3, 42, 42)
    with pytest.raises(ConfigError, match="lacks 'augmenting'"):
        tower({"anchor": given})
    tower.processors = processors()
    with pytest.raises(ConfigError, match=r"\(28, 28\) pixels; give \(70, 42\).*PackedProcessor"):
        tower(given)
    same = make(clip(), clip())
    assert same.pixels(given)[1] is given


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
def test_torch_compile() -> None:
    """Hooks break the graph at their ContextVar; what comes out is the same."""
    short = {"num_hidden_layers": 1}
    tower = make(clip(**short), dino(**short), composition_layers=1)
    want = seen(tower)
    compiled: Any = torch.compile(tower, backend="eager")
    assert torch.equal(seen(compiled), want)
