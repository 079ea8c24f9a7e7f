"""Calibration and test data: reading items, turning them into tokens, batching them."""

from __future__ import annotations

from cmibq.data import coco, pileval
from cmibq.data.base import (
    CALIBRATIONS,
    Calibration,
    CalibSample,
    Message,
    check_images,
    read_items,
    read_json_items,
)
from cmibq.data.batch import Batch, batches, collate, load_images, plan
from cmibq.data.prompts import Encoded, encode

__all__ = [
    "CALIBRATIONS",
    "Batch",
    "CalibSample",
    "Calibration",
    "Encoded",
    "Message",
    "batches",
    "check_images",
    "coco",
    "collate",
    "encode",
    "load_images",
    "pileval",
    "plan",
    "read_items",
    "read_json_items",
]
