"""Opening a model's processor, also where transformers wants torchvision for videos only."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmibq.errors import ModelError
from cmibq.fileio import read_json

__all__ = ["load_processor", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars and hints of transformers, and put its settings back."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _without_videos(cls: Any) -> Any:
    """Return a processor class that does without a processor of videos, under the same name."""

    def check(self: Any, name: str, value: Any) -> Any:
        if name == "video_processor" and value is None:
            return None
        return cls.check_argument_for_proper_class(self, name, value)

    def to_dict(self: Any) -> dict[str, Any]:
        made: dict[str, Any] = cls.to_dict(self)
        made.pop("video_processor", None)
        return made

    def save(self: Any, folder: Any, **options: Any) -> Any:
        self.get_attributes = lambda: [n for n in cls.get_attributes() if n != "video_processor"]
        try:
            return cls.save_pretrained(self, folder, **options)
        finally:
            del self.get_attributes

    members: dict[str, Any] = {"check_argument_for_proper_class": check, "to_dict": to_dict}
    members["save_pretrained"] = save
    return type(cls.__name__, (cls,), members | {"__module__": cls.__module__})


def _images_only(path: str | os.PathLike[str]) -> Any:
    """Load a processor of images and videos without torchvision; it then takes no videos."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = transformers.AutoConfig.from_pretrained(path, local_files_only=True)
    cls = _without_videos(PROCESSOR_MAPPING[type(config)])
    parts = {
        "image_processor": transformers.AutoImageProcessor,
        "tokenizer": transformers.AutoTokenizer,
    }
    args = [
        parts[name].from_pretrained(path, local_files_only=True) if name in parts else None
        for name in cls.get_attributes()
    ]
    fields, _ = cls.get_processor_dict(path, local_files_only=True)
    return cls.from_args_and_dict(args, fields)


def load_processor(path: str | os.PathLike[str]) -> Any:
    """Load the processor (image processor, tokenizer, chat template) of a folder.

    Families that also take videos need torchvision for them; without it their processors are
    opened for images and text alone. That of a model with a composed vision tower makes pixels of
    both towers.

    Raises:
        ModelError: it is missing or incomplete.
    """
    from transformers import AutoProcessor

    with quiet():
        try:
            processor: Any = AutoProcessor.from_pretrained(path, local_files_only=True)
        except Exception as error:  # transformers raises many kinds
            processor = None
            if importlib.util.find_spec("torchvision") is None:
                with contextlib.suppress(Exception):
                    processor = _images_only(path)
            if processor is None:
                raise ModelError(
                    f"the processor of {path} cannot be loaded ({error}); copy"
                    " processor_config.json and the tokenizer files of the model there"
                ) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(f"{path} has a tokenizer only; copy its image processor's files there")
    return _composed(processor, Path(path).expanduser())


def _composed(processor: Any, folder: Path) -> Any:
    """Let the processor of a model with a composed tower make pixels of both towers."""
    from cmibq.models.composed_processor import pack_processor_, processors_of

    file = folder / "config.json"
    record = read_json(file).get("calm") if file.is_file() else None
    both = processors_of(record) if record else None
    if both is not None:
        pack_processor_(processor, both[1])
    return processor
