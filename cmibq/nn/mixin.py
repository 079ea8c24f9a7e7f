"""What all quantised modules share: their states."""

from __future__ import annotations

import enum
from typing import Self

from torch import nn

from cmibq.errors import ConfigError

__all__ = ["QuantModule", "State"]


class State(enum.Enum):
    """What the forward pass of a quantised module does."""

    FLOAT = "float"
    """As the module it wraps."""
    OBSERVE = "observe"
    """As FLOAT, and records the range of its inputs."""
    FAKE = "fake"
    """Rounds weights (and activations) to their grids; differentiable."""
    PACKED = "packed"
    """Computes from integer codes; no float weight exists. Final."""


class QuantModule(nn.Module):
    """A module with a `State`; subclasses name the states they can take.

    Example:
        >>> from cmibq.nn import PackedLinear
        >>> PackedLinear(8, 4, bits=4, group_size=8, symmetric=True).state
        <State.PACKED: 'packed'>
    """

    STATES: tuple[State, ...] = ()
    state: State

    def set_state_(self, state: State) -> Self:
        """Enter a state.

        Raises:
            ConfigError: the module cannot take it.
        """
        if state not in self.STATES:
            allowed = ", ".join(s.value for s in self.STATES)
            raise ConfigError(
                f"state is {state.value}; {type(self).__name__} can be {allowed}"
                + ("; pack with convert_" if state is State.PACKED else "")
            )
        self._enter(state)
        self.state = state
        return self

    def _enter(self, state: State) -> None:
        """Prepare what the new state needs."""
