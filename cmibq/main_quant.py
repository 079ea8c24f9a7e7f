"""MBQ's ``main_quant.py``: ``python -m cmibq.main_quant`` takes its flags and YAML files."""

from __future__ import annotations

import sys

from cmibq.cli.main import guarded

if __name__ == "__main__":
    from cmibq.cli.published import run_quant

    sys.exit(guarded(sys.argv[1:], run_quant))
