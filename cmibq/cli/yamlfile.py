"""YAML files of runs: a mapping or a list of mappings, read strictly."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from cmibq.errors import ConfigError, nearest

__all__ = ["list_shipped", "load_runs"]


class _Strict(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                mark = node.value[number][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"key {key!r} is repeated", problem_mark=mark)
        return super().construct_mapping(node, deep=deep)


def list_shipped(folder: Path) -> dict[str, str]:
    """Return name, as ``--config`` takes it, -> first comment of the YAML files in `folder`."""
    return {
        file.relative_to(folder).with_suffix("").as_posix(): _first_comment(file)
        for file in sorted(folder.rglob("*.yaml"))
    }


def _first_comment(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        first = lines.readline().strip()
    return first.lstrip("# ") if first.startswith("#") else ""


def load_runs(path: str, shipped: Path | None = None) -> tuple[Path, bool, list[dict[str, Any]]]:
    """Read one YAML file.

    Args:
        path: the file, or the name of a shipped one.
        shipped: folder of the shipped files.

    Returns:
        (file, whether it holds a list, the mappings).

    Raises:
        ConfigError: no such file, malformed YAML (named by line) or no mapping in it.
    """
    file = _find(path, shipped)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=_Strict)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{line}: {error.problem or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML file: {error}") from None
    runs = content if isinstance(content, list) else [content]
    for number, run in enumerate(runs, 1):
        if not isinstance(run, dict):
            where = f"{file}, run {number}" if isinstance(content, list) else str(file)
            raise ConfigError(
                f"{where} is {_shorten(run)}; it must be a mapping such as 'w_bit: 4'"
            )
    if not runs:
        raise ConfigError(f"{file} is an empty list; give at least one run")
    return file, isinstance(content, list), runs


def _find(path: str, shipped: Path | None) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    names = list_shipped(shipped) if shipped else {}
    name = path.removeprefix("configs/").removesuffix(".yaml")  # as published scripts write it
    if shipped and name in names:
        return shipped / f"{name}.yaml"
    if file.exists():
        raise ConfigError(f"--config is {path!r}, a folder; give a YAML file")
    hint = f"; {nearest(path, names)}" if names else "; check the path"
    raise ConfigError(f"--config is {path!r}, which does not exist{hint}")


def _shorten(value: Any) -> str:
    text = "empty" if value is None else repr(value)
    return text if len(text) < 60 else text[:57] + "..."
