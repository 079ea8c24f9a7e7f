"""Packages made from the tiny models of `tests.fixtures`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cmibq import io, models
from cmibq.data import collate, encode, read_items
from cmibq.nn import convert_
from cmibq.quant import PerGroup, QuantSpec


def write_package(
    source: Path, out: Path, items: Path, *, bits: int = 4, group: int = 32, acts: int = 16
) -> io.Package:
    """Quantise with RTN and save, as `cmibq.ptq` would."""
    loaded = models.load(source)
    spec = QuantSpec(bits, PerGroup(group), acts < 16)
    targets = loaded.adapter.targets(loaded.model)
    convert_(loaded.model, dict.fromkeys(targets, spec), acts)
    batch = collate(encode(read_items(items)[:1], loaded.processor), loaded.processor)
    assert batch.pixel_values is not None
    return io.save(
        loaded.model,
        source,
        out,
        recipe={
            "model_args": f"pretrained={source}",
            "method": "rtn",
            "w_bit": bits,
            "w_group": group,
            "a_bit": acts,
        },
        metadata={"layer_errors": dict.fromkeys(targets, 0.25)},
        probe={
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "pixel_values": batch.pixel_values,
        },
    )


def one_by_one(loaded: models.LoadedModel, items: Path) -> Iterator[tuple[float, list[int], bool]]:
    """Yield (log-likelihood, most likely tokens, all right) by whole forward passes of one item."""
    model: Any = loaded.model
    for encoded in encode(read_items(items), loaded.processor):
        batch = collate([encoded], loaded.processor)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids}
        inputs["attention_mask"] = batch.attention_mask
        if batch.pixel_values is not None:
            inputs["pixel_values"] = batch.pixel_values[batch.image_index]
        with torch.inference_mode():
            logits = model(**inputs).logits[0, :-1].double()
        told = batch.answer_mask[0, 1:]
        right, best = batch.input_ids[0, 1:][told], logits.argmax(1)[told]
        likely = logits.log_softmax(1)[told].gather(1, right[:, None])
        yield float(likely.sum()), best.tolist(), bool((best == right).all())
