"""Folders of composed towers: opened, checked before weights are read, written atomically."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.errors import ModelError, PackageError, StorageError
from cmibq.fileio import atomic_dir, read_json, sha256_file, write_json
from cmibq.io.tensors import read_header, read_tensors, write_tensors
from cmibq.models.composed import CALMVisionTower
from cmibq.models.composed_keys import check_modules, module_state
from cmibq.models.processor import quiet
from cmibq.models.towers import vision_config
from cmibq.recipe.calm import CALMConfig

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "load_modules_",
    "open_composed",
    "open_image_processor",
    "open_tower",
    "read_modules",
    "save_composed",
    "tower_config",
]

CONFIG, WEIGHTS, FORMAT = "calm_config.json", "calm_modules.safetensors", 1
_PICKLED = ("pytorch_model.bin", "vision_tower/pytorch_model.bin")
Path_ = str | os.PathLike[str]


def tower_config(path: Path_) -> Any:
    """Return the configuration of a vision tower's folder; of CLIP or SigLIP, the vision half's.

    Raises:
        ModelError: the folder is missing or its config.json cannot be used.
    """
    from transformers import AutoConfig

    folder = Path(path).expanduser()
    if not str(path):
        raise ModelError("the folder of a tower is ''; pass both the anchor's and the augmenting's")
    try:
        with quiet():
            found = AutoConfig.from_pretrained(
                folder if folder.exists() else str(path), local_files_only=True
            )
    except Exception as error:  # transformers raises many kinds
        raise ModelError(
            f"{str(path)!r} is no folder of a vision tower ({type(error).__name__}); pass a local"
            " Hugging Face model folder (models are not downloaded)"
        ) from error
    return vision_config(found)


def _dtype_option(dtype: torch.dtype | None) -> dict[str, Any]:
    from transformers import __version__

    name = "dtype" if int(__version__.split(".")[0]) >= 5 else "torch_dtype"
    return {name: "auto" if dtype is None else dtype}


def _check_headers(folder: Path) -> None:
    for file in sorted(folder.glob("*.safetensors")):
        read_header(file)


def open_tower(path: Path_, *, dtype: torch.dtype | None = None) -> nn.Module:
    """Open the vision tower of a folder, in evaluation mode, on the CPU.

    Args:
        path: local Hugging Face model folder; of CLIP or SigLIP the vision half is read.
        dtype: None = as it is stored.

    Raises:
        PackageError: a file of weights is truncated or damaged.
        ModelError: the folder is missing, or weights are.
    """
    from transformers import AutoModel

    config = tower_config(path)
    _check_headers(Path(path).expanduser())
    try:
        with quiet():
            model, found = AutoModel.from_pretrained(
                path,
                config=config,
                local_files_only=True,
                output_loading_info=True,
                **_dtype_option(dtype),
            )
    except Exception as error:  # transformers and safetensors raise many kinds
        raise ModelError(f"the weights of {str(path)!r} cannot be loaded ({error})") from error
    lost = [str(n) for n in found["missing_keys"] if not str(n).startswith("pooler.")]
    if lost or found["mismatched_keys"]:
        some = ", ".join(sorted(lost)[:3]) or str(found["mismatched_keys"])
        raise ModelError(
            f"{path}: {len(lost)} weights are missing ({some}); it is incomplete or another model's"
        )
    made: nn.Module = model.eval()
    return made


def open_image_processor(path: Path_) -> Any:
    """Open the image processor of a folder, or return None where there is none."""
    from transformers import AutoImageProcessor

    folder = Path(path).expanduser()
    if not any(
        (folder / n).exists() for n in ("preprocessor_config.json", "processor_config.json")
    ):
        return None
    try:
        with quiet():
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many kinds
        raise ModelError(
            f"the image processor of {folder} cannot be loaded ({error}); copy"
            " preprocessor_config.json of the model there"
        ) from error


def _weights_of(path: Path) -> Path:
    """Return the file with the fusions in a folder, ours or one of the public fork."""
    if path.is_file():
        return path
    names = (WEIGHTS, "model.safetensors", *_PICKLED)
    for name in names:
        if (path / name).is_file():
            return path / name
    raise ModelError(f"{path} has none of {', '.join(names)}; pass a folder or file with fusions")


def _unpickled(file: Path) -> dict[str, Tensor]:
    """Read a file of torch.save with the restricted unpickler, which runs no code."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return {str(n): t for n, t in content.items() if isinstance(t, Tensor)}
    except Exception as error:  # damaged bytes make the restricted unpickler raise anything
        raise PackageError(
            f"{file} is no file of weights, or is damaged ({type(error).__name__}); copy it again"
        ) from error


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    if file.suffix == ".safetensors":
        return module_state(read_header(file)[0])
    return {n: tuple(t.shape) for n, t in module_state(_unpickled(file)).items()}


def read_modules(path: Path_) -> dict[str, Tensor]:
    """Read the fusions of a checkpoint under the names of `CALMVisionTower`.

    Args:
        path: folder or file that we wrote, or one of the public CALM fork (also its
            ``pytorch_model.bin``, read without running code).

    Raises:
        PackageError: the file is missing, truncated or damaged.
    """
    file = _weights_of(Path(path).expanduser())
    told = _head(file.parent).get("sha256") if file.name == WEIGHTS else None
    if told is not None and told != sha256_file(file):
        raise PackageError(
            f"{file} is not what {CONFIG} describes (SHA-256 differs); copy both again"
        )
    state = read_tensors(file)[0] if file.suffix == ".safetensors" else _unpickled(file)
    return module_state(state)


def load_modules_(tower: CALMVisionTower, path: Path_) -> None:
    """Put the fusions of a checkpoint into a tower; checked before weights are read.

    Raises:
        PackageError: the file is missing, truncated or damaged.
        ModelError: it does not fit the tower.
    """
    file = _weights_of(Path(path).expanduser())
    check_modules(tower, _shapes(file), str(file))
    tower.load_state_dict(read_modules(file), strict=False)


def _head(folder: Path) -> dict[str, Any]:
    """Read calm_config.json, or return nothing where there is none."""
    file = folder / CONFIG
    if not file.is_file():
        return {}
    head = read_json(file)
    if not isinstance(head, dict) or type(head.get("format")) is not int:
        raise PackageError(f"{file} is damaged (no format); copy it again")
    if head["format"] > FORMAT:
        raise PackageError(
            f"{file} has format {head['format']}, newer than {FORMAT}, which this cmibq reads;"
            " update it"
        )
    return head


def _skeleton(mine: Any, theirs: Any, config: CALMConfig) -> CALMVisionTower:
    """Return the composed tower on the meta device: what does not fit is told here."""
    from transformers import AutoModel

    with quiet(), torch.device("meta"):
        towers = AutoModel.from_config(mine), AutoModel.from_config(theirs)
        return CALMVisionTower(*towers, config)


def _places(
    anchor: Path_, augmenting: Path_ | None, head: dict[str, Any], config: CALMConfig
) -> tuple[Path_, Path_]:
    """Return the folders of both towers."""
    if augmenting is not None:
        return anchor, augmenting
    if not head:
        raise ModelError(
            f"augmenting is None, and {str(anchor)!r} has no {CONFIG}; pass the folder of the"
            " augmenting tower, or one that save_pretrained wrote"
        )
    if head.get("towers"):
        return Path(anchor) / "anchor", Path(anchor) / "augmenting"
    for name in (config.anchor_model, config.augmenting_model):
        if not name or not Path(name).expanduser().is_dir():
            raise ModelError(
                f"{anchor} holds fusions alone and names the tower {name!r}, which is not here;"
                " use from_pretrained(anchor, augmenting, modules=FOLDER)"
            )
    return config.anchor_model, config.augmenting_model


def open_composed(
    anchor: Path_,
    augmenting: Path_ | None,
    config: CALMConfig | None,
    *,
    modules: Path_ | None,
    dtype: torch.dtype | None,
) -> CALMVisionTower:
    """Open a composed tower; see `CALMVisionTower.from_pretrained`."""
    if augmenting is None and modules is None:
        modules = anchor
    held = Path(modules).expanduser() if modules is not None else None
    head = _head(held.parent if held.is_file() else held) if held is not None else {}
    told = CALMConfig.from_dict(head.get("config", {})) if config is None else config
    places = _places(anchor, augmenting, head, told)
    if augmenting is not None:
        told = replace(told, anchor_model=str(anchor), augmenting_model=str(augmenting))
    skeleton = _skeleton(tower_config(places[0]), tower_config(places[1]), told)
    if held is not None:
        file = _weights_of(held)
        check_modules(skeleton, _shapes(file), str(file))
        odd = told.conflicts(head.get("config"))
        if odd:
            raise ModelError(f"{held} has other fusions: {odd}; leave config out")
    mine, theirs = (open_tower(at, dtype=dtype) for at in places)
    tower = CALMVisionTower(mine, theirs, told)
    if held is not None:
        load_modules_(tower, held)
    found = [open_image_processor(at) for at in places]
    if all(found):
        tower.processors = found[0], found[1]
    return tower.eval()


def _check_replaceable(folder: Path, towers: bool) -> None:
    """Refuse to replace what is no composed tower, or the towers by fusions alone."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    lost = names if CONFIG not in names else [n for n in names if n == "anchor" and not towers]
    if lost:
        told = f"saving would delete {', '.join(lost[:3])}; choose another folder"
        raise StorageError(errno.EEXIST, told, str(folder))


def save_composed(tower: CALMVisionTower, folder: Path_, *, towers: bool, overwrite: bool) -> None:
    """Write a composed tower; see `CALMVisionTower.save_pretrained`."""
    _check_replaceable(Path(folder).expanduser(), towers)
    state = {n: t for n, t in tower.state_dict().items() if n.startswith("calm_modules.")}
    with atomic_dir(folder, overwrite=overwrite) as made:
        with open(made / WEIGHTS, "wb") as file:
            digest, _ = write_tensors(file, state)
        head = {"format": FORMAT, "towers": towers, "config": tower.calm_config.to_dict()}
        head["sha256"] = digest
        head["layers"] = [at + 1 for at in tower.layers]
        head["sources"] = [of + 1 for of in tower.sources]
        write_json(made / CONFIG, head)
        if towers:
            hosts: Any = {"anchor": tower.anchor_tower, "augmenting": tower.augmenting_tower}
            with quiet():
                for name, host in hosts.items():
                    host.save_pretrained(made / name)
                for name, one in zip(hosts, tower.processors or (), strict=False):
                    one.save_pretrained(made / name)
