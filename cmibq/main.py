"""MBQ's ``main.py``: ``python -m cmibq.main`` takes its flags and YAML files."""

from __future__ import annotations

import sys

from cmibq.cli.main import guarded

if __name__ == "__main__":
    from cmibq.cli.published import run_eval

    sys.exit(guarded(sys.argv[1:], run_eval))
