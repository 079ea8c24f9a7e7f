"""The linear layer that rounds its weight (and its inputs) to their grids and back."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmibq.errors import ConfigError
from cmibq.nn.mixin import QuantModule, State
from cmibq.ops.reduce import absmax
from cmibq.quant.functional import fake_quantize_tokens, quantize_weight
from cmibq.quant.quantizers import QUANTIZERS, Quantizer
from cmibq.quant.spec import QParams, QuantSpec

__all__ = ["QuantLinear"]


class QuantLinear(QuantModule, nn.Linear):
    """A linear layer in state float, observe or fake.

    In state fake it computes with its weight rounded to the grids of `spec`, in float32 as the
    packed layer will, and with each token rounded to `act_bits` (dynamic, symmetric). Gradients are
    straight-through. The grids are chosen when the state is entered, from the weight as it is then.

    Args:
        in_features: inputs K.
        out_features: outputs N.
        bias: whether there is a bias.
        spec: how the weight is quantised.
        act_bits: bits of the activations, 2..8, or 16 for float activations.
        quantizer: name in `cmibq.quant.quantizers.QUANTIZERS`.

    Attributes:
        input_absmax: [K], largest magnitude per input channel seen in state observe, or None.

    Raises:
        ConfigError: act_bits out of range, unknown quantizer.

    References:
        MBQ's ``WALinear``: y = Q_a(x) . Q_w(W)^T + b.

    Example:
        >>> from cmibq.quant import PerGroup
        >>> layer = QuantLinear.from_linear(nn.Linear(16, 4), QuantSpec(4, PerGroup(8)), act_bits=8)
        >>> layer.state, layer(torch.ones(2, 16)).shape
        (<State.FAKE: 'fake'>, torch.Size([2, 4]))
    """

    STATES = (State.FLOAT, State.OBSERVE, State.FAKE)
    weight_quantizer: Quantizer | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        spec: QuantSpec,
        act_bits: int = 16,
        quantizer: str = "affine",
    ) -> None:
        super().__init__(in_features, out_features, bias)
        if act_bits not in (*range(2, 9), 16):
            raise ConfigError(f"act_bits is {act_bits}; allowed are 2..8 or 16 (float)")
        self.state, self.spec, self.act_bits = State.FLOAT, spec, act_bits
        self.quantizer = QUANTIZERS[quantizer]
        self.weight_quantizer = None
        self.input_absmax: Tensor | None = None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        spec: QuantSpec,
        *,
        act_bits: int = 16,
        quantizer: str = "affine",
        name: str = "weight",
    ) -> Self:
        """Return the layer in state fake; it shares its parameters with `linear`.

        Raises:
            ModelError: NaN or infinite weights, a group size that does not divide; names the layer.
            ConfigError: act_bits out of range, unknown quantizer.
        """
        with torch.device("meta"):
            new = cls(
                linear.in_features,
                linear.out_features,
                linear.bias is not None,
                spec=spec,
                act_bits=act_bits,
                quantizer=quantizer,
            )
        new.weight, new.bias = linear.weight, linear.bias
        new.weight_quantizer = new.quantizer(spec, quantize_weight(new.weight, spec, name=name))
        new.state = State.FAKE
        return new.train(linear.training)

    def _enter(self, state: State) -> None:
        if state is State.OBSERVE:
            self.input_absmax = None
        if state is State.FAKE and self.state is not State.FAKE:
            self.weight_quantizer = self.quantizer(
                self.spec, quantize_weight(self.weight, self.spec)
            )

    def qparams(self) -> QParams:
        """Return the grids of the weight.

        Raises:
            ConfigError: the layer has none yet.
        """
        if self.weight_quantizer is None:
            raise ConfigError("the layer has no grids yet; call set_state_(State.FAKE) first")
        return self.weight_quantizer.qparams()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``Q_a(x) @ Q_w(weight).T + bias`` in state fake, else the float result."""
        if self.state is State.OBSERVE:
            seen = absmax(x.detach().reshape(-1, self.in_features).contiguous(), axis=1)
            old = self.input_absmax
            self.input_absmax = seen if old is None else torch.maximum(old, seen)
        if self.state is not State.FAKE or self.weight_quantizer is None:
            return super().forward(x)
        weight = self.weight_quantizer(self.weight)
        if self.act_bits < 16:
            x = fake_quantize_tokens(x, self.act_bits)
        return functional.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        """Return what ``repr`` shows."""
        return f"{super().extra_repr()}, {self.state.value}, {self.spec}, act_bits={self.act_bits}"
