"""Ways in which one vision tower looks at another: what is trained between two frozen towers."""

from __future__ import annotations

from cmibq.fusion import gated_attention, projection, simple_add
from cmibq.fusion.base import FUSIONS, MAPPINGS, Fusion, build_fusion, check_fusion
from cmibq.fusion.cross_attention import CALMCompositionModule

__all__ = [
    "FUSIONS",
    "MAPPINGS",
    "CALMCompositionModule",
    "Fusion",
    "build_fusion",
    "check_fusion",
    "gated_attention",
    "projection",
    "simple_add",
]
