"""Gates of tokens and channels: what they shut, and that they learn what a question needs."""

import pytest
import torch

from cmibq.errors import ModelError
from cmibq.nn.ib_gates import Gates, _places, _tries, even, gate_loss, start_rest_, try_gates
from cmibq.nn.ib_layer import CMIBQConfig, IBQuantizedLayer

D, E, T = 6, 3, 4


def made(**fields):
    torch.manual_seed(0)
    some = {"feature_dim": D, "task_dim": E, "hidden_dim": 32, "min_bits": 1, "mode": "task"}
    return IBQuantizedLayer(CMIBQConfig(**(some | {"stage1_bits": 2, "stage2_bits": 2} | fields)))


def test_what_is_shut_takes_the_code_of_rest_and_nothing_else_changes():
    gates = Gates(D, E, 8, 3)
    with torch.no_grad():
        gates.rest.copy_(torch.tensor([5.0, 6.0, 7.0]))
    mu, x, q = torch.randn(2, T, 3), torch.randn(2, T, D), torch.randn(2, E)
    given = torch.ones(2, T + 3, dtype=torch.bool)
    given[0, 1] = given[1, T + 2] = False  # a token of the first, a channel of the second sample
    found = gates(mu, x, q, given)
    want = mu.clone()
    want[0, 1], want[1, :, 2] = torch.tensor([5.0, 6.0, 7.0]), 7.0
    assert torch.equal(found, want)
    assert torch.equal(gates(mu, x, q), mu)  # all start open


def test_all_parameters_of_gates_get_a_gradient_and_it_moves_only_rest():
    gates = Gates(D, E, 8, 3)
    given = torch.tensor([[True, False, True, True, False, True, True]])
    gates(torch.randn(1, T, 3), torch.randn(1, T, D), torch.randn(1, E), given).sum().backward()
    told = {name: float(p.grad.abs().sum()) for name, p in gates.named_parameters()}
    assert {name for name, size in told.items() if size} == {"rest"}


def test_scores_do_not_hang_on_the_scale_of_what_they_read():
    gates = Gates(D, E, 8, 3)
    for p in gates.parameters():
        torch.nn.init.normal_(p)
    x, q = torch.randn(2, T, D), torch.randn(2, E)
    torch.testing.assert_close(gates.scores(100 * x, 0.01 * q), gates.scores(x, q))
    torch.testing.assert_close(even(torch.tensor([3.0, 4.0])).square().mean(), torch.tensor(1.0))
    assert len(_places(T, x).unique(dim=0)) == T


def test_tries_turn_one_gate_each():
    drawn, turned, tries = _tries(torch.zeros(5, T + 3), T, 2)
    assert turned.shape == (5, 4)
    assert bool(tries[:, 0].all())
    assert bool(drawn[::2].all())
    assert torch.equal(tries[:, 1], drawn)
    changed = tries[:, 2:] != drawn[:, None]
    assert bool((changed.sum(2) == 1).all())
    assert torch.equal(changed.float().argmax(2), turned)
    assert bool((turned[:, :2] < T).all())
    assert bool((turned[:, 2:] >= T).all())


def test_gates_learn_which_token_and_which_channels_a_task_needs():
    """Task k asks for token k; the last half of the channels is needed by none."""
    layer = made()
    optimiser = torch.optim.Adam(layer.conditioner.gates.parameters(), lr=2e-2)
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    generator = torch.Generator().manual_seed(1)

    def batch():
        asked = torch.randint(E, (32,), generator=generator)
        x = torch.randn(32, T, D, generator=generator)
        return x, torch.nn.functional.one_hot(asked, E).float(), asked

    layer.train().run(*batch()[:2])  # ranges
    for _ in range(120):
        x, q, asked = batch()

        def cost(sent, which, x=x, asked=asked):
            wrong = (sent - x[which]).square() * weights
            return 10 * wrong[torch.arange(len(which)), asked[which]].sum(1)

        optimiser.zero_grad()
        gate_loss(layer, try_gates(layer, x, q, cost, weight=2e-2)).backward()
        optimiser.step()
    assert layer.training
    x, q, asked = batch()
    scores = layer.conditioner.gates.scores(x, q)
    needed = torch.nn.functional.one_hot(asked, T).bool()
    assert float(((scores[:, :T] > 0) == needed).float().mean()) > 0.95
    assert bool((scores[:, T : T + 3] > 0).all())
    assert bool((scores[:, T + 3 :] < 0).all())
    layer.target_bits = 2
    layer.train().run(x, q)
    layer.eval().freeze_()
    before = layer.run(x, q, gates=torch.ones(32, T + D, dtype=torch.bool)).rate.mean()
    layer.finalize_(layer.count_codes(x, q))
    made_of = layer.compress(x, q)
    assert torch.equal(layer.decompress(made_of), layer.run(x, q).quantised)
    assert sum(made_of.rate) / len(made_of.rate) < 0.5 * float(before.detach())


def test_rest_starts_where_the_usual_codes_are():
    layer = made(min_bits=1, stage1_bits=1, stage2_bits=1)
    x = torch.full((40, T, D), -1.0)
    x[:, 0] = 3.0  # one token of four has the other code
    q = torch.zeros(40, E)
    layer.train().run(x, q)
    start_rest_(layer, x, q)
    assert layer.training
    torch.testing.assert_close(layer.conditioner.gates.rest.detach(), torch.full((D,), -1.0))
    shut = layer.eval().run(x, q, gates=torch.zeros(40, T + D, dtype=torch.bool))
    assert len(shut.quantised.flatten(0, 1).unique(dim=0)) == 1


def test_one_map_for_all_tasks_hangs_on_none():
    layer = made(n_maps=1, min_bits=0, stage1_bits=3, stage2_bits=2)
    with torch.no_grad():
        layer.importance.channel.copy_(torch.arange(D).float())
    x, q = torch.randn(5, T, D), torch.randn(5, E)
    bits = layer.train()(x, q)[4]
    assert bits.shape == (5, D)
    assert bool((bits == bits[0]).all())
    layer.target_bits = 2
    layer.freeze_()
    layer.finalize_(layer.eval().count_codes(x, q))
    made_of = layer.compress(x, q)
    assert torch.equal(layer.decompress(made_of), layer(x, q)[0])
    assert len(layer.maps) == 1


def test_a_layer_that_knows_no_task_has_no_gates():
    with pytest.raises(ModelError, match="mode 'task'"):
        try_gates(made(mode="shared"), torch.randn(2, T, D), None, lambda y, i: y[:, 0], weight=1)
