"""Keep the scripts that need the published sources out of test collection."""

from __future__ import annotations

collect_ignore = [
    "cases_block.py",
    "cases_model.py",
    "cases_vlm.py",
    "check_vlm.py",
    "make_mbq_golden.py",
    "make_vlm_golden.py",
    "upstream.py",
]
