"""The web demo in a real browser: a preset, a patch, a fusion switched off, a picture of one's own.

Needs gradio, playwright (as a driver; it downloads nothing) and a Chromium of the system.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmibq.serve.opening import open_any
from cmibq.serve.pictures import overlaid
from cmibq.serve.presets import FILE, Preset, read_presets
from cmibq.serve.session import Panel, looks_at, stream
from tests.serve.composed import QUESTION, TOKENS, make_panel, write_composed

CHROMIUM = os.environ.get("CMIBQ_CHROMIUM") or shutil.which("chromium")
WAIT = 120_000  # ms, of a busy machine
_GUARDED = """
import socket, sys
find = socket.getaddrinfo
def local(host, *args, **options):
    if host not in (None, "", "127.0.0.1", "localhost", "::1"):
        sys.stderr.write(f"asked for {host}")
    return find(host, *args, **options)
socket.getaddrinfo = local
from cmibq.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def composed_dir(llava_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_composed(tmp_path_factory.mktemp("composed") / "model", llava_dir)


@pytest.fixture(scope="module")
def presets(composed_dir: Path) -> tuple[Preset, ...]:
    return read_presets(composed_dir / FILE)


@pytest.fixture(scope="module")
def panel(composed_dir: Path) -> Panel:
    return make_panel(open_any(composed_dir))


@pytest.fixture(scope="module")
def served(composed_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve by the command, in a process of its own; Ctrl-C ends it."""
    if find_spec("gradio") is None:
        pytest.skip("needs gradio: pip install 'cmibq[serve]'")
    words = [sys.executable, "-c", _GUARDED, "serve", "--model-path", str(composed_dir)]
    words += ["--port", "0", "--threads", "1", "--max-new-tokens", str(TOKENS)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Gradio shows files of the temporary folder by itself; a model usually lies elsewhere.
    elsewhere = os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("tmp"))}
    with subprocess.Popen(words, **pipes, text=True, env=elsewhere) as process:
        assert process.stdout is not None
        assert "anchor, composed, composed int8; 2 examples" in process.stdout.readline()
        yield process.stdout.readline().removeprefix("open ").strip()
        process.send_signal(signal.SIGINT)
        told, errors = process.communicate(timeout=60)
        assert process.returncode == 0, told + errors
        assert not re.search("asked for|cmibq: error", told + errors), told + errors


@pytest.fixture
def browser_page(served: str) -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="needs playwright: a test driver")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or set CMIBQ_CHROMIUM")
    with driver.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        page.set_default_timeout(WAIT)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(served)
        settled(page)
        yield page
        browser.close()
    local = (served, "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []


def settled(page: Any) -> None:
    """Wait until all rows of the table have their answer and both pictures are drawn."""
    page.wait_for_function(
        "() => document.querySelectorAll('#table .ms').length == 3 &&"
        " [...document.querySelectorAll('#table .ms')].every(cell => cell.innerText) &&"
        " document.querySelector('#overlay-view img')"
    )


def texts(page: Any) -> list[str]:
    found: list[str] = page.locator("#table .said").all_inner_texts()
    return found


def said(panel: Panel, image: Path, off: Any = ()) -> list[str]:
    return [list(stream(panel, v, image, QUESTION, off))[-1] for v in panel.voices]


def shown(page: Any, name: str) -> np.ndarray[Any, Any]:
    url = page.locator(f"#{name} img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(url).body())).convert("RGB"))


def wait_for(page: Any, panel: Panel, image: Path, off: Any = ()) -> None:
    wanted = said(panel, image, off)
    page.wait_for_function(
        "wanted => JSON.stringify([...document.querySelectorAll('#table .said')]"
        ".map(cell => cell.innerText)) == JSON.stringify(wanted)",
        arg=wanted,
    )
    assert page.locator("#answer textarea, #answer input").input_value() == wanted[1]


def test_presets_patches_and_fusions(
    browser_page: Any, panel: Panel, presets: tuple[Preset, ...]
) -> None:
    page, (red, blue) = browser_page, presets
    wait_for(page, panel, red.image)
    page.get_by_role("button", name="CALM wrong").click()
    wait_for(page, panel, blue.image)
    assert page.locator("#question textarea, #question input").input_value() == QUESTION
    assert page.locator("#table").inner_text().count("wrong") == 3

    looks = looks_at(panel, blue.image)
    for x, y, patch in ((0.75, 0.25, 1), (0.3, 0.8, 2)):
        before = page.locator("#overlay-view img").get_attribute("src")
        box = page.locator("#anchor-view img").bounding_box()
        edge = min(box["width"], box["height"])  # the picture is a square in the middle of it
        left, top = (box[a] + (box[b] - edge) / 2 for a, b in (("x", "width"), ("y", "height")))
        page.mouse.click(left + x * edge, top + y * edge)
        page.wait_for_function(
            "old => document.querySelector('#overlay-view img').src != old", arg=before
        )
        wanted = overlaid(looks.augmenting, looks.of_patch(patch)[0])
        # Torch's sums in another thread end in other last bits, and a colour in its neighbour.
        np.testing.assert_allclose(shown(page, "overlay-view").astype(int), wanted, atol=1)

    page.locator("#kept label", has_text="2, behind").locator("input").uncheck()
    wait_for(page, panel, blue.image, off={1})
    page.wait_for_function("() => document.querySelectorAll('#fusion input').length == 1")
    page.locator("#kept label", has_text="1, behind").locator("input").uncheck()
    page.get_by_text("the anchor looks at nothing").wait_for()
    wait_for(page, panel, blue.image, off={0, 1})
    assert texts(page)[0] == texts(page)[1]


def test_a_picture_and_a_question_of_ones_own(
    browser_page: Any, panel: Panel, tmp_path: Path
) -> None:
    page, own = browser_page, tmp_path / "own.png"
    Image.new("RGB", (40, 30), "white").save(own)
    page.locator(
        "#picture button[aria-label='Remove Image'], #picture button[title='Clear']"
    ).click()
    page.locator("#picture input[type=file]").set_input_files(own)
    page.locator("#picture img").wait_for()
    page.locator("#question textarea, #question input").fill(QUESTION)
    page.locator("#ask").click()
    wait_for(page, panel, own)
    assert "\N{CHECK MARK}" not in page.locator("#table").inner_text()
    page.locator("#question textarea, #question input").fill(" ")
    page.locator("#ask").click()
    page.get_by_text("the question is empty").wait_for()
