"""Run the command line as ``python -m cmibq``."""

from __future__ import annotations

import sys

from cmibq.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
