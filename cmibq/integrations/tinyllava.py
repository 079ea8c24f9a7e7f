"""CALM, and CM-IBQ behind it, in TinyLLaVA_Factory, without a change to it.

    import cmibq.integrations.tinyllava
    cmibq.integrations.tinyllava.install({"calm": {"composition_layers": 4}})
    from tinyllava.train.train import train

`install` registers the vision tower ``calm``, the tune type ``calm`` and the training recipe
``calm``; the host's own trainer, recipes, command line and demo do the rest. ``python -m
cmibq.launch --host tinyllava`` runs a script with all this.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from typing import Any

from cmibq.errors import ConfigError
from cmibq.integrations import glue, tinyllava_args
from cmibq.integrations.bottleneck import check
from cmibq.integrations.bridge import NAME, BridgeConfig
from cmibq.integrations.hooks import add_bridge
from cmibq.integrations.llava_host import SAVING, named_with_state, preparing, with_callback
from cmibq.integrations.patches import Patches
from cmibq.integrations.tinyllava_config import Wanted, choosing, describing, starting
from cmibq.integrations.tinyllava_host import loosen, need, need_deepspeed, stub, tuning, unstub
from cmibq.integrations.tinyllava_record import KEY
from cmibq.integrations.tinyllava_start import warning, watching
from cmibq.integrations.tinyllava_tower import opening, tower_class
from cmibq.recipe.calm import CALMConfig

__all__ = ["install", "translate", "uninstall"]

_PARTS = (KEY, NAME)
_patches = Patches()
_wanted = Wanted()
_replaced: list[tuple[dict[str, Any], Any]] = []


def translate(args: Sequence[str]) -> list[str]:
    """Return the arguments of a host's script in the host's spelling; note CALM's own options.

    Raises:
        ConfigError: see `cmibq.integrations.tinyllava_args`.
        ModelError: deepspeed is asked for and is not there.
    """
    if any(word.partition("=")[0] == "--deepspeed" for word in args):
        need_deepspeed()
    left = list(args)
    _wanted.cache = tinyllava_args.take(left, "feature_cache") or ""
    left, _wanted.flags = tinyllava_args.translate(left)
    CALMConfig.from_dict(_wanted.options)
    return left


def _register(table: dict[str, Any], part: Any) -> None:
    """Put a part first into a table of the host, which takes the last whose name is in a path."""
    _replaced.append((table, table.get(KEY)))
    others = {name: value for name, value in table.items() if name != KEY}
    table.clear()
    table.update({KEY: part} | others)


def _building(original: Any) -> Any:
    """Wrap the model's constructor: what ``config.cm_ibq`` names goes behind the connector."""

    @functools.wraps(original)
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, config, *args, **kwargs)
        fields = getattr(config, NAME, None)
        if fields:
            options = BridgeConfig.of(fields, int(config.hidden_size))
            add_bridge(self.connector._connector, options)

    return __init__


def _saving(original: Any) -> Any:
    """Wrap a recipe's ``save``: of a connector it writes parameters, and the layer has buffers."""

    @functools.wraps(original)
    def save(self: Any, model: Any, trainer: Any) -> None:
        setattr(model.connector, SAVING, True)
        try:
            original(self, model, trainer)
        finally:
            setattr(model.connector, SAVING, False)

    return save


def _checked(original: Any) -> Any:
    """Wrap ``from_pretrained``: a CM-IBQ layer must be the one that config.json names."""

    @functools.wraps(original)
    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(cls, *args, **kwargs)
        check(found[0] if isinstance(found, tuple) else found)
        return found

    wrapped: Any = from_pretrained
    return classmethod(wrapped)


def _take(config: dict[str, Any] | None) -> None:
    """Note what is wanted.

    Raises:
        ConfigError: another part than calm and cm_ibq, or a wrong field.
    """
    if config is None:
        return
    for part, fields in config.items():
        if part not in _PARTS or not isinstance(fields, dict):
            raise ConfigError(
                f"the configuration has {part!r}; give an object with"
                ' {"calm": {fields of CALMConfig}, "cm_ibq": {fields of CMIBQConfig}}, or one of'
                " them"
            )
    calm, layer = config.get(KEY, {}), config.get(NAME, {})
    CALMConfig.from_dict(calm)
    if layer:
        BridgeConfig.of(layer, 64, 64)
    _wanted.calm, _wanted.cm_ibq = dict(calm), dict(layer)


def _patch_recipes() -> None:
    recipes = importlib.import_module("tinyllava.training_recipe")
    base = importlib.import_module("tinyllava.training_recipe.base").BaseTrainingRecipe
    common = importlib.import_module("tinyllava.training_recipe.common_recipe")
    _register(
        recipes.RECIPE_FACTORY, type("CALMTrainingRecipe", (common.CommonTrainingRecipe,), {})
    )
    _patches.set(base, "__init__", starting(base.__init__, _wanted))
    tune = "_vision_tower_tune_type_setting"
    _patches.set(base, tune, tuning(getattr(base, tune)))
    for kind in {base, *recipes.RECIPE_FACTORY.values()}:
        if "save" in vars(kind):
            _patches.set(kind, "save", _saving(kind.save))
    trainer = importlib.import_module("tinyllava.train.tinyllava_trainer").LLaVATrainer
    made = with_callback(trainer.__init__, lambda: bool(_wanted.cm_ibq))
    _patches.set(trainer, "__init__", watching(made, _wanted))
    _patches.set(trainer, "train", warning(trainer.train))


def _patch_model() -> None:
    config = importlib.import_module("tinyllava.model.configuration_tinyllava").TinyLlavaConfig
    load = "_load_vision_config"
    _patches.set(config, load, describing(getattr(config, load), _wanted))
    _patches.set(config, "load_from_config", choosing(config.load_from_config, _wanted))
    model = importlib.import_module("tinyllava.model.modeling_tinyllava")
    model = model.TinyLlavaForConditionalGeneration
    _patches.set(model, "__init__", _building(model.__init__))
    prepare = "prepare_inputs_labels_for_multimodal"
    _patches.set(model, prepare, preparing(getattr(model, prepare)))
    _patches.set(model, "from_pretrained", opening(model.from_pretrained.__func__))
    _patches.set(model, "from_pretrained", _checked(model.from_pretrained.__func__))
    connector = importlib.import_module("tinyllava.model.connector.base").Connector
    _patches.set(connector, "named_parameters", named_with_state(connector.named_parameters))


def install(config: dict[str, Any] | None = None) -> None:
    """Put CALM and CM-IBQ into the ``tinyllava`` package that can be imported; twice is once.

    Args:
        config: of models that are trained from now on: fields of `CALMConfig` under ``calm``, those
            of a CM-IBQ layer behind the connector under ``cm_ibq``. None: the defaults, no layer.

    Raises:
        ConfigError: a field is unknown or out of range.
        ModelError: there is no ``tinyllava``, or a package that it needs is missing.
    """
    _take(config)
    if _patches:
        return
    need()
    stub()
    glue.register()
    loosen(_patches)
    towers = importlib.import_module("tinyllava.model.vision_tower")
    _register(towers.VISION_TOWER_FACTORY, tower_class())
    _patch_model()
    _patch_recipes()


def uninstall() -> None:
    """Put back every attribute that `install` replaced; models that exist stay as they are."""
    if _patches:
        _patches.undo()
        tower_class.cache_clear()
        unstub()
        glue.unregister()
    _wanted.clear()
    while _replaced:
        table, before = _replaced.pop()
        table.pop(KEY, None)
        if before is not None:
            table[KEY] = before
