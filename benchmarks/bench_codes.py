"""Codes, their values, and activations per token, one thread, beside torch."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from timing import SHAPES, report

from cmibq.ops.codes import (
    reference,
    reference_decode,
    reference_fakequant_token,
    reference_token,
)


def main() -> None:
    torch.set_num_threads(1)
    for shape in SHAPES:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        scale, zero = np.abs(x).max(1) / 7, np.full(shape[0], 8, np.uint8)
        code, signed = np.empty(shape, np.uint8), np.empty(shape, np.int8)
        out, token = np.empty_like(x), np.empty(shape[0], np.float32)
        t, c = torch.from_numpy(x), torch.from_numpy(code)
        s, z = torch.from_numpy(scale), torch.from_numpy(zero)
        options = {"shape": shape, "moved": x.nbytes + code.nbytes}
        plain = partial(reference, t, s, z, 4)
        report("codes_row", (x, scale, zero, 4, code), peer=plain, **options)
        plain = partial(reference_decode, c, s, z)
        report("decode_row", (code, scale, zero, out), peer=plain, **options)
        plain = partial(reference_token, t)
        report("codes_token_s8", (x, signed, token), peer=plain, **options)
        plain = partial(reference_fakequant_token, t, 8)
        report("fakequant_token", (x, 8, out), shape=shape, moved=2 * x.nbytes, peer=plain)


if __name__ == "__main__":
    main()
