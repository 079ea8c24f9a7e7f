"""Files: packages of quantised models, and scales."""

from __future__ import annotations

from cmibq.io.package import (
    Package,
    ProbeCheck,
    add_metadata,
    best_layout,
    check_probe,
    is_package,
    load,
    save,
)
from cmibq.io.scales import ScaleEntry, Scales, check_made_for, load_scales, save_scales

__all__ = [
    "Package",
    "ProbeCheck",
    "ScaleEntry",
    "Scales",
    "add_metadata",
    "best_layout",
    "check_made_for",
    "check_probe",
    "is_package",
    "load",
    "load_scales",
    "save",
    "save_scales",
]
