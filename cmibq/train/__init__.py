"""Training: losses, schedules of bits, and the two stages of CM-IBQ."""

from __future__ import annotations

from cmibq.train.alignment import AlignmentHead, alignment_loss
from cmibq.train.checkpoints import Checkpoints
from cmibq.train.groups import parameter_groups, split_scales_
from cmibq.train.journal import Journal, read_journal
from cmibq.train.loop import Loop
from cmibq.train.losses import Terms, bitrate_loss, composite, gaussian_rate, ib_loss
from cmibq.train.schedule import BitSchedule
from cmibq.train.two_stage import stage_one_pretrain, stage_two_finetune

__all__ = [
    "AlignmentHead",
    "BitSchedule",
    "Checkpoints",
    "Journal",
    "Loop",
    "Terms",
    "alignment_loss",
    "bitrate_loss",
    "composite",
    "gaussian_rate",
    "ib_loss",
    "parameter_groups",
    "read_journal",
    "split_scales_",
    "stage_one_pretrain",
    "stage_two_finetune",
]
