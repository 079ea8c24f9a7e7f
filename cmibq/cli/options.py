"""Frozen dataclasses as flags and YAML keys: flag = key = field, nothing is ignored in silence."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from cmibq.cli.output import say
from cmibq.errors import ConfigError, nearest
from cmibq.recipe.kinds import allowed_kinds, hints_of, plain_types

__all__ = ["Options", "read_options"]

T = TypeVar("T")
_OUTPUT: Final = ("output_path",)

_OWN: Final = {
    "config": "YAML file: a mapping of the keys below, or a list of mappings; flags override it",
    "print_config": "print the resulting YAML and stop",
}


@dataclass(frozen=True)
class Options(Generic[T]):
    """What one command was asked to do.

    Attributes:
        runs: one validated dataclass per run, in the order of the file.
        switches: the extra switches that were given.
        done: whether the command has nothing left to do (help or the configuration was printed).
    """

    runs: list[T]
    switches: frozenset[str]
    done: bool = False


def read_options(
    command: str,
    cls: type[T],
    words: Sequence[str],
    *,
    about: str,
    switches: Mapping[str, str] | None = None,
    from_file: bool = True,
    shipped: Path | None = None,
    prog: str = "",
) -> Options[T]:
    """Turn flags and a YAML file into validated dataclasses, all of them or none.

    Args:
        command: name of the command, for the help.
        cls: frozen dataclass whose fields are the flags; ``metadata["help"]`` explains each.
        words: the arguments of the command.
        about: what the command does, for the help.
        switches: extra flags without a value, name -> help; they are no keys of the YAML file.
        from_file: whether the command takes ``--config`` and ``--print_config``.
        shipped: folder of YAML files that ``--config NAME`` also finds by name.
        prog: what is typed before the flags, for the help; empty = ``cmibq`` and the command.

    Returns:
        The runs: one without a file or with a single mapping, several with a list.

    Raises:
        ConfigError: an unknown flag or key, a wrong type or value; the message names file and run.
    """
    extra = {**(_OWN if from_file else {}), **(switches or {})}
    parser = _build_parser(prog or f"cmibq {command}", cls, about, extra)
    if any(word in ("-h", "--help") for word in words):
        say(parser.format_help().rstrip())
        return Options([], frozenset(), done=True)
    given = _read_flags(parser, cls, words, extra)
    chosen = frozenset(x for x in switches or {} if given.pop(x.replace("-", "_"), False))
    print_config = "print_config" in extra and "--print_config" in words
    path = given.pop("config", None)
    runs = (
        [_make(cls, given, "")] if path is None else _read_file(parser, cls, path, given, shipped)
    )
    if print_config:
        say(_to_yaml(cls, runs))
    return Options(runs, chosen, done=print_config)


def _build_parser(prog: str, cls: type[Any], about: str, switches: Mapping[str, str]) -> Any:
    from jsonargparse import ActionYesNo, ArgumentParser

    parser = ArgumentParser(prog=prog, description=about, exit_on_error=False, allow_abbrev=False)
    for name, text in switches.items():
        if name == "config":
            parser.add_argument("--config", type=str, default=None, metavar="FILE", help=text)
        else:
            parser.add_argument(f"--{name}", action="store_true", default=False, help=text)
    group = parser.add_argument_group("keys of the YAML file" if "config" in switches else "flags")
    hints = hints_of(cls)
    for item in fields(cls):
        settings: dict[str, Any] = {"default": _default(item), "help": item.metadata.get("help")}
        if hints[item.name] is bool:
            settings |= {"action": ActionYesNo(yes_prefix="", no_prefix="no_"), "nargs": "?"}
        else:
            settings |= {"type": hints[item.name], "metavar": _metavar(hints[item.name])}
        group.add_argument(f"--{item.name}", **settings)
    return parser


def _default(item: Field[Any]) -> Any:
    if item.default is MISSING:
        return item.default_factory() if item.default_factory is not MISSING else None
    return item.default


def _metavar(hint: Any) -> str:
    return {int: "N", float: "X", str: "TEXT"}.get(plain_types(hint)[0], "VALUE")


def _read_flags(
    parser: Any, cls: type[Any], words: Sequence[str], extra: Mapping[str, str]
) -> dict[str, Any]:
    hints = hints_of(cls)
    known = [*extra, *hints]
    switches = {f"no_{name}" for name, hint in hints.items() if hint is bool}
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name not in switches and name not in known:
            raise ConfigError(f"unknown flag {'--' + name!r}; {_nearest_flag(name, known)}")
    from jsonargparse import ArgumentError

    try:
        # jsonargparse has a --print_config of its own, for its own files; this one is ours.
        rest = [word for word in words if word != "--print_config"]
        found: dict[str, Any] = parser.parse_args(rest, defaults=False).as_dict()
    except ArgumentError as error:
        raise ConfigError(_name_flag(str(error), hints)) from None
    return found


def _nearest_flag(name: str, known: Sequence[str]) -> str:
    return nearest(f"--{name}", [f"--{flag}" for flag in known])


def _name_flag(message: str, hints: Mapping[str, Any]) -> str:
    """Put what the parser says about a flag into our words."""
    for name, hint in hints.items():
        if f'"{name}"' in message and "value: " in message:
            value = message.rpartition("value: ")[2].split("\n")[0].strip()
            return f"--{name} is {value!r}; it must be {allowed_kinds(hint)}"
        if f"argument --{name}:" in message and "expected one argument" in message:
            return f"--{name} needs a value: {allowed_kinds(hint)}"
        if f"argument --{name}/--no_{name}:" in message:
            value = message.rpartition("value: ")[2]
            return f"--{name} is {value}; it must be {allowed_kinds(hint)}, or stand alone"
    return message


def _read_file(
    parser: Any, cls: type[T], path: str, given: Mapping[str, Any], shipped: Path | None
) -> list[T]:
    from cmibq.cli.yamlfile import load_runs

    file, listed, runs = load_runs(path, shipped)
    made = []
    for number, run in enumerate(runs, 1):
        name = f" ({run['name']})" if run.get("name") else ""
        place = f"{file}, run {number}{name}: " if listed else f"{file}: "
        made.append(_make(cls, {**_check_keys(parser, cls, run, place), **given}, place))
    _check_outputs(made, str(file))
    return made


def _check_keys(parser: Any, cls: type[Any], run: Mapping[Any, Any], place: str) -> dict[str, Any]:
    from jsonargparse import ArgumentError

    hints, checked = hints_of(cls), dict[str, Any]()
    for key, value in run.items():
        if key not in hints:
            raise ConfigError(f"{place}unknown key {key!r}; {nearest(str(key), hints)}")
        fault = f"{place}{key} is {value!r}; it must be {allowed_kinds(hints[key])}"
        if value is None and plain_types(hints[key]) == (hints[key],):
            raise ConfigError(fault)
        try:
            checked[key] = parser.parse_object({key: value}, defaults=False)[key]
        except ArgumentError:
            raise ConfigError(fault) from None
    return checked


def _make(cls: type[T], values: Mapping[str, Any], place: str) -> T:
    required = [
        item.name
        for item in fields(cls)  # type: ignore[arg-type]  # T is a dataclass
        if item.default is MISSING and item.default_factory is MISSING
    ]
    for name in required:
        if name not in values:
            raise ConfigError(f"{place}{name} is missing; give --{name}")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{place}{error}") from None


def _check_outputs(runs: Sequence[Any], file: str) -> None:
    """Two runs must not write to one place."""
    seen: dict[str, int] = {}
    for number, run in enumerate(runs, 1):
        names = ("output_path", "scale_path") if getattr(run, "run_process", False) else _OUTPUT
        for name in names:
            given = getattr(run, name, "")
            place = os.path.realpath(os.path.expanduser(given)) if given else ""
            if place and place in seen:
                raise ConfigError(
                    f"{file}: runs {seen[place]} and {number} both have {name} {given!r}; "
                    "give each run its own"
                )
            seen[place] = number


def _to_yaml(cls: type[Any], runs: Sequence[Any]) -> str:
    import yaml

    if len(runs) > 1:
        return str(yaml.safe_dump([asdict(run) for run in runs], sort_keys=False)).rstrip()
    texts = {item.name: str(item.metadata.get("help", "")) for item in fields(cls)}
    lines = []
    for key, value in asdict(runs[0]).items():
        line = str(yaml.safe_dump({key: value}, width=10_000)).rstrip()
        lines.append(f"{line}  # {texts[key]}" if texts[key] and "\n" not in line else line)
    return "\n".join(lines)
