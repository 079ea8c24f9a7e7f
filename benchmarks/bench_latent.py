"""A picture at LLaVA's shape as bytes: 576 x 1024 features at 0.11 bits per element, and times.

    python benchmarks/bench_latent.py [--threads 1] [--rounds 9] [--out F]

Random features and weights: a budget of bytes and time, no claim about answers. Two ways to spend
the budget: whole channels without bits, codes even (``few``); one bit everywhere, one of its codes
rare (``skewed``), which is the most symbols that a decoder can meet. ``parts`` are the coder alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[0] = str(Path(__file__).resolve().parents[1])

from cmibq.arrays import RangeTables, integer_frequencies, range_decode, range_encode
from cmibq.nn.ib_layer import CMIBQConfig, IBQuantizedLayer

TOKENS, WIDTH, TARGET = 576, 1024, 0.11


def few() -> IBQuantizedLayer:
    """Return a layer with 0.11 bits per element, most channels without any."""
    config = CMIBQConfig(
        feature_dim=WIDTH, hidden_dim=64, min_bits=0, stage1_bits=TARGET, stage2_bits=TARGET
    )
    return started(IBQuantizedLayer(config))


def skewed() -> IBQuantizedLayer:
    """Return a layer with one bit for every element, of 0.11 bits of information."""
    config = CMIBQConfig(feature_dim=WIDTH, hidden_dim=64, min_bits=1, stage1_bits=1, stage2_bits=1)
    layer = started(IBQuantizedLayer(config))
    layer.quantizer.running_min.fill_(-2.2)
    layer.quantizer.running_max.fill_(6.5)  # the upper code from 2.15 on: 1.6 % of normal features
    counts = torch.zeros(WIDTH, 511)
    counts[:, 1], counts[:, 2] = 984e3, 16e3
    assert layer.prior is not None
    layer.prior.fit_(counts)
    return layer


def started(layer: IBQuantizedLayer) -> IBQuantizedLayer:
    """Return the layer after it has seen data once."""
    with torch.no_grad():
        layer.train()(torch.randn(2, TOKENS, WIDTH))
    return layer


def timed(call: Callable[[], Any], rounds: int) -> float:
    """Return the median in milliseconds."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times[1:]), 2)


def whole(layer: IBQuantizedLayer, rounds: int) -> dict[str, float]:
    """Return bytes and times of compress and decompress, one picture."""
    layer.finalize_()
    x = torch.randn(1, TOKENS, WIDTH)
    z = layer.eval().compress(x)
    data = bytes(z)
    assert torch.equal(layer.decompress(data), layer(x)[0])
    return {
        "bytes": len(data),
        "reported_bytes": round(z.rate[0] / 8, 1),
        "compress_ms": timed(lambda: layer.compress(x), rounds),
        "decompress_ms": timed(lambda: layer.decompress(data), rounds),
    }


def parts(rounds: int) -> dict[str, dict[str, float]]:
    """Return times of the coder alone: 576 x 1024 symbols of two codes, one of them rare."""
    rng, found = np.random.default_rng(0), {}
    tables = RangeTables.of([integer_frequencies([0.985, 0.015])])
    symbols = (rng.random((TOKENS, WIDTH)) < 0.015).astype(np.uint8)
    context = np.zeros((1, WIDTH), np.int32)
    for lanes in (1, 4):
        made = range_encode(symbols, tables, context, lanes=lanes)
        encode = timed(lambda n=lanes: range_encode(symbols, tables, context, lanes=n), rounds)
        decode = timed(lambda s=made: range_decode(s, tables, context, TOKENS), rounds)
        found[f"lanes{lanes}"] = {"encode_ms": encode, "decode_ms": decode}
    return found


def main() -> int:
    """Measure, print and file one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="JSON to write")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.manual_seed(0)
    row = {
        "threads": o.threads,
        "few": whole(few(), o.rounds),
        "skewed": whole(skewed(), o.rounds),
        "parts": parts(o.rounds),
    }
    sys.stdout.write(json.dumps(row) + "\n")
    if o.out:
        o.out.write_text(json.dumps(row, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
