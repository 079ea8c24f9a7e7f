"""Everything about a run that can be checked before a weight is read."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmibq.data import CALIBRATIONS, CalibSample
from cmibq.errors import CmibqError, ConfigError, DataError, PackageError
from cmibq.fileio import check_writable, read_json, sha256_file
from cmibq.io import check_made_for, is_package, load_scales
from cmibq.io import load as load_package
from cmibq.io.manifest import FORMAT, MANIFEST
from cmibq.models import Adapter, check_groups, read_family, target_widths
from cmibq.ptq.fit import Fit, fit
from cmibq.ptq.journal import Journal
from cmibq.recipe import (
    QuantRecipe,
    fingerprint,
    parse_model_args,
    parse_scope,
    weights_hash,
)
from cmibq.search import SEARCHES

__all__ = ["NOTE", "Job", "check", "check_foreign", "is_result", "prepare"]

NOTE = "cmibq.json"
"""File in the folder of a rounded float model that says what made it."""
_SCALED_FOR = ("method", "w_bit", "w_group", "a_bit")
_SUFFIXES = (".pt", ".pth", ".safetensors")


@dataclass(frozen=True)
class Job:
    """A checked run.

    Args:
        recipe: what to do.
        fingerprint: equal for runs that must give the same.
        model_path: folder of the float model.
        adapter: its family.
        samples: calibration samples, empty if none are needed.
        journal: where found scales are kept meanwhile.
        output: folder to write, or None.
        scales: file of scales to write or read, or None.
        fit: how it keeps within memory.
    """

    recipe: QuantRecipe
    fingerprint: str
    model_path: Path
    adapter: Adapter
    samples: Sequence[CalibSample] = field(repr=False)
    journal: Journal
    output: Path | None
    scales: Path | None
    fit: Fit = field(default_factory=Fit)

    @functools.cached_property
    def scales_are_made(self) -> bool:
        """Whether the file of scales was there, whole, and made by an equal run."""
        if self.scales is None or not self.recipe.run_process or not self.scales.exists():
            return False
        try:
            load_scales(self.scales, fingerprint=self.fingerprint)
        except CmibqError:
            return False
        return True

    @functools.cached_property
    def output_is_made(self) -> bool:
        """Whether the folder was there, whole, and made by an equal run."""
        return self.made_output()

    def made_output(self) -> bool:
        """Look whether the folder is there, whole, and made by an equal run, perhaps just now."""
        if self.output is None or not self.output.is_dir():
            return False
        try:
            if is_package(self.output):
                made_by = load_package(self.output).manifest.metadata.get("fingerprint")
            else:
                made_by = read_json(self.output / NOTE)["fingerprint"]
        except (PackageError, DataError, KeyError, TypeError):
            return False
        return bool(made_by == self.fingerprint)

    @property
    def is_finished(self) -> bool:
        """Whether there was nothing left to do when the run was checked."""
        writes_scales = self.scales is not None and self.recipe.run_process
        return (self.output is None or self.output_is_made) and (
            not writes_scales or self.scales_are_made
        )


def _check_scale_path(recipe: QuantRecipe) -> None:
    if recipe.method == "rtn":
        if recipe.scale_path:
            raise ConfigError("scale_path is set with method 'rtn', which has none; leave it out")
        return
    if not recipe.run_process and not recipe.scale_path:
        raise ConfigError(
            f"method {recipe.method!r} needs scales: set run_process to search them (needs"
            " data_path), or scale_path to a file of scales"
        )
    if recipe.scale_path and Path(recipe.scale_path).suffix not in _SUFFIXES:
        raise ConfigError(
            f"scale_path is {recipe.scale_path!r}; it must end in one of {', '.join(_SUFFIXES)}"
        )


def is_result(folder: Path) -> bool:
    """Whether a folder holds what an earlier run wrote, whole or damaged."""
    manifest = folder / MANIFEST
    return (folder / NOTE).is_file() or (
        manifest.is_file() and FORMAT.encode() in manifest.read_bytes()
    )


def check_foreign(folder: Path) -> None:
    """Refuse to replace a result together with files that others have put beside it.

    Only packages say which files are theirs.

    Args:
        folder: what is to be replaced.

    Raises:
        ConfigError: it has other files; names some.
    """
    try:
        own = {Path(n).parts[0] for n in read_json(folder / MANIFEST)["files"]} | {MANIFEST}
    except (DataError, KeyError, TypeError, IndexError):
        return
    names = {p.name for p in folder.iterdir() if p.suffix != ".part"}  # ours, of a killed run
    if foreign := sorted(names - own):
        raise ConfigError(
            f"output_path {str(folder)!r} also holds {', '.join(foreign[:3])}, which would be"
            " removed; move it, or choose another folder"
        )


def _check_folder(job: Job, folder: Path) -> None:
    """Refuse a folder that is in use: only results of other runs can be replaced, when told to."""
    recipe = job.recipe
    inputs = {"model_args": str(job.model_path)}
    inputs |= {n: getattr(recipe, n) for n in ("data_path", "image_folder", "text_data_path")}
    inputs |= {} if recipe.run_process else {"scale_path": recipe.scale_path}
    for name, path in inputs.items():
        if path and Path(path).expanduser().resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"output_path {str(folder)!r} holds the {name} of this run; choose another folder"
            )
    if not folder.is_dir() or (any(folder.iterdir()) and not is_result(folder)):
        raise ConfigError(
            f"output_path {str(folder)!r} holds something that cmibq did not write; choose another"
            " folder"
        )
    if any(folder.iterdir()) and not job.recipe.overwrite:
        raise ConfigError(
            f"output_path {str(folder)!r} holds something else (another recipe, other inputs or a"
            " damaged package); choose another folder, or set overwrite to replace it"
        )
    check_foreign(folder)


def _check_outputs(job: Job) -> None:
    """Refuse places that cannot be written, and results of other runs unless told to."""
    if job.output is None and job.scales is None:
        raise ConfigError("output_path is empty; name the folder for the quantised model")
    if job.output is None and (idle := _about_the_model(job.recipe)):
        raise ConfigError(
            f"{', '.join(idle)} set without output_path, so that only scales are written; name the"
            " folder for the quantised model, or leave them out"
        )
    writes_scales = job.scales is not None and job.recipe.run_process
    if writes_scales and job.output is not None and job.scales is not None:
        scales, output = job.scales.resolve(), job.output.resolve()
        if scales.is_relative_to(output) or output.is_relative_to(scales):
            raise ConfigError(
                f"scale_path {str(job.scales)!r} is in output_path {str(job.output)!r}, a folder"
                " that appears whole; put the scales beside it"
            )
    if job.scales is not None and writes_scales and not job.scales_are_made:
        if job.scales.exists() and not job.recipe.overwrite:
            load_scales(job.scales, fingerprint=job.fingerprint)
        check_writable(job.scales)
    if job.output is not None and not job.output_is_made:
        if job.output.exists():
            _check_folder(job, job.output)
        check_writable(job.output)


def _about_the_model(recipe: QuantRecipe) -> list[str]:
    """Return the fields that are set and mean nothing where only scales are searched."""
    plain = {"max_bytes": "", "embed_bit": 16, "head_bit": 16}
    plain |= {"compensate": None, "bias_correction": False}
    return [n for n, value in plain.items() if getattr(recipe, n) not in (value, "none")]


def _check_data(recipe: QuantRecipe) -> None:
    """Refuse what needs calibration data where rtn is given none."""
    needy = [n for n in ("max_bytes", "bias_correction") if getattr(recipe, n)]
    needy += ["compensate"] if recipe.compensation != "none" else []
    if needy and recipe.method == "rtn" and not recipe.data_path:
        raise ConfigError(f"{', '.join(needy)} set without data_path; name calibration items")


def _samples(recipe: QuantRecipe) -> Sequence[CalibSample]:
    if not recipe.run_process or (recipe.method == "rtn" and not recipe.data_path):
        return []
    return CALIBRATIONS[recipe.calib_data].read(recipe)


def prepare(recipe: QuantRecipe) -> Job:
    """Check a run: names, model folder, group size, data, images, outputs.

    Takes a moment; no weight is read except to hash its file.

    Raises:
        ConfigError: a name is unknown, fields conflict, or the output belongs to another run.
        ModelError: the model is missing, of an unsupported family, or the group does not divide.
        DataError: the data file, an item or an image cannot be used.
    """
    for registry, name in ((SEARCHES, recipe.method), (CALIBRATIONS, recipe.calib_data)):
        registry[name]
    _check_scale_path(recipe)
    _check_data(recipe)
    model_path = parse_model_args(recipe.model_args)
    adapter = read_family(model_path, model=recipe.model)
    target_widths(model_path, recipe.scope)  # refuses parts that are not there
    if "lm" in parse_scope(recipe.scope):  # other parts take smaller groups where they must
        check_groups(target_widths(model_path), recipe.group_size)
    samples = _samples(recipe)
    images = dict.fromkeys(p for s in samples for p in s.images)
    fitted = fit(recipe, samples, model_path)
    facts = {str(i): sha256_file(p) for i, p in enumerate(images)}
    if fitted.batch_tokens is not None:
        facts["batch_tokens"] = str(fitted.batch_tokens)
    found = fingerprint(recipe, facts)
    output = Path(recipe.output_path).expanduser() if recipe.output_path else None
    scales = Path(recipe.scale_path).expanduser() if recipe.scale_path else None
    place = output or scales or Path("cmibq")
    journal = Journal(place.absolute().parent / f".{place.name}.work", found)
    job = Job(recipe, found, model_path, adapter, samples, journal, output, scales, fitted)
    if scales is not None and not recipe.run_process:
        wanted = {n: getattr(recipe, n) for n in _SCALED_FOR}
        check_made_for(scales, wanted, weights_hash(model_path))
    _check_outputs(job)
    return job


def check(recipe: QuantRecipe) -> None:
    """Check a run without starting it; see `prepare` for what is raised.

    Example:
        >>> check(QuantRecipe(method="mbx"))
        Traceback (most recent call last):
        ...
        cmibq.errors.ConfigError: unknown search 'mbx'; did you mean 'mbq'?
    """
    prepare(recipe)
