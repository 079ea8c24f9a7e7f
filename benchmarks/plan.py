"""What `cmibq plan` says beside what the runs take: memory, disk and time.

    python -m benchmarks.plan KIND [--work DIR] [--only RUN ...] [--json FILE] [--docs]

Every plan and every run is a process of its own. ``demo`` takes recipes of the demo, ``1b`` a LLaVA
of TinyLlama's shape with random weights, ``7b`` one of Llama 2 7B's (18 GB of disk), ``7b-blocks``
2 of its 32 blocks; they are written to DIR and removed afterwards. ``docs/howto/long-jobs.md`` has
the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["compare", "main", "runs"]

ROOT = Path(__file__).resolve().parents[1]
_RUN = """
import json, sys, time
from pathlib import Path
from cmibq.ptq import quantize
from cmibq.recipe import QuantRecipe
quantize(QuantRecipe(**json.loads(sys.argv[1])), progress=False)
lines = Path("/proc/self/status").read_text().splitlines()  # ru_maxrss has the parent's in it
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")))
"""
_PLAN = """
import json, sys
from cmibq.ptq.plan import plan
from cmibq.recipe import QuantRecipe
print(json.dumps(plan(QuantRecipe(**json.loads(sys.argv[1]))).to_json()))
"""
_DEMO = ("planted-rtn-w4g64", "planted-awq-w3g64", "planted-mbq-w2g32", "planted-mbq-w4a8g64")
_PAGE, _END = ROOT / "docs" / "howto" / "long-jobs.md", "<!-- rows of benchmarks/plan.py -->"
_IMAGES, _SIDE, _LAYERS = 16, 336, 2


def _call(code: str, recipe: Mapping[str, Any]) -> tuple[float, str]:
    """Run a piece of code in a process of its own; return its seconds and the last line it says."""
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(recipe)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - begun, done.stdout.splitlines()[-1]


def compare(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Plan a run, do it, and return both: bytes and seconds."""
    out = Path(recipe["output_path"])
    shutil.rmtree(out, ignore_errors=True)
    planning, said = _call(_PLAN, recipe)
    planned = json.loads(said)
    seconds, peak = _call(_RUN, recipe)
    size = sum(f.stat().st_size for f in out.glob("*.safetensors"))
    shutil.rmtree(out)
    return {
        "peak": [planned["peak_bytes"], int(peak)],
        "disk": [planned["disk_bytes"], size],
        "seconds": [planned["total_seconds"], seconds],
        "planning": planning,
        "parts": planned["seconds"],
        "memory": planned["memory"],
    }


def _write_items(folder: Path, words: tuple[str, ...]) -> Path:
    """Write pictures of noise with questions and answers about nothing."""
    from PIL import Image

    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for number in range(_IMAGES):
        Image.fromarray(draw.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8)).save(
            folder / f"{number}.png"
        )
        asked, told = (" ".join(draw.choice(words, n)) for n in (24, 40))
        turns = [
            {"from": "human", "value": f"<image>\n{asked}"},
            {"from": "gpt", "value": told},
        ]
        items.append({"id": number, "image": f"{number}.png", "conversations": turns})
    path = folder / "items.json"
    path.write_text(json.dumps(items))
    return path


def _write_model(folder: Path, name: str, layers: int | None) -> Path:
    """Write a LLaVA of one of the shapes of `benchmarks.request_models`, with random weights."""
    from benchmarks import request_models
    from cmibq.demo.model import IMAGE, build_processor

    processor: Any = build_processor()
    pictures = processor.image_processor
    pictures.size = pictures.crop_size = {"height": _SIDE, "width": _SIDE}
    processor.patch_size = request_models.TOWER["patch_size"]
    model = request_models.zeros_like_bf16(request_models.SHAPES[name], layers)
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _demo(work: Path) -> Iterator[dict[str, Any]]:
    import yaml

    words = [sys.executable, "-m", "cmibq", "demo-data", "--out", str(work)]
    subprocess.run(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, stdout=2)
    found = {run["name"]: run for run in yaml.safe_load((work / "quantize.yaml").read_text())}
    yield from (found[name] for name in _DEMO)
    base, out = found["planted-mbq-w4a8g64"], work / "packages"
    more: dict[str, dict[str, Any]] = {
        "gptq": {"compensate": "gptq"},
        "scope": {"scope": "lm,projector,vision"},
        "distort": {"distort": True},
        "budget": {"max_bytes": "2.2MB", "a_bit": 16, "embed_bit": 8, "head_bit": 8},
    }
    for name, fields in more.items():
        yield {**base, "name": f"demo-{name}", "output_path": str(out / name), **fields}


def _random(work: Path, shape: str, layers: int | None) -> Iterator[dict[str, Any]]:
    from cmibq.demo.model import build_tokenizer

    vocabulary = build_tokenizer().get_vocab()
    words = tuple(sorted(w for w in vocabulary if not w.startswith("<") and w.isalpha()))
    items, model = _write_items(work / "data", words), work / "model"
    if not model.exists():
        _write_model(model, shape, layers)
    base = {"model_args": f"pretrained={model}", "data_path": str(items), "run_process": True}
    base |= {"w_bit": 4, "method": "awq", "n_grid": 6, "effort": "race", "threads": 2}
    base |= {"verify": False}
    kinds: dict[str, dict[str, Any]] = {
        "awq": {"n_samples": 2, "clip": False, "n_grid": 4},
        "mbq": {"method": "mbq", "reweight": True, "n_samples": 2, "clip": False},
        "clip": {"method": "rtn", "clip": True, "n_samples": 2},
        "gptq": {"method": "rtn", "compensate": "gptq", "clip": False, "n_samples": 4},
        "8k": {"n_samples": 12, "clip": False, "n_grid": 2},
    }
    for name, fields in kinds.items():
        yield {**base, "name": f"{shape}-{name}", "output_path": str(work / name), **fields}


def runs(kind: str, work: Path) -> Iterator[dict[str, Any]]:
    """Yield the recipes of a kind; models and data are written to `work` first."""
    if kind == "demo":
        return _demo(work)
    return _random(work, kind.removesuffix("-blocks"), _LAYERS if "-" in kind else None)


def _line(name: str, made: Mapping[str, Any]) -> str:
    cells = []
    for part, unit in (("peak", 1e6), ("disk", 1e6), ("seconds", 1.0)):
        said, took = made[part]
        digits = 0 if said / unit >= 100 else 1
        text = f"{said / unit:.{digits}f} / {took / unit:.{digits}f}"
        cells.append(f"{text} ({100 * (said / took - 1):+.0f} %)")
    return f"| `{name}` | {' | '.join(cells)} |"


def _record(page: Path, line: str) -> None:
    """Put a row into the table of a page, in place of that of the same run."""
    name, rows = line.split("|")[1], page.read_text().splitlines()
    old = [i for i, row in enumerate(rows) if row.startswith(f"|{name}|")]
    end = rows.index(_END)
    rows[old[0] if old else end : old[0] + 1 if old else end] = [line]
    page.write_text("\n".join(rows) + "\n")


def main() -> None:
    """Compare all runs of a kind and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("demo", "1b", "1b-blocks", "7b", "7b-blocks"))
    parser.add_argument("--work", type=Path, default=Path(".work/plan"))
    parser.add_argument("--only", nargs="*", default=(), help="names of runs")
    parser.add_argument("--json", type=Path, help="write everything that was found")
    parser.add_argument("--docs", action="store_true", help="put the rows into the page")
    parser.add_argument("--keep", action="store_true", help="leave the model where it is")
    given = parser.parse_args()
    work, found = given.work / given.kind, {}
    for recipe in runs(given.kind, work):
        name = recipe.get("name", "")
        if given.only and name not in given.only:
            continue
        found[name] = compare(recipe)
        print(_line(name, found[name]), flush=True)
        if given.docs:
            _record(_PAGE, _line(name, found[name]))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1))
    if not given.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
