"""Keep the scripts that need the published sources out of test collection."""

from __future__ import annotations

collect_ignore = ["cases_block.py", "cases_model.py", "make_mbq_golden.py", "upstream.py"]
