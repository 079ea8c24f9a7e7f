"""Make serve.png, the picture of the web demo: python docs/images/make_serve.py [serve's flags].

Needs gradio, playwright, Chromium and Pillow; see tests/serve/test_browser.py.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("serve.png")
READY = (
    "() => document.querySelectorAll('#table .ms').length &&"
    " [...document.querySelectorAll('#table .ms')].every(cell => cell.innerText) &&"
    " document.querySelector('#overlay-view img') &&"
    " document.querySelector('#attention').innerText"
)


def settled(page: Any) -> None:
    """Wait until all answers are there and both pictures are drawn."""
    page.wait_for_function(READY, timeout=120_000)
    page.wait_for_timeout(1500)


def shot(address: str) -> bytes:
    """Return a picture of the whole page, its first example asked."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = os.environ.get("CMIBQ_CHROMIUM") or shutil.which("chromium")
        browser = play.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900}, device_scale_factor=1.5)
        page.goto(address)
        settled(page)
        made = page.screenshot(full_page=True)
        browser.close()
    return bytes(made)


def main(words: list[str]) -> None:
    """Serve, take the picture, and write it with few colours."""
    from PIL import Image

    command = [sys.executable, "-m", "cmibq", "serve", "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(line for line in process.stdout if line.startswith("open "))
        try:
            content = shot(address.removeprefix("open ").strip())
        finally:
            process.send_signal(signal.SIGINT)
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(255, dither=Image.Dither.NONE).save(OUT, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
