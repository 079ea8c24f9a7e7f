"""How the host's configuration comes to describe a composed tower, and whose options hold."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, field, replace
from typing import Any

from cmibq.errors import ConfigError
from cmibq.integrations.bridge import NAME, BridgeConfig
from cmibq.integrations.tinyllava_fork import fork_config, is_fork, read_config
from cmibq.integrations.tinyllava_record import KEY, Record
from cmibq.models import towers
from cmibq.recipe.calm import CALMConfig

__all__ = ["Wanted", "choosing", "describing", "starting"]

_log = logging.getLogger(__name__)


@dataclass
class Wanted:
    """What models that are trained from now on shall be.

    Args:
        calm: fields of `CALMConfig` that were given to `install`.
        flags: those on the command line, which go before them.
        cm_ibq: fields of a CM-IBQ layer behind the connector; empty = none.
        start: config.json of the checkpoint that training starts from.
        cache: folder for features of the augmenting tower; "" = none are kept.
    """

    calm: dict[str, Any] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=dict)
    cm_ibq: dict[str, Any] = field(default_factory=dict)
    start: dict[str, Any] = field(default_factory=dict)
    cache: str = ""

    def clear(self) -> None:
        """Want nothing."""
        self.calm, self.flags, self.cm_ibq, self.start, self.cache = {}, {}, {}, {}, ""

    @property
    def options(self) -> dict[str, Any]:
        """Return the fields of `CALMConfig` that were given."""
        return self.calm | self.flags


def _names(host: Any) -> tuple[str, str]:
    """Return both towers that a configuration of the host names, without ``calm:``."""
    both = (host.vision_model_name_or_path, host.vision_model_name_or_path2)
    anchor, augmenting = (str(name or "").split(":")[-1] for name in both)
    return anchor, augmenting


def _set(host: Any, vision_config: Any, record: Record) -> None:
    """Write into the host's configuration what its own method writes, and the record."""
    setattr(vision_config, KEY, record.to_dict())
    anchor, augmenting = _names(host)
    vision_config.model_name_or_path, vision_config.model_name_or_path2 = anchor, augmenting
    host.vision_config = vision_config
    sizes = getattr(vision_config, "hidden_sizes", [None])
    host.vision_hidden_size = getattr(vision_config, "hidden_size", sizes[-1])


def _fresh(host: Any, wanted: Wanted) -> None:
    """Describe the towers that the command line names."""
    from transformers import AutoConfig

    anchor, augmenting = _names(host)
    named = {"anchor_model": anchor, "augmenting_model": augmenting}
    named["select_layer"] = host.vision_feature_layer
    record = Record.made(CALMConfig.from_dict(wanted.options | named))
    _set(host, towers.vision_config(AutoConfig.from_pretrained(anchor)), record)


def _fork(host: Any, fields: dict[str, Any]) -> None:
    """Describe the towers of a checkpoint of the public fork, which names them."""
    from transformers import AutoConfig

    anchor, augmenting = _names(host)
    record = Record.made(CALMConfig(anchor_model=anchor, augmenting_model=augmenting))
    own = towers.vision_config(AutoConfig.from_pretrained(anchor))
    own = own.from_dict(fields) if fields else own
    depths = (own.num_hidden_layers, record.augmenting["num_hidden_layers"])
    _set(host, own, replace(record, config=fork_config(anchor, augmenting, depths)))


def _again(host: Any, fields: dict[str, Any]) -> None:
    """Describe the towers of a checkpoint of ours, which need not be reached."""
    from transformers import CONFIG_MAPPING

    own = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
    _set(host, own, Record.of(own))


def _agree(host: Any, wanted: Wanted) -> None:
    """Refuse options other than those of the checkpoint that training starts from.

    Raises:
        ConfigError: naming them.
    """
    had = Record.of(host.vision_config).config
    asked = CALMConfig.from_dict(wanted.options)
    for name in wanted.options:
        mine, theirs = getattr(asked, name), getattr(had, name)
        if mine != theirs:
            raise ConfigError(
                f"{name} is {mine!r}, but the checkpoint to start from was trained with"
                f" {theirs!r}; leave it out"
            )
    if _names(host) != (had.anchor_model, had.augmenting_model):
        _log.warning(
            "the towers are those that the checkpoint to start from holds (it names %s and %s);"
            " those on the command line are not read",
            *(had.anchor_model, had.augmenting_model),
        )
    if had.select_layer == host.vision_feature_layer:
        return
    if not is_fork(wanted.start):
        raise ConfigError(
            f"mm_vision_select_layer is {host.vision_feature_layer}, but the checkpoint to start"
            f" from was trained with {had.select_layer}; give --mm_vision_select_layer"
            f" {had.select_layer}"
        )
    _log.warning("the public fork reads the last layer of the anchor, and so does this training")


def describing(original: Any, wanted: Wanted) -> Any:
    """Wrap ``_load_vision_config``: towers named ``calm:...`` get a description."""

    @functools.wraps(original)
    def _load_vision_config(self: Any, vision_config: Any = None) -> None:
        if (self.vision_model_name_or_path or "").partition(":")[0].lower() != KEY:
            original(self, vision_config)
            return
        if self.image_aspect_ratio == "anyres":
            raise ConfigError(
                "image_aspect_ratio is 'anyres', which cuts images up for one tower; a composed"
                " tower takes square or pad"
            )
        fields = vision_config or {}
        start = wanted.start.get("vision_config") or {}
        if fields.get(KEY):
            _again(self, fields)
        elif fields:
            _fork(self, fields)
        elif start.get(KEY):
            _again(self, start)
            _agree(self, wanted)
        elif is_fork(wanted.start):
            _fork(self, start)
            _agree(self, wanted)
        else:
            _fresh(self, wanted)

    return _load_vision_config


def choosing(original: Any, wanted: Wanted) -> Any:
    """Wrap ``load_from_config``, which only training calls: it gets the wanted CM-IBQ layer."""

    @functools.wraps(original)
    def load_from_config(self: Any, config: Any) -> None:
        original(self, config)
        fields = wanted.cm_ibq or wanted.start.get(NAME)
        if fields:
            widths = int(self.hidden_size), int(self.vision_hidden_size)
            setattr(self, NAME, BridgeConfig.of(fields, *widths).to_dict())

    return load_from_config


def starting(original: Any, wanted: Wanted) -> Any:
    """Wrap the recipe's constructor: the first to know which checkpoint training starts from."""

    @functools.wraps(original)
    def __init__(self: Any, training_arguments: Any, *args: Any, **kwargs: Any) -> None:
        original(self, training_arguments, *args, **kwargs)
        path = getattr(training_arguments, "pretrained_model_path", None)
        wanted.start = read_config(path) if path else {}

    return __init__
