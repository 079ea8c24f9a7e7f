"""torch operators: reference, CPU kernel, fake and autograd of each op, one file per op."""

from __future__ import annotations

from cmibq.ops.fakequant import fakequant

__all__ = ["fakequant"]
