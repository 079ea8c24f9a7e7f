"""Allocators: how many bits each unit gets under one budget. A new one is a file and a line."""

from __future__ import annotations

from cmibq.alloc import exact, importance, policies, reinforce, uniform
from cmibq.alloc.base import ALLOCATORS, MENUS, Allocation, Menu, Units
from cmibq.alloc.bottleneck import ALLOCATION_NETWORKS, IMPORTANCE
from cmibq.alloc.exact import allocate_bits
from cmibq.alloc.rows import layer_bits, row_group_bytes
from cmibq.alloc.size import layer_bytes, row_bytes

__all__ = [
    "ALLOCATION_NETWORKS",
    "ALLOCATORS",
    "IMPORTANCE",
    "MENUS",
    "Allocation",
    "Menu",
    "Units",
    "allocate_bits",
    "exact",
    "importance",
    "layer_bits",
    "layer_bytes",
    "policies",
    "reinforce",
    "row_bytes",
    "row_group_bytes",
    "uniform",
]
