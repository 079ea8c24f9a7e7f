"""Random numbers that depend on a key and a position only, as a torch operator.

The key is (seed, step, first sample, stream), so two processes with half a batch each draw what one
draws, a resumed run what the first one drew, and a backward pass what its forward drew: nothing is
stored. All devices give the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cmibq.errors import ConfigError
from cmibq.noise import inverse_normal
from cmibq.ops.library import LIBRARY, direct, empty, view
from cmibq.runtime import kernels

__all__ = ["noise_key", "normal", "philox", "reference", "uniform"]

LIBRARY.define("noise(Tensor key, SymInt[] shape, bool normal) -> Tensor")

_MASK = 0xFFFFFFFF
_GROUP = 64
_MOST = 2**34
_MULTIPLY = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Whole = int | Tensor
"""An integer, or an integer tensor with one element on the device of the noise."""


def philox(counter: Sequence[Tensor], seed: tuple[Whole, Whole]) -> tuple[Tensor, ...]:
    """Return the four words of Philox 4x32-10, in int64.

    Args:
        counter: four int64 tensors that broadcast, 0 .. 2**32 - 1.
        seed: low and high word of the key.

    References:
        Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = seed
    for _ in range(10):
        a, b = c0 * _MULTIPLY[0], c2 * _MULTIPLY[1]  # modulo 2^64, whose bits are what counts
        c0, c1, c2, c3 = ((b >> 32) & _MASK) ^ c1 ^ k0, b & _MASK, ((a >> 32) & _MASK) ^ c3 ^ k1, a
        c3 = c3 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


@functools.cache
def _table(device: torch.device) -> Tensor:
    """Return the table on a device, brought there once."""
    return torch.from_numpy(inverse_normal()).to(device)


def _words(key: Tensor, samples: int, elements: int) -> Tensor:
    """Return the word of every element, int64 [samples, elements]."""
    groups = -(-elements // _GROUP)
    at = torch.arange(16 * groups, device=key.device)
    sample = (key[2] + torch.arange(samples, device=key.device))[:, None]
    zero = torch.zeros_like(at)
    counter = (at, sample & _MASK, key[1] + zero, key[3] + zero)
    words = philox(counter, (key[0] & _MASK, (key[0] >> 32) & _MASK))
    words = torch.broadcast_tensors(*words)
    grouped = torch.stack([w.reshape(samples, groups, 16) for w in words], 2)
    return grouped.reshape(samples, groups * _GROUP)[:, :elements]


def reference(key: Tensor, shape: Sequence[int], normal: bool) -> Tensor:
    """Return the numbers of the contract in ``csrc/kernels/noise/scalar.c``, bit for bit."""
    w = _words(key, shape[0], math.prod(shape[1:]))
    if not normal:
        return ((w >> 8).float() * 2.0**-24).view(shape)
    m = (w & 0x7FFFFFFF) | 1
    bits = (m & ~(m >> 24)).to(torch.int32).float().view(torch.int32)  # cut off, not rounded
    at, f = (bits >> 19) - (127 << 4), (bits & 0x7FFFF).float() * 2.0**-19
    value, slope, curve = (t[at.long()] for t in _table(key.device))
    y = value + f * (slope + f * curve)
    return torch.where(w >> 31 > 0, -y, y).view(shape)


def _cpu(key: Tensor, shape: Sequence[int], normal: bool) -> Tensor:
    seed, step, sample, stream = key.tolist()
    out = empty(tuple(shape))
    table = inverse_normal() if normal else None
    rows = view(out).reshape(shape[0], math.prod(shape[1:]))
    kernels().noise(seed, step, sample, stream, 0, table, rows)
    return out


LIBRARY.impl("noise", _cpu, "CPU")
LIBRARY.impl("noise", reference, "CUDA")
torch.library.register_fake(
    "cmibq::noise",
    lambda key, shape, normal: key.new_empty(shape, dtype=torch.float32),
    lib=LIBRARY,
)


def noise_key(
    seed: Whole,
    step: Whole,
    first_sample: Whole = 0,
    stream: Whole = 0,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Return what noise depends on as one tensor, int64 [4], without a wait for a device.

    Args:
        seed: any 64-bit integer.
        step: 0 .. 2**32 - 1; of the training, so that a resumed one draws the same.
        first_sample: global index of the first sample; of the whole step, over all ranks.
        stream: 0 .. 2**32 - 1; apart from other noise of the same step, such as of other layers.
        device: where the noise is wanted; None: where the tensors among the arguments are.

    Example:
        >>> noise_key(7, step=3, first_sample=16)
        tensor([ 7,  3, 16,  0])
    """
    parts = (seed, step, first_sample, stream)
    if device is None:
        device = next((p.device for p in parts if isinstance(p, Tensor)), torch.device("cpu"))
    made = [
        p.to(device, torch.int64).reshape(())
        if isinstance(p, Tensor)
        else torch.full((), p, dtype=torch.int64, device=device)
        for p in parts
    ]
    return torch.stack(made)


def _draw(shape: Sequence[int], key: Tensor, normal: bool) -> Tensor:
    if not shape or math.prod(shape[1:]) > _MOST:
        raise ConfigError(
            f"shape is {list(shape)}; give [samples, ...] with at most 2**34 elements per sample"
        )
    if key.dtype is not torch.int64 or key.shape != (4,):
        raise ConfigError(
            f"key is {key.dtype} {list(key.shape)}; give int64 [4], such as noise_key returns"
        )
    if direct(key):
        return _cpu(key, shape, normal)
    out: Tensor = torch.ops.cmibq.noise(key, shape, normal)
    return out


def normal(shape: Sequence[int], key: Tensor) -> Tensor:
    """Return float32 numbers of the normal distribution, |y| < 6.24, on the device of the key.

    The inverse of the distribution of 31 bits of Philox 4x32-10, by parabolas (error below 2e-6).

    Args:
        shape: [samples, ...]; sample b is that of index ``key[2] + b``, whatever the others are.
        key: `noise_key`.

    Raises:
        ConfigError: no samples in `shape`, or another kind of key.

    Example:
        >>> whole = normal((2, 3), noise_key(0, step=5))
        >>> torch.equal(whole[1:], normal((1, 3), noise_key(0, step=5, first_sample=1)))
        True
    """
    return _draw(shape, key, True)


def uniform(shape: Sequence[int], key: Tensor) -> Tensor:
    """Return float32 multiples of 2^-24 in [0, 1); see `normal`.

    Args:
        shape: [samples, ...].
        key: `noise_key`.

    Raises:
        ConfigError: no samples in `shape`, or another kind of key.

    Example:
        >>> uniform((1, 2), noise_key(0, step=0))
        tensor([[0.3990, 0.9722]])
    """
    return _draw(shape, key, False)
