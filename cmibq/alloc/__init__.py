"""Allocators: how many bits each unit gets under one budget. A new one is a file and a line."""

from __future__ import annotations

from cmibq.alloc import exact, uniform
from cmibq.alloc.base import ALLOCATORS, MENUS, Allocation, Menu, Units
from cmibq.alloc.exact import allocate_bits
from cmibq.alloc.rows import layer_bits, row_group_bytes
from cmibq.alloc.size import layer_bytes, row_bytes

__all__ = [
    "ALLOCATORS",
    "MENUS",
    "Allocation",
    "Menu",
    "Units",
    "allocate_bits",
    "exact",
    "layer_bits",
    "layer_bytes",
    "row_bytes",
    "row_group_bytes",
    "uniform",
]
