"""Training: losses, schedules of bits, and the two stages of CM-IBQ."""

from __future__ import annotations

from cmibq.train.losses import Terms, alignment_loss, bitrate_loss, composite, ib_loss
from cmibq.train.schedule import BitSchedule
from cmibq.train.two_stage import stage_one_pretrain, stage_two_finetune

__all__ = [
    "BitSchedule",
    "Terms",
    "alignment_loss",
    "bitrate_loss",
    "composite",
    "ib_loss",
    "stage_one_pretrain",
    "stage_two_finetune",
]
