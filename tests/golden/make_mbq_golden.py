"""Make the golden numbers of MBQ, AWQ, SmoothQuant and RTN with the published code.

    python tests/golden/make_mbq_golden.py --mbq DIR --awq DIR --out tests/golden

``DIR`` are work trees of thu-nics/MBQ and mit-han-lab/llm-awq at the commits below, anywhere
outside this repository. Inputs come from a seeded generator and are stored with the outputs, so
tests depend on no random stream. README.md lists every array.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import platform
from pathlib import Path
from typing import Any

import cases_block
import cases_model
import numpy as np
import torch
import transformers
import upstream
from torch import nn

MBQ_COMMIT = "a4d460dfb4b1c07b5d1f3ddda6e86d1c90d6e7f1"
AWQ_COMMIT = "d6e797a42b9ef7778de8ee2352116e0f48a78d61"
DRIVEN = {
    "mbq": (
        "qmllm/quantization/quant_funcs.py",
        "qmllm/quantization/qlinear.py",
        "qmllm/methods/mbq/entry.py",
        "qmllm/methods/mbq/quantize/pre_quant.py",
        "qmllm/methods/mbq/quantize/auto_scale.py",
        "qmllm/methods/mbq/quantize/auto_scale_wa.py",
        "qmllm/methods/mbq/quantize/auto_scale_distort.py",
        "qmllm/methods/mbq/quantize/auto_scale_wa_distort.py",
        "qmllm/methods/smoothquant/quantize/gen_act_scales.py",
        "qmllm/methods/smoothquant/quantize/smooth.py",
    ),
    "awq": (
        "awq/quantize/quantizer.py",
        "awq/quantize/auto_scale.py",
        "awq/quantize/auto_clip.py",
    ),
}
LOG = logging.getLogger("golden")
Arrays = dict[str, np.ndarray]


def edge_rows(rng: np.random.Generator, cols: int = 128) -> tuple[list[str], np.ndarray]:
    """Return named rows that reach every branch of the quantisers."""
    normal = rng.standard_normal(cols)
    rows: dict[str, Any] = {
        "normal": normal,
        "heavy_tail": rng.standard_t(3, cols) * 0.02,
        "zero": np.zeros(cols),
        "minus_zero": np.full(cols, -0.0),
        "all_positive": np.abs(normal) + 1.0,
        "all_negative": -np.abs(normal) - 1.0,
        "positive_constant": np.full(cols, 0.3),
        "negative_constant": np.full(cols, -0.7),
        "outlier": np.where(np.arange(cols) == 17, 1000.0, normal),
        "negative_outlier": np.where(np.arange(cols) == 99, -65504.0, normal),
        "range_below_floor": normal * 1e-7,
        "offset_below_floor": 1.0 + normal * 1e-6,
        "denormal": normal * 1e-40,
        "huge": normal * 1e30,
        "one_hot": np.where(np.arange(cols) == 64, 1.0, 0.0),
        "sparse": np.where(np.arange(cols) % 7 == 0, normal, 0.0),
        "uniform": rng.random(cols),
        "integers": np.round(normal * 4),
    }
    return list(rows), np.stack([np.asarray(r) for r in rows.values()]).astype(np.float32)


def tie_rows(bits: int, step: float, cols: int = 128) -> np.ndarray:
    """Return rows whose quotients by the scale are exactly k + 1/2 (``step`` a power of two).

    The rows: an integer zero point, a zero point that is itself a tie, one that clamps at the
    top; each group of 32 contains both ends of its range so every group size sees the same step.
    """
    top = 2**bits - 1
    low = np.array([-(2 ** (bits - 1)), -(2 ** (bits - 1)) + 0.5, -top - 1.5], dtype=np.float64)
    inner = np.linspace(0, top - 1, 30).round() + 0.5
    group = np.concatenate([[0.0], inner, [float(top)]])
    return ((low[:, None] + np.tile(group, cols // 32)[None, :]) * step).astype(np.float32)


def symmetric_tie_rows(bits: int, step: float, cols: int = 128) -> np.ndarray:
    """Return rows for the symmetric quantiser: every value a tie, the largest one on the grid."""
    top = 2 ** (bits - 1) - 1
    inner = (np.linspace(-top, top - 1, cols - 1).round() + 0.5) * step
    return np.stack([np.append(inner, top * step), np.append(inner, -top * step)]).astype("f4")


def quantise(x: np.ndarray, **options: Any) -> dict[str, np.ndarray]:
    """Run the published quantiser; return its output with the scale and zero point inside it."""
    from qmllm.quantization.quant_funcs import pseudo_quantize_tensor

    with upstream.record_locals("pseudo_quantize_tensor", "scales", "zeros") as seen:
        out = pseudo_quantize_tensor(torch.from_numpy(x.copy()), **options)
    scale, zero = seen[-1]["scales"], seen[-1]["zeros"]
    found = {"out": out.numpy(), "scale": scale.numpy().reshape(-1)}
    if isinstance(zero, torch.Tensor):
        found["zero"] = zero.numpy().reshape(-1).astype(np.int16)
    return found


def quantisers(rng: np.random.Generator) -> Arrays:
    """Asymmetric per group or row, symmetric per row, symmetric per tensor; ties apart."""
    names, x = edge_rows(rng)
    arrays: Arrays = {"x": x, "row_names": np.array(names)}
    found: dict[str, dict[str, np.ndarray]] = {}
    for bits in (2, 3, 4, 8):
        for group in (32, 64, -1):
            options = {"n_bits": bits, "zero_point": True, "q_group_size": group}
            found[f"asym/b{bits}/g{group}"] = quantise(x, **options)
        found[f"sym/b{bits}"] = quantise(x, n_bits=bits, zero_point=False)
        ties, sym = tie_rows(bits, 0.25), symmetric_tie_rows(bits, 0.25)
        arrays[f"ties/asym/b{bits}/x"], arrays[f"ties/sym/b{bits}/x"] = ties, sym
        for group in (32, -1):
            options = {"n_bits": bits, "zero_point": True, "q_group_size": group}
            found[f"ties/asym/b{bits}/g{group}"] = quantise(ties, **options)
        found[f"ties/sym/b{bits}"] = quantise(sym, n_bits=bits, zero_point=False)
    found["sym_tensor/b8"] = quantise(x[:2], n_bits=8, zero_point=False, per_tensor=True)
    for name, parts in found.items():
        arrays |= {f"{name}/{part}": value for part, value in parts.items()}
    return arrays


def activations(rng: np.random.Generator) -> Arrays:
    """Per-token activations [2, 7, 64] and the W4A8 / W8A8 Linear on them."""
    from qmllm.quantization.qlinear import WALinear
    from qmllm.quantization.quant_funcs import quantize_activation_per_token_absmax as per_token

    x = rng.standard_normal((2, 7, 64)) * np.exp(rng.standard_normal((1, 1, 64)))
    x[0, 3] = 0.0
    x[1, 6] *= 1e-6
    w, bias = rng.standard_normal((48, 64)) * 0.1, rng.standard_normal(48)
    arrays: Arrays = {"x": x.astype("f4"), "weight": w.astype("f4"), "bias": bias.astype("f4")}
    xt = torch.from_numpy(arrays["x"])
    for bits in (4, 6, 8):
        arrays[f"per_token/b{bits}"] = per_token(xt, n_bits=bits).numpy()
    for w_bit, a_bit in ((4, 8), (8, 8), (4, 4)):
        for with_bias in (False, True):
            linear = nn.Linear(64, 48, bias=with_bias)
            linear.weight.data = torch.from_numpy(arrays["weight"].copy())
            if with_bias:
                linear.bias.data = torch.from_numpy(arrays["bias"].copy())
            module = WALinear.from_float(linear, w_bit=w_bit, a_bit=a_bit)
            name = f"w{w_bit}a{a_bit}/{'bias' if with_bias else 'nobias'}"
            arrays[name] = module(xt).detach().numpy()
    return arrays


def provenance(mbq: Path, awq: Path) -> dict[str, Any]:
    """Return the commits, the digests of the files driven and the versions used."""
    roots = {"mbq": mbq, "awq": awq}
    digests = {
        f"{key}/{name}": hashlib.sha256((roots[key] / name).read_bytes()).hexdigest()
        for key, names in DRIVEN.items()
        for name in names
    }
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    commits = {"thu-nics/MBQ": MBQ_COMMIT, "mit-han-lab/llm-awq": AWQ_COMMIT}
    return {"commits": commits, "sha256": digests, "versions": versions}


def save(folder: Path, name: str, arrays: Arrays) -> None:
    """Write one compressed golden file."""
    path = folder / f"{name}.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    LOG.info("%-14s %3d arrays %7d bytes", path.name, len(arrays), path.stat().st_size)


def main() -> None:
    """Make every golden file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbq", type=Path, required=True, help="work tree of thu-nics/MBQ")
    parser.add_argument("--awq", type=Path, required=True, help="work tree of mit-han-lab/llm-awq")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    upstream.load(args.mbq, args.awq)
    with upstream.as_on_gpu():
        save(args.out, "quantisers", quantisers(np.random.default_rng(1)))
        save(args.out, "walinear", activations(np.random.default_rng(2)))
        block = cases_block.make_block(np.random.default_rng(3))
        save(args.out, "block", block | cases_block.grids(block))
        save(args.out, "block_search", cases_block.searches(block))
        save(args.out, "awq", cases_block.awq_cases(block))
        save(args.out, "smooth", cases_block.smooth_cases(np.random.default_rng(4), block))
        save(args.out, "reweight", cases_model.reweight_cases(np.random.default_rng(5)))
        model = cases_model.make_model(np.random.default_rng(6))
        save(args.out, "model", model)
        save(args.out, "model_search", cases_model.searches(model, args.out))
    facts = provenance(args.mbq, args.awq) | {"scale_cache": cases_model.cache_layout(args.out)}
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    (args.out / "provenance.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
