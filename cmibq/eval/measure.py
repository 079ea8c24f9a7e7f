"""One measurement: open, ask, time, compare, write."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cmibq import __version__
from cmibq.data import context_length
from cmibq.errors import ConfigError, DataError
from cmibq.eval.compare import Comparison
from cmibq.eval.footprint import disk_bytes, peak_memory, weight_bytes
from cmibq.eval.grade import check_answers, graded, official_accuracy
from cmibq.eval.lmms import evaluate_tasks
from cmibq.eval.loading import open_model
from cmibq.eval.pseudo import check_scales, pseudo_quantize_
from cmibq.eval.questions import Questions, data_hash, images_hash, load_items, load_questions
from cmibq.eval.samples import Sample, read_samples, write_samples
from cmibq.eval.score import score, unique_ids
from cmibq.eval.speed import generation_speed, other_dtypes
from cmibq.fileio import check_writable, read_json, sha256_bytes, sha256_file, write_json
from cmibq.io import Package, check_probe, is_package
from cmibq.io.environment import environment
from cmibq.io.manifest import MANIFEST, LayerSpec
from cmibq.models import LoadedModel
from cmibq.ops.library import torch_threads
from cmibq.recipe import EvalConfig, parse_model_args

__all__ = ["RESULT", "SAMPLES", "check_baseline", "evaluate"]

RESULT = "result.json"
SAMPLES = "samples.jsonl"
_NO_EFFECT = ("name", "model_args", "data_path", "image_folder", "output_path", "baseline")

logger = logging.getLogger(__name__)
Json = dict[str, Any]


def _fingerprint(cfg: EvalConfig, folder: Path) -> str:
    """Hash what decides the result: options, model, questions, images, baseline, version."""
    facts: Json = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in _NO_EFFECT}
    files = [folder / MANIFEST] if is_package(folder) else sorted(folder.iterdir())
    facts["model"] = {p.name: sha256_file(p) for p in files if p.is_file()}
    facts["data"] = data_hash(cfg.data_path)
    facts["images"] = images_hash(load_items(cfg.data_path, cfg.image_folder, cfg.limit))
    if cfg.scale_path:
        scales = Path(cfg.scale_path).expanduser()
        check_scales(cfg, folder)
        facts["scale_path"] = sha256_file(scales)
    if cfg.baseline:
        facts["baseline"] = check_baseline(cfg)[1]
    return sha256_bytes(json.dumps(facts | {"cmibq": __version__}, sort_keys=True).encode())


def check_baseline(cfg: EvalConfig) -> tuple[Path, str]:
    """Return the result folder of the float model and its fingerprint.

    Raises:
        ConfigError: it has not been measured.
    """
    folder = Path(cfg.baseline).expanduser()
    if not (folder / RESULT).is_file():
        raise ConfigError(
            f"baseline is {cfg.baseline!r}, which has no {RESULT}; measure the float model first, "
            "with that output_path"
        )
    return folder, str(read_json(folder / RESULT).get("fingerprint"))


def _finished(cfg: EvalConfig, fingerprint: str) -> Json | None:
    """Return the result of an earlier run of the same measurement."""
    path = Path(cfg.output_path).expanduser() / RESULT
    if not cfg.output_path or not path.is_file():
        return None
    try:
        result: Json = read_json(path)
    except DataError:
        result = {}
    if result.get("fingerprint") != fingerprint or not path.with_name(SAMPLES).is_file():
        logger.info("%s belongs to another measurement and is replaced", path)
        return None
    return result


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _answers(samples: Sequence[Sample], cfg: EvalConfig) -> Json:
    """Return accuracy, likelihood and, against a baseline, flips and excess loss."""
    runs: dict[str, Sequence[Sample]] = {"run": samples}
    if cfg.baseline:
        runs["float"] = read_samples(check_baseline(cfg)[0] / SAMPLES)
    both = Comparison(runs, baseline="float" if cfg.baseline else None)
    accuracy, logprob = both.mean("run"), both.mean("run", "logprob")
    found: Json = {
        "accuracy": accuracy.value,
        "stderr": accuracy.stderr,
        "n_questions": len(samples),
        "logprob": logprob.value,
        "logprob_stderr": logprob.stderr,
        "by_kind": {
            kind: {"accuracy": sum(s.credit for s in some) / len(some), "n_questions": len(some)}
            for kind in sorted({s.kind for s in samples})
            if (some := [s for s in samples if s.kind == kind])
        },
    }
    if cfg.baseline:
        flips, excess, gain = (
            both.flips("run"),
            both.excess_loss("run"),
            both.difference("run", "float"),
        )
        found |= {
            "flips": flips.value,
            "flips_stderr": flips.stderr,
            "excess_loss": excess.value,
            "excess_loss_stderr": excess.stderr,
            "gain": gain.value,
            "gain_stderr": gain.stderr,
        }
    return found


def _of_package(package: Package) -> Json:
    manifest = package.manifest
    recipe, errors = manifest.recipe, manifest.metadata.get("layer_errors", {})
    source = str(recipe.get("model_args", ""))
    return {
        "method": recipe.get("method", "packed"),
        **{key: recipe.get(key) for key in ("w_bit", "w_group", "a_bit")},
        "source": str(parse_model_args(source)) if source else None,
        "bits_per_weight": _finite(manifest.bits_per_weight),
        "bytes_packed": manifest.packed_bytes,
        "verify": manifest.metadata.get("verify"),
        "layers": {
            name: {**spec, "error": errors.get(name)}
            for name, spec in manifest.to_json()["layers"].items()
        },
    }


def _of_folder(loaded: LoadedModel, cfg: EvalConfig, stored: Mapping[str, LayerSpec]) -> Json:
    names = loaded.adapter.targets(loaded.model, cfg.scope)
    weights = [loaded.model.get_parameter(f"{name}.weight") for name in names]
    count, size = sum(w.numel() for w in weights), sum(w.nbytes for w in weights)
    if stored:
        size = sum(spec.nbytes for spec in stored.values())
    return {
        "method": cfg.method or ("rtn" if stored else "float"),
        "w_bit": cfg.w_bit,
        "w_group": cfg.w_group,
        "a_bit": cfg.a_bit,
        "source": str(loaded.path),
        "bits_per_weight": 8 * size / max(count, 1),
        "bytes_packed": size,
        "layers": {},
    }


def _check_questions(questions: Questions, cfg: EvalConfig, folder: Path) -> None:
    """Refuse, before a question is asked, what could not be graded or compared afterwards."""
    check_answers(questions, cfg)
    if cfg.baseline:
        asked = set(unique_ids(e.sample.id for e in questions.samples))
        known = {s.id for s in read_samples(check_baseline(cfg)[0] / SAMPLES)}
        if odd := sorted(asked ^ known):
            raise DataError(
                f"baseline {cfg.baseline!r} answered other questions (such as {odd[0]!r} in one of"
                " the two only); measure both on the same data_path and limit"
            )
    context = context_length(folder)
    long = [e for e in questions.samples if context and len(e) > context]
    if long:
        logger.warning(
            "%d of %d questions have more tokens than the %d that the model has positions for (such"
            " as %s, %d tokens); their answers mean little",
            *(len(long), len(questions.samples), context, long[0].sample.where, len(long[0])),
        )


def _measure(cfg: EvalConfig, folder: Path, progress: bool) -> tuple[Json, list[Sample]]:
    seconds, start = {}, time.perf_counter()
    with peak_memory() as peak:
        loaded, package = open_model(folder, model=cfg.model)
        if cfg.pseudo_quant and package is not None:
            raise ConfigError(f"pseudo_quant is set, but {folder} is a package; leave it out")
        stored = pseudo_quantize_(loaded, cfg) if cfg.pseudo_quant else {}
        about = _of_package(package) if package else _of_folder(loaded, cfg, stored)
        check = check_probe(loaded.model, package) if package else None
        seconds["open"] = time.perf_counter() - start
        questions = load_questions(folder, cfg.data_path, cfg.image_folder, cfg.limit)
        _check_questions(questions, cfg, folder)
        start = time.perf_counter()
        samples = score(loaded, questions, batch_size=cfg.batch_size, progress=progress)
        if cfg.metric != "likelihood":
            samples = graded(loaded, questions, samples, cfg, progress=progress)
        if cfg.metric == "vqa":
            about["vqa_leave_one_out"] = official_accuracy(questions, samples)
        seconds["score"] = time.perf_counter() - start
        asked = {"prompts": cfg.speed_prompts, "tokens": cfg.speed_tokens}
        speed = generation_speed(loaded, questions, **asked)
        form = "packed" if package else str(loaded.model.dtype).removeprefix("torch.")
    further = {} if package or stored else other_dtypes(loaded, questions, **asked)
    if package is not None and cfg.method:
        about["method"] = cfg.method
    return {
        **about,
        "bytes": None if stored else weight_bytes(folder),
        "bytes_on_disk": disk_bytes(folder),
        "tokens_per_s": speed and speed["tokens_per_s"],
        "generation": {form: speed, **further} if speed else {},
        "peak_rss": peak.bytes,
        "peak_rss_since_start": peak.since_start,
        "reload_exact": check.exact if check else None,
        "reload_difference": _finite(check.max_difference) if check else None,
        "seconds": seconds,
    }, samples


def evaluate(cfg: EvalConfig, *, progress: bool = True) -> Json:
    """Measure a float model folder or a package on questions with known answers, or on tasks.

    Writes ``result.json`` and ``samples.jsonl`` to ``cfg.output_path``, the result last. If a
    result of the same measurement is there already, it is returned and nothing is done.

    Args:
        cfg: what to measure; with ``tasks`` see `cmibq.eval.lmms.evaluate_tasks`.
        progress: whether to show a progress bar.

    Returns:
        The content of ``result.json`` with ``skipped``: whether it was there already.

    Raises:
        ConfigError: options conflict, or the baseline has not been measured.
        DataError: a question or image cannot be used; names file and line or item.
        ModelError: the model cannot be loaded.
        PackageError: the package is truncated, altered or newer than this library.
        StorageError: disk full or not permitted.
    """
    if cfg.tasks:
        with torch_threads(cfg.threads):
            return evaluate_tasks(cfg, progress=progress)
    folder = parse_model_args(cfg.model_args)
    with torch_threads(cfg.threads):
        fingerprint = _fingerprint(cfg, folder) if folder.is_dir() else ""
        if done := _finished(cfg, fingerprint):
            return done | {"skipped": True}
        if cfg.output_path:
            check_writable(Path(cfg.output_path).expanduser() / RESULT)
        measured, samples = _measure(cfg, folder, progress)
        result: Json = {
            "name": cfg.name,
            "metric": cfg.metric,
            **measured,
            **_answers(samples, cfg),
            "config": dataclasses.asdict(cfg),
            "environment": environment(),
            "fingerprint": fingerprint,
        }
    if cfg.output_path:
        out = Path(cfg.output_path).expanduser()
        (out / RESULT).unlink(missing_ok=True)
        write_samples(out / SAMPLES, samples)
        if cfg.log_samples and cfg.log_samples_suffix:
            write_samples(out / f"samples_{cfg.log_samples_suffix}.jsonl", samples)
        write_json(out / RESULT, result)
    return result | {"skipped": False}
