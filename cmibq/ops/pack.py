"""Dense bit packing of codes, as torch operators (no gradient)."""

from __future__ import annotations

import torch
from torch import Tensor

from cmibq.ops.library import LIBRARY, call, empty, view
from cmibq.runtime import kernels

__all__ = ["pack", "reference", "reference_unpack", "unpack"]

LIBRARY.define("pack(Tensor codes, int bits) -> Tensor")
LIBRARY.define("unpack(Tensor packed, int bits, SymInt cols) -> Tensor")


def _bytes(cols: int, bits: int) -> int:
    return (cols * bits + 7) // 8


def reference(codes: Tensor, bits: int) -> Tensor:
    """Return each row as a little-endian bit stream, least significant bit first: uint8 [R, B]."""
    rows, cols = codes.shape
    at = torch.arange(8, dtype=torch.uint8, device=codes.device)
    stream = codes.new_zeros(rows, _bytes(cols, bits) * 8)
    stream[:, : cols * bits] = ((codes[:, :, None] >> at[:bits]) & 1).reshape(rows, cols * bits)
    return (stream.reshape(rows, _bytes(cols, bits), 8) << at).sum(2).to(torch.uint8)


def reference_unpack(packed: Tensor, bits: int, cols: int) -> Tensor:
    """Return the codes of `reference`: uint8 [R, cols]."""
    at = torch.arange(8, dtype=torch.uint8, device=packed.device)
    stream = ((packed[:, :, None] >> at) & 1).flatten(1)[:, : cols * bits]
    return (stream.reshape(len(packed), cols, bits) << at[:bits]).sum(2).to(torch.uint8)


def _cpu(codes: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    if out is None:
        out = empty((codes.shape[0], _bytes(codes.shape[-1], bits)), torch.uint8)
    kernels().pack_row(view(codes), bits, view(out))
    return out


def _unpack_cpu(packed: Tensor, bits: int, cols: int, out: Tensor | None = None) -> Tensor:
    out = empty((packed.shape[0], cols), torch.uint8) if out is None else out
    kernels().unpack_row(view(packed), bits, view(out))
    return out


def _fake(codes: Tensor, bits: int) -> Tensor:
    return codes.new_empty(codes.shape[0], _bytes(codes.shape[-1], bits))


def _unpack_fake(packed: Tensor, bits: int, cols: int) -> Tensor:
    return packed.new_empty(packed.shape[0], cols)


LIBRARY.impl("pack", _cpu, "CPU")
LIBRARY.impl("pack", reference, "CUDA")
LIBRARY.impl("unpack", _unpack_cpu, "CPU")
LIBRARY.impl("unpack", reference_unpack, "CUDA")
torch.library.register_fake("cmibq::pack", _fake, lib=LIBRARY)
torch.library.register_fake("cmibq::unpack", _unpack_fake, lib=LIBRARY)


def pack(codes: Tensor, *, bits: int, out: Tensor | None = None) -> Tensor:
    """Pack codes densely, each row padded to a byte with zero bits.

    Args:
        codes: uint8 [R, C], contiguous, all below ``2**bits``.
        bits: 1..8.
        out: uint8 [R, ceil(C * bits / 8)] to write to.

    Returns:
        uint8 [R, ceil(C * bits / 8)]: a little-endian bit stream, least significant bit first.

    Raises:
        ValueError: bits out of range, a code that does not fit.

    Example:
        >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=4)
        tensor([[33,  3]], dtype=torch.uint8)
    """
    made: Tensor = call(_cpu, torch.ops.cmibq.pack, (codes,), bits, out=out)
    return made


def unpack(packed: Tensor, *, bits: int, cols: int, out: Tensor | None = None) -> Tensor:
    """Return the codes that `pack` packed.

    Args:
        packed: uint8 [R, ceil(cols * bits / 8)], contiguous.
        bits: 1..8.
        cols: codes per row.
        out: uint8 [R, cols] to write to.

    Returns:
        uint8 [R, cols].

    Raises:
        ValueError: bits out of range, a row of another size.

    Example:
        >>> unpack(torch.tensor([[33, 3]], dtype=torch.uint8), bits=4, cols=3)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    made: Tensor = call(_unpack_cpu, torch.ops.cmibq.unpack, (packed,), bits, cols, out=out)
    return made
