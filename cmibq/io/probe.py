"""The probe of a package: inputs, and the logits that the saved model computed from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from cmibq.errors import PackageError
from cmibq.io.tensors import read_tensors
from cmibq.ops.library import torch_threads

__all__ = ["ProbeCheck", "align_", "answer", "compare"]

_LOGITS: Final = "logits"
_ALIGNMENT: Final = 64  # bytes; what torch allocates on the CPU


@dataclass(frozen=True)
class ProbeCheck:
    """Whether a model computes what the saved one did.

    Args:
        exact: every logit is equal bit for bit.
        max_difference: largest absolute difference.
    """

    exact: bool
    max_difference: float


def align_(model: nn.Module) -> None:
    """Move tensors to where a reload has them: BLAS sums in another order for other addresses.

    Weights that transformers has mapped from a file start anywhere (seen: logits off by 1e-5).
    """
    for module in model.modules():
        for values in (module._parameters, module._buffers):
            for tensor in values.values():
                if tensor is not None and tensor.data_ptr() % _ALIGNMENT:
                    tensor.data = tensor.data.clone()


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Take gradients off: torch multiplies in another way where a weight wants one."""
    learning = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    with _frozen(model), torch.inference_mode():
        out = model(**{name: value.clone() for name, value in inputs.items()})
    logits = out if isinstance(out, Tensor) else out.logits
    return logits.detach().cpu().contiguous().clone()


def answer(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs and the logits that a model computes from them: what a probe holds."""
    return {**inputs, _LOGITS: _logits(model, inputs)}


def compare(model: nn.Module, path: Path, threads: int | None) -> ProbeCheck | None:
    """Run a saved probe through a model; None if it has no logits.

    Raises:
        PackageError: the file cannot be read, or the model cannot run what is in it.
    """
    inputs, _ = read_tensors(path)
    saved = inputs.pop(_LOGITS, None)
    if saved is None:
        return None
    try:
        with torch_threads(threads):
            found = _logits(model, inputs)
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        raise PackageError(
            f"{path}: the model cannot run these inputs ({type(error).__name__}: {error}); copy "
            "the package again"
        ) from error
    if found.shape != saved.shape or found.dtype != saved.dtype:
        return ProbeCheck(False, float("inf"))
    same = torch.equal(found.view(torch.uint8), saved.view(torch.uint8))
    difference = (found.double() - saved.double()).abs().max() if found.numel() else 0.0
    return ProbeCheck(same, float(difference))
