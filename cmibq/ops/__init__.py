"""torch operators: reference, CPU kernel, fake and autograd of each op, one file per op."""

from __future__ import annotations

from cmibq.ops.alloc import project_bits, round_bits
from cmibq.ops.attention import attention
from cmibq.ops.bottleneck import bottleneck
from cmibq.ops.channel_bits import channel_bits
from cmibq.ops.codes import codes, codes_token, decode, fakequant_token
from cmibq.ops.fakequant import fakequant
from cmibq.ops.gemm import gemm
from cmibq.ops.gemm_s8 import gemm_s8
from cmibq.ops.grids import fakequant_log2, fakequant_torch_compat, power_of_two
from cmibq.ops.linear import linear, training_precision
from cmibq.ops.noise import noise_key, normal, uniform
from cmibq.ops.pack import pack, unpack
from cmibq.ops.qgemm import qgemm, qgemm_s8
from cmibq.ops.qlinear import qlinear
from cmibq.ops.qparams import qparams, qparams_mse
from cmibq.ops.reduce import absmax, abssum, minmax
from cmibq.ops.rmsnorm import rmsnorm
from cmibq.ops.scaleerror import token_error, weight_error
from cmibq.ops.scaleloss import scaleloss
from cmibq.ops.sqdiff import mean_square_error
from cmibq.ops.tiles import Tiling, repack, unrepack

__all__ = [
    "Tiling",
    "absmax",
    "abssum",
    "attention",
    "bottleneck",
    "channel_bits",
    "codes",
    "codes_token",
    "decode",
    "fakequant",
    "fakequant_log2",
    "fakequant_token",
    "fakequant_torch_compat",
    "gemm",
    "gemm_s8",
    "linear",
    "mean_square_error",
    "minmax",
    "noise_key",
    "normal",
    "pack",
    "power_of_two",
    "project_bits",
    "qgemm",
    "qgemm_s8",
    "qlinear",
    "qparams",
    "qparams_mse",
    "repack",
    "rmsnorm",
    "round_bits",
    "scaleloss",
    "token_error",
    "training_precision",
    "uniform",
    "unpack",
    "unrepack",
    "weight_error",
]
