"""Ways in which one vision tower looks at another: what is trained between two frozen towers."""

from __future__ import annotations

from cmibq.fusion import gated_attention, placed_attention, projection, simple_add
from cmibq.fusion.base import FUSIONS, MAPPINGS, Fusion, build_fusion, check_fusion
from cmibq.fusion.cross_attention import CALMCompositionModule
from cmibq.fusion.gated_attention import GatedAttention
from cmibq.fusion.placed_attention import PlacedAttention
from cmibq.fusion.projection import AttentionMapping
from cmibq.fusion.settled import SettledFusion, settle
from cmibq.fusion.simple_add import SimpleAdd

__all__ = [
    "FUSIONS",
    "MAPPINGS",
    "AttentionMapping",
    "CALMCompositionModule",
    "Fusion",
    "GatedAttention",
    "PlacedAttention",
    "SettledFusion",
    "SimpleAdd",
    "build_fusion",
    "check_fusion",
    "gated_attention",
    "placed_attention",
    "projection",
    "settle",
    "simple_add",
]
