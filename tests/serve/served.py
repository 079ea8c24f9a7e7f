"""Serve the random composed model of a LLaVA folder until stdin ends: served.py LLAVA PRESETS."""

from __future__ import annotations

import sys
from pathlib import Path

from cmibq.ops.library import torch_threads
from cmibq.recipe.serve import ServeConfig
from cmibq.serve.app import build_page, launch
from cmibq.serve.presets import read_presets
from tests.serve.composed import TOKENS, make_panel

if __name__ == "__main__":
    with torch_threads(1):
        page = build_page(make_panel(Path(sys.argv[1])), read_presets(Path(sys.argv[2])))
        launch(page, ServeConfig(port=0, max_new_tokens=TOKENS))
        sys.stdout.write(f"{page.local_url}\n")
        sys.stdout.flush()
        sys.stdin.read()
        page.close()
