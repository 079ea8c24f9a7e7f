"""LLaVA-NeXT (1.6) as Hugging Face has it: LLaVA with images cut into tiles."""

from __future__ import annotations

from dataclasses import replace

from cmibq.models.base import MODELS
from cmibq.models.llava import LLAVA

__all__ = ["LLAVA_NEXT"]

LLAVA_NEXT = replace(LLAVA, family="llava_next")
MODELS.register("llava_next")(LLAVA_NEXT)
