"""What a CM-IBQ layer is and how it is trained: the fields of ``cmibq train cm-ibq``'s layer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from cmibq.errors import ConfigError, nearest
from cmibq.recipe.base import at_least, choice, opt, require

__all__ = ["CMIBQConfig"]

_WEIGHTS = ("reconstruction_weight", "beta", "gamma", "alignment_weight")


@dataclass(frozen=True)
class CMIBQConfig:
    """One information-bottleneck quantisation layer and the losses that train it.

    Bits are per element of the latent; targets are means over channels (and tokens).

    Raises:
        ConfigError: a field is out of range or conflicts with another.

    Example:
        >>> CMIBQConfig(feature_dim=64, task_dim=32, stage2_bits=3).latent_dim
        64
    """

    feature_dim: int = opt(0, "width of the features that come in and of the reconstruction")
    task_dim: int = opt(0, "width of the task embedding; 0 = there is none (mode shared)")
    hidden_dim: int = opt(1024, "hidden width of the importance and allocation networks")
    latent_dim: int = opt(0, "channels that are quantised; 0 = feature_dim")
    min_bits: int = opt(2, "fewest bits of a channel, from 0 (not sent)")
    max_bits: int = opt(8, "most bits of a channel, up to 8")
    stage1_bits: float = opt(8.0, "mean bits that training starts with")
    stage2_bits: float = opt(4.0, "mean bits that training ends with")
    mode: str = opt("shared", "shared: encode once, ask later; task: the question is known")
    rate: str = opt("discrete", "discrete: bits of the codes under a learned prior; or gaussian")
    budget: str = opt("hard", "hard: bits meet the target exactly; soft: a loss pulls them there")
    allocator: str = opt("network", "bits per channel: network, flat, variance, reinforce, ...")
    importance: str = opt("network", "importance of channels: network, variance, fisher, rollout")
    grid: str = opt("affine", "levels: affine, log or pow2")
    stochastic_rounding: bool = opt(False, "round at random, right in the mean, while training")
    token_gain: bool = opt(False, "share the budget out over tokens too; 0 drops one")
    token_levels: int = opt(8, "levels of the token gain, in halves from 0: 8 = up to 3.5")
    costs: tuple[int, ...] = opt((), "what a bit of each channel costs, whole numbers; () = 1")
    stream: int = opt(0, "tells the noise of several layers in one model apart")
    n_maps: int = opt(256, "most bit maps that a frozen layer keeps; a stream names one of them")
    reconstruction_weight: float = opt(1.0, "weight of the mean squared error of reconstruction")
    beta: float = opt(1e-3, "weight of the rate (or of the KL), in nats per element")
    gamma: float = opt(1.0, "weight of the distance of the mean bits from the target (soft)")
    alignment_weight: float = opt(0.0, "weight of InfoNCE between latents and text; 0 = off")
    temperature: float = opt(0.07, "temperature that InfoNCE starts with")
    schedule: str = opt("linear", "way of the target from stage1_bits down: linear, cosine, step")
    hold_start: float = opt(0.1, "share of the steps at stage1_bits before")
    hold_end: float = opt(0.2, "share of the steps at stage2_bits after, on frozen integer maps")
    schedule_steps: int = opt(4, "levels of the schedule step")
    momentum: float = opt(0.05, "weight of a batch in the running ranges")
    seed: int = opt(0, "of noise and of stochastic rounding")

    def __post_init__(self) -> None:
        self._check_types()
        if not self.latent_dim:
            object.__setattr__(self, "latent_dim", self.feature_dim)
        for name in ("feature_dim", "latent_dim", "hidden_dim"):
            at_least(name, getattr(self, name), 1)
        at_least("task_dim", self.task_dim, 0)
        at_least("stream", self.stream, 0, 2**30 - 1)
        at_least("seed", self.seed, -(2**63), 2**63 - 1)
        at_least("min_bits", self.min_bits, 0, 8)
        at_least("max_bits", self.max_bits, max(1, self.min_bits), 8)
        at_least("n_maps", self.n_maps, 1, 256)
        at_least("token_levels", self.token_levels, 3, 17)
        at_least("schedule_steps", self.schedule_steps, 1)
        choice("mode", self.mode, ("shared", "task"))
        choice("rate", self.rate, ("discrete", "gaussian"))
        choice("budget", self.budget, ("hard", "soft"))
        choice("schedule", self.schedule, ("linear", "cosine", "step"))
        self._check_numbers()
        self._check_pairs()

    def _check_types(self) -> None:
        """Refuse values of another type than their fields'; also those that a subclass adds."""
        for field in fields(self):
            self._check_type(field.name, str(field.type))

    def _check_type(self, name: str, kind: str) -> None:
        """Refuse a value of another type than the field's; whole floats are no integers."""
        value, kind = getattr(self, name), kind.removesuffix(" | None")
        if value is None and self.__dataclass_fields__[name].default is None:
            return
        if kind.startswith("tuple"):
            good = isinstance(value, list | tuple) and all(type(v) is int for v in value)
            require(good, f"{name} is {value!r}; allowed are lists of integers")
            object.__setattr__(self, name, tuple(value))
            return
        allowed = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}[kind]
        good = isinstance(value, allowed) and (kind == "bool" or not isinstance(value, bool))
        require(good, f"{name} is {value!r}; allowed are values of type {kind}")

    def _check_numbers(self) -> None:
        """Refuse targets outside the bits, negative weights and shares that do not fit."""
        for name in ("stage1_bits", "stage2_bits"):
            self.check_target(getattr(self, name), name)
        for name in _WEIGHTS:
            value = getattr(self, name)
            good = math.isfinite(value) and value >= 0
            require(good, f"{name} is {value}; allowed are numbers from 0")
        require(
            math.isfinite(self.temperature) and self.temperature > 0,
            f"temperature is {self.temperature}; allowed are numbers above 0",
        )
        require(0 < self.momentum <= 1, f"momentum is {self.momentum}; allowed are 0 (excluded)..1")
        shares = self.hold_start, self.hold_end
        require(
            min(shares) >= 0 and sum(shares) <= 1 and all(map(math.isfinite, shares)),
            f"hold_start and hold_end are {shares}; allowed are shares from 0 that add up to 1 at"
            " most",
        )

    def _check_pairs(self) -> None:
        """Refuse fields that conflict with one another."""
        require(
            self.mode == "shared" or self.task_dim > 0,
            "mode is 'task' but task_dim is 0; give the width of the task embedding",
        )
        require(
            not self.costs or (len(self.costs) == self.latent_dim and min(self.costs) >= 1),
            f"costs has {len(self.costs)} entries, the least {min(self.costs, default=1)}; give"
            f" latent_dim ({self.latent_dim}) whole numbers from 1",
        )

    def check_target(self, target: float, name: str = "target_bits") -> None:
        """Refuse a mean that no bits in ``min_bits..max_bits`` have.

        Raises:
            ConfigError: naming the argument, the value and the range.
        """
        good = isinstance(target, int | float) and not isinstance(target, bool)
        require(good, f"{name} is {target!r}; give a number, for example 4.0")
        require(
            self.min_bits <= target <= self.max_bits,
            f"{name} is {target}; allowed are {self.min_bits}..{self.max_bits} (min_bits and"
            " max_bits)",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON takes them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CMIBQConfig:
        """Return the configuration of a dictionary, such as `to_dict` made.

        Raises:
            ConfigError: a key is unknown, or a value is out of range.
        """
        for key in fields:
            if key not in cls.__dataclass_fields__:
                hint = nearest(key, cls.__dataclass_fields__)
                raise ConfigError(f"CMIBQConfig has no field {key!r}; {hint}")
        return cls(**fields)
