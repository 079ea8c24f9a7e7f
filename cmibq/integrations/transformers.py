"""Open packages with ``transformers``: importing this module registers the quantiser.

    import cmibq.integrations.transformers
    model = AutoModelForImageTextToText.from_pretrained("out/mbq-w4")

Without the import ``from_pretrained`` finds no weights and raises ``OSError``: a package never
loads as an unquantised model with random layers.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from torch import nn

from cmibq.errors import ConfigError, ModelError, PackageError
from cmibq.integrations.bottleneck import attach_cm_ibq, bridge_of, check, collect
from cmibq.integrations.calm import attach_calm, calm_of, detach_calm
from cmibq.integrations.mapped import tile_
from cmibq.io import is_package, load
from cmibq.io.manifest import VERSION, LayerSpec
from cmibq.io.package import WEIGHTS
from cmibq.io.restore import share_, swap_
from cmibq.models import accelerate_
from cmibq.nn import PackedLinear

__all__ = [
    "attach_calm",
    "attach_cm_ibq",
    "bridge_of",
    "calm_of",
    "check",
    "collect",
    "detach_calm",
    "register",
]

METHOD = "cmibq"


def _layers(values: dict[str, Any]) -> dict[str, LayerSpec]:
    """Read the layers of a ``quantization_config``, with the checks of the manifest."""
    version, layers = values.get("format"), values.get("layers")
    if type(version) is not int or not isinstance(layers, dict):
        raise PackageError("quantization_config lacks format or layers; make the package again")
    if version > VERSION:
        raise PackageError(
            f"the package has format {version}, newer than {VERSION}, which this cmibq reads; "
            "update it"
        )
    try:
        return {name: LayerSpec.from_json(spec) for name, spec in layers.items()}
    except (TypeError, PackageError) as error:
        raise PackageError(f"quantization_config: a layer is damaged ({error})") from error


def _local(model: nn.Module, name: str) -> str:
    """Return the name of a layer in this model: a base model (``AutoModel``) lacks the prefix."""
    known = dict(model.named_modules(remove_duplicate=False))
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    return name if name in known else name.removeprefix(prefix)


def _replace_layers(model: nn.Module, values: dict[str, Any], where: Path) -> dict[str, nn.Module]:
    """Swap layers by name; shared ones have no tensors of their own and wait for `_after_loading`.

    Returns:
        Name -> empty layer of those that share the codes, but not the module, of another one.

    Raises:
        PackageError: a layer is damaged or does not fit the model.
    """
    layers = _layers(values)
    for name, spec in layers.items():
        swap_(model, _local(model, name), spec, where)
    waiting: dict[str, nn.Module] = {}
    for name, first in _shared(values).items():
        if first not in layers:
            raise PackageError(f"{where}: layer {name} is tied to {first}, which is missing")
        if name in layers:
            waiting[name] = model.get_submodule(_local(model, name))
        else:
            share_(model, _local(model, name), _local(model, first), where)
        model.set_submodule(_local(model, name), nn.Identity())
    return waiting


def _shared(values: dict[str, Any]) -> dict[str, str]:
    tied = values.get("tied", {})
    if not isinstance(tied, dict) or not all(isinstance(first, str) for first in tied.values()):
        raise PackageError("quantization_config: tied is damaged; make the package again")
    return tied


def _after_loading(model: nn.Module, values: dict[str, Any], waiting: dict[str, nn.Module]) -> None:
    """Refuse a model whose scales or widths are not those of a package; put shared layers in."""
    for name, layer in model.named_modules():
        if isinstance(layer, PackedLinear):
            scales, widths = layer.get_buffer("scales"), layer.strip_bits
            if scales.is_meta or not bool((scales > 0).all() & scales.isfinite().all()):
                raise PackageError(f"layer {name} lacks scales that are finite and > 0")
            if widths is not None and (widths.is_meta or tuple(widths.tolist()) != layer.bits):
                raise PackageError(f"layer {name}: strip_bits are not those of config.json")
    for name, first in _shared(values).items():
        layer = model.get_submodule(_local(model, first))
        if name in waiting:
            waiting[name]._buffers.update(layer._buffers)
        model.set_submodule(_local(model, name), waiting.get(name, layer))
    model.requires_grad_(False)
    accelerate_(model)
    tile_(model)


@functools.cache
def _config_class() -> type[Any]:
    from transformers.utils.quantization_config import QuantizationConfigMixin

    class CmibqConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is untyped
        """``quantization_config`` of a package."""

        def __init__(self, **values: Any) -> None:
            self.quant_method = METHOD
            self.values = json.loads(json.dumps(values | {"quant_method": METHOD}))

        def to_dict(self) -> dict[str, Any]:
            return dict(self.values)

    return CmibqConfig


@functools.cache
def _quantizer_class() -> type[Any]:
    from transformers.quantizers import HfQuantizer

    class CmibqQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is untyped
        """Opens packages; quantising while loading is what ``cmibq quantize`` is for."""

        requires_calibration = True
        is_trainable = False

        def update_attn_implementation(self, config: Any) -> Any:
            config.transformers_weights = WEIGHTS  # called before weight files are looked for
            return config

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            files = kwargs.get("checkpoint_files") or [WEIGHTS]
            where = Path(files[0]).parent
            if is_package(where):
                load(where)
            self._waiting = _replace_layers(model, self.quantization_config.to_dict(), where)
            return model

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            _after_loading(model, self.quantization_config.to_dict(), self._waiting)
            return model

        def is_serializable(self, **kwargs: Any) -> bool:
            raise ModelError(
                "save_pretrained would write weights that load as random layers where cmibq is "
                "missing; save with cmibq.io.save"
            )

    return CmibqQuantizer


@functools.cache
def register() -> None:
    """Register the quantiser with transformers; importing this module does it.

    Raises:
        ConfigError: another library has registered the name.
    """
    from transformers.quantizers.auto import register_quantization_config, register_quantizer

    try:
        register_quantization_config(METHOD)(_config_class())
        register_quantizer(METHOD)(_quantizer_class())
    except ValueError as error:
        raise ConfigError(f"transformers has another quantiser {METHOD!r}: {error}") from error


register()
