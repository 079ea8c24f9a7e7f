"""Write what the demo starts from: data set, plain and planted model, YAML files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cmibq
from cmibq.demo.plan import MODELS, DataOptions, eval_runs, quantize_runs
from cmibq.fileio import atomic_dir, read_json, sha256_bytes, sha256_file, write_json, write_text

__all__ = ["prepare"]


def prepare(options: DataOptions, *, progress: bool = True) -> dict[str, Any]:
    """Write the data set in LLaVA's format, two model folders and the lists of runs.

    What is already there and fits is left as it is.

    Args:
        options: where to write, which split is measured, whether to train.
        progress: whether to show progress bars.

    Returns:
        ``data``, ``models``, ``quantize`` and ``eval``: the paths written.

    Raises:
        ModelError: the shipped weights are missing or damaged.
        StorageError: something cannot be written.
    """
    import yaml

    from cmibq.demo.data import make_dataset
    from cmibq.demo.model import WEIGHTS

    work = Path(options.out)
    weights = _train(work / "weights") if options.train else WEIGHTS
    lists = make_dataset(work / "data", progress=progress)
    models = [_write_model(work / "models" / name, weights) for name in MODELS]
    plans = {
        "quantize": quantize_runs(work, quick=options.quick),
        "eval": eval_runs(work, split=options.split, quick=options.quick),
    }
    for name, runs in plans.items():
        head = f"# Written by: cmibq demo-data (cmibq {cmibq.__version__})\n"
        write_text(work / f"{name}.yaml", head + yaml.safe_dump(runs, sort_keys=False))
    write_json(work / "demo-data.json", asdict(options))
    return {
        "data": {split: str(path) for split, path in lists.items()},
        "models": [str(model) for model in models],
        **{name: str(work / f"{name}.yaml") for name in plans},
    }


def _train(folder: Path) -> Path:
    """Train the model unless a finished training lies there."""
    from cmibq.demo.training import train

    record = folder / "training.json"
    if record.exists():
        weights = folder / "model.safetensors"
        if weights.exists() and sha256_file(weights) == read_json(record)["sha256"]:
            return folder
    train(folder)
    return folder


def _write_model(folder: Path, weights: Path) -> Path:
    """Write a model folder unless one of the same weights and version lies there."""
    from cmibq.demo.model import write_model_dir

    made_of = {"weights": sha256_file(weights / "model.safetensors"), "cmibq": cmibq.__version__}
    stamp = sha256_bytes(json.dumps(made_of, sort_keys=True).encode())
    marker = folder / "demo-model.json"
    if marker.exists() and read_json(marker).get("fingerprint") == stamp:
        return folder
    with atomic_dir(folder, overwrite=True) as filling:
        write_model_dir(filling, planted=folder.name == "planted", weights=weights)
        write_json(filling / "demo-model.json", {"fingerprint": stamp, **made_of})
    return folder
