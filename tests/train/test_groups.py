"""Groups of an optimiser: ranges and prior learn at a rate of their own."""

from __future__ import annotations

import torch

from cmibq.nn.ib_layer import IBQuantizedLayer
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.train.groups import parameter_groups, scale_parameters, split_scales_


def layer(rate: str = "discrete") -> IBQuantizedLayer:
    return IBQuantizedLayer(CMIBQConfig(feature_dim=4, hidden_dim=8, rate=rate))


def test_every_parameter_is_in_one_group() -> None:
    for rate, fast in (("discrete", 5), ("gaussian", 1)):
        made = layer(rate)
        slow, quick = parameter_groups(made, made.parameters(), 1e-4, 3e-2)
        assert (slow["lr"], quick["lr"]) == (1e-4, 3e-2)
        assert len(quick["params"]) == len(scale_parameters(made)) == fast
        every = [*slow["params"], *quick["params"]]
        assert {id(p) for p in every} == {id(p) for p in made.parameters()}
        assert len(every) == len(list(made.parameters()))


def test_an_optimiser_is_split_once_and_keeps_what_is_frozen_out() -> None:
    made = layer()
    made.quantizer.requires_grad_(False)
    trained = [p for p in made.parameters() if p.requires_grad]
    host = torch.nn.Parameter(torch.zeros(2))
    optimiser = torch.optim.SGD([*trained, host], lr=1e-3, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        split_scales_(optimiser, made, 0.5)
        slow, quick = optimiser.param_groups
        assert (slow["lr"], slow["weight_decay"]) == (1e-3, 0.1)
        assert (quick["lr"], quick["weight_decay"], quick["momentum"]) == (0.5, 0.0, 0.9)
        assert len(quick["params"]) == 4
        assert len(slow["params"]) == len(trained) - 4 + 1
