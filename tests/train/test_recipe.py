"""The fields of ``cmibq train cm-ibq``."""

from __future__ import annotations

from typing import Any

import pytest

from cmibq.errors import ConfigError
from cmibq.recipe.cm_ibq import CMIBQConfig
from cmibq.recipe.train import TrainRecipe


def test_layer_takes_its_widths_from_the_model() -> None:
    recipe = TrainRecipe(mode="task", stage2_bits=3.0, beta=0.5)
    layer = recipe.layer(64)
    assert type(layer) is CMIBQConfig
    assert (layer.feature_dim, layer.task_dim, layer.latent_dim) == (64, 64, 64)
    assert (layer.stage2_bits, layer.beta) == (3.0, 0.5)
    assert TrainRecipe(latent_dim=16).layer(64).latent_dim == 16
    assert TrainRecipe().layer(64).task_dim == 0


def test_parts_and_trackers_are_words() -> None:
    assert TrainRecipe(train="").parts == ()
    assert TrainRecipe(train="projector, lm").parts == ("lm", "projector")
    assert TrainRecipe(track="wandb, tensorboard").tracks == ("wandb", "tensorboard")


def test_identity_is_that_of_the_result() -> None:
    assert TrainRecipe(name="a", threads=2).identity == TrainRecipe().identity
    assert TrainRecipe(seed=1).identity != TrainRecipe().identity


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"stage2_bits": 9.0}, r"stage2_bits is 9.0; allowed are 2..8"),
        ({"train": "projectors"}, "scope has unknown part 'projectors'"),
        ({"track": "mlflow"}, "track is 'mlflow'; allowed are tensorboard, wandb"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"task": "given"}, "task is 'given'"),
        ({"stage2_steps": 0}, "stage2_steps is 0"),
        ({"stage1_lr": -1.0}, "stage1_lr is -1.0"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"batch_size": "4"}, "batch_size is '4'; allowed are values of type int"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"accumulate": None}, "accumulate is None"),
        ({"stage1_lr": "1e-3"}, "stage1_lr is '1e-3'"),
        ({"scale_lr": float("nan")}, "scale_lr is nan"),
        ({"train": None}, "train is None"),
        ({"threads": "2"}, "threads is '2'"),
        ({"overwrite": 1}, "overwrite is 1"),
    ],
)
def test_wrong_values_are_named(field: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainRecipe(**field)
