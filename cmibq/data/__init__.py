"""Calibration and test data: reading items, turning them into tokens, batching them."""

from __future__ import annotations

from cmibq.data import coco, pileval
from cmibq.data.base import (
    CALIBRATIONS,
    Calibration,
    CalibSample,
    Message,
    check_images,
)
from cmibq.data.batch import Batch, batches, collate, plan
from cmibq.data.images import Picture, Pixels, join_pixels, load_images
from cmibq.data.join import few_shot, interleave
from cmibq.data.lengths import context_length, encode_calibration, fitting
from cmibq.data.prompts import Encoded, encode
from cmibq.data.records import read_records
from cmibq.data.shapes import read_items

__all__ = [
    "CALIBRATIONS",
    "Batch",
    "CalibSample",
    "Calibration",
    "Encoded",
    "Message",
    "Picture",
    "Pixels",
    "batches",
    "check_images",
    "coco",
    "collate",
    "context_length",
    "encode",
    "encode_calibration",
    "few_shot",
    "fitting",
    "interleave",
    "join_pixels",
    "load_images",
    "pileval",
    "plan",
    "read_items",
    "read_records",
]
