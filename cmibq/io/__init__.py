"""Files: packages of quantised models, and scales."""

from __future__ import annotations

from cmibq.io.scales import ScaleEntry, Scales, load_scales, save_scales

__all__ = ["ScaleEntry", "Scales", "load_scales", "save_scales"]
