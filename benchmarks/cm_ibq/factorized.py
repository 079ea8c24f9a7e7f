"""CompressAI's EntropyBottleneck between the same matrices, where the package is there."""

from __future__ import annotations

import importlib.util
import math
import sys
import types
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cm_ibq.coders import Coder, Sent
from benchmarks.cm_ibq.streams import codes_of
from cmibq.ops.channel_bits import channel_bits

__all__ = ["Factorized", "installed"]

_PACKAGE = "compressai"


def installed() -> bool:
    """Tell whether CompressAI is there (``pip install --no-deps compressai``)."""
    return importlib.util.find_spec(_PACKAGE) is not None


def _entropy_bottleneck(channels: int) -> Any:
    """Return its EntropyBottleneck.

    Its package imports data sets, torchvision and more, none of which this module needs; so the
    package is entered without its own first lines.
    """
    if _PACKAGE not in sys.modules:
        spec = importlib.util.find_spec(_PACKAGE)
        assert spec is not None
        assert spec.submodule_search_locations is not None
        package: Any = types.ModuleType(_PACKAGE)
        package.__path__ = list(spec.submodule_search_locations)
        package.get_entropy_coder = lambda: "ans"
        package.available_entropy_coders = lambda: ["ans"]
        sys.modules[_PACKAGE] = package
    return importlib.import_module("compressai.entropy_models.entropy_models").EntropyBottleneck(
        channels
    )


class Factorized(Coder):
    """Whole steps of a learned size; trained with uniform noise and CompressAI's density.

    Streams are written as those of all others: with tables counted on training pictures.

    Args:
        features: [N, T, D] training features.
        channels: L.
        levels: within four standard deviations, sets the first step.

    References:
        Balle et al., "Variational image compression with a scale hyperprior", ICLR 2018, section
        6.1; Begaint et al., "CompressAI", 2020.
    """

    def __init__(self, features: Tensor, channels: int, levels: float) -> None:
        super().__init__(features, channels)
        self.density = _entropy_bottleneck(channels)
        self.log_gain = nn.Parameter(torch.full((channels,), math.log(levels / 4)))

    def send(self, features: Tensor, task: Tensor | None = None) -> Sent:
        """Send features [B, T, D]."""
        z = self.encoder(features) * self.log_gain.exp()
        nominal = self.tokens * self.channels * 8.0
        if self.training:
            noisy, likelihood = self.density(z.mT.contiguous())
            told, y, codes = -likelihood.log2().sum((1, 2)), noisy.mT, None
        else:
            low = torch.full_like(self.log_gain, -128.0)
            flat, rate = channel_bits(
                z.flatten(0, 1), low, low + 255, self.bits, self.prior.tables()
            )
            told, y = rate.view(z.shape[:2]).sum(1), flat.view_as(z)
            codes = codes_of(flat, low, low + 255, self.bits).view(z.shape)
        return Sent(self.decoder(y / self.log_gain.exp()), told, nominal, 0.0, codes)
