from typing import final

from numpy import float32, float64, int8, int32, int64, uint8, uint16, uint32
from numpy.typing import NDArray

_F32 = NDArray[float32]
_F64 = NDArray[float64]
_U8 = NDArray[uint8]
_S8 = NDArray[int8]
_S32 = NDArray[int32]
_S64 = NDArray[int64]
_U16 = NDArray[uint16]

ISAS: tuple[str, ...]
KERNELS: tuple[tuple[str, str], ...]

def forked() -> bool: ...

@final
class Kernels:
    def __new__(cls, isa: str | None = None, threads: int = 1) -> Kernels: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def fakequant_row(self, x: _F32, scale: _F32, lo: _F32, hi: _F32, out: _F32, /) -> None: ...
    def fakequant_col(self, x: _F32, scale: _F32, lo: _F32, hi: _F32, out: _F32, /) -> None: ...
    def fakequant_bwd_row(
        self,
        x: _F32,
        g: _F32,
        scale: _F32,
        lo: _F32,
        hi: _F32,
        out: _F32,
        gscale: _F64,
        work: _F64,
        /,
    ) -> None: ...
    def fakequant_bwd_row_workspace(self, rows: int, cols: int, /) -> int: ...
    def fakequant_bwd_col(
        self,
        x: _F32,
        g: _F32,
        scale: _F32,
        lo: _F32,
        hi: _F32,
        out: _F32,
        gscale: _F64,
        work: _F64,
        /,
    ) -> None: ...
    def fakequant_bwd_blocks(self, rows: int, cols: int, /) -> int: ...
    def fakequant_log2_row(
        self, x: _F32, scale: _F32, lo: _F32, hi: _F32, out: _F32, /
    ) -> None: ...
    def fakequant_log2_col(
        self, x: _F32, scale: _F32, lo: _F32, hi: _F32, out: _F32, /
    ) -> None: ...
    def fakequant_compat_row(
        self, x: _F32, scale: _F32, lo: _F32, hi: _F32, out: _F32, /
    ) -> None: ...
    def fakequant_compat_col(
        self, x: _F32, scale: _F32, lo: _F32, hi: _F32, out: _F32, /
    ) -> None: ...
    def minmax_row(self, x: _F32, mn: _F32, mx: _F32, /) -> None: ...
    def minmax_col(self, x: _F32, mn: _F32, mx: _F32, /) -> None: ...
    def absmax_row(self, x: _F32, out: _F32, /) -> None: ...
    def absmax_col(self, x: _F32, out: _F32, /) -> None: ...
    def abssum_row(self, x: _F32, out: _F64, /) -> None: ...
    def abssum_col(self, x: _F32, weight: _F64 | None, out: _F64, /) -> None: ...
    def qparams_row(self, x: _F32, bits: int, mode: int, scale: _F32, zero: _U8, /) -> None: ...
    def qparams_mse_row(
        self,
        x: _F32,
        bits: int,
        mode: int,
        n_grid: int,
        max_shrink: float,
        scale: _F32,
        zero: _U8,
        err: _F64,
        /,
    ) -> None: ...
    def codes_row(self, x: _F32, scale: _F32, zero: _U8, bits: int, out: _U8, /) -> None: ...
    def decode_row(self, codes: _U8, scale: _F32, zero: _U8, out: _F32, /) -> None: ...
    def codes_token_s8(self, x: _F32, out: _S8, scale: _F32, /) -> None: ...
    def fakequant_token(self, x: _F32, bits: int, out: _F32, /) -> None: ...
    def pack_row(self, codes: _U8, bits: int, out: _U8, /) -> None: ...
    def unpack_row(self, packed: _U8, bits: int, out: _U8, /) -> None: ...
    def scaleloss(
        self,
        x: _F32,
        w: _F32,
        token: _F64,
        s: _F32,
        bits: int,
        group: int,
        mode: int,
        act_bits: int,
        kind: int,
        bf16: int,
        first: _S64,
        loss: _F64,
        work: _U8,
        /,
    ) -> None: ...
    def scaleloss_workspace(
        self, T: int, N: int, K: int, B: int, act_bits: int, bf16: int, /
    ) -> int: ...
    def scaleerror_weight(
        self,
        w: _F32,
        s: _F32,
        bits: int,
        group: int,
        mode: int,
        out: _F32 | None,
        out16: _U16 | None,
        work: _F32,
        /,
    ) -> None: ...
    def scaleerror_token(
        self, x: _F32, s: _F32, bits: int, out: _F32 | None, out16: _U16 | None, work: _F32, /
    ) -> None: ...
    def scaleerror_workspace(self, rows: int, cols: int, /) -> int: ...
    def qgemm_f32(
        self,
        x: _F32,
        packed: _U8,
        bits: int,
        scale: _U16,
        zero: _U8 | None,
        bias: _F32 | None,
        out: _F32,
        work: _U8,
        /,
    ) -> None: ...
    def qgemm_s8(
        self,
        x: _S8,
        xscale: _F32,
        packed: _U8,
        bits: int,
        scale: _U16,
        zero: _U8 | None,
        bias: _F32 | None,
        out: _F32,
        work: _U8,
        /,
    ) -> None: ...
    def qgemm_workspace(self, M: int, N: int, K: int, G: int, bits: int, /) -> int: ...
    def qgemm_repack(
        self,
        packed: _U8,
        scale: _U16,
        zero: _U8 | None,
        K: int,
        bits: int,
        strip_bits: _U8 | None,
        tiles: _U8,
        /,
    ) -> None: ...
    def qgemm_unrepack(
        self,
        tiles: _U8,
        K: int,
        bits: int,
        strip_bits: _U8 | None,
        packed: _U8,
        scale: _U16,
        zero: _U8 | None,
        /,
    ) -> None: ...
    def qgemm_tiles_bytes(
        self, N: int, K: int, G: int, bits: int, asymmetric: int, strip_bits: _U8 | None, /
    ) -> int: ...
    def gemm(
        self,
        a: _F32,
        b: _F32,
        planes: int,
        scale: float,
        bias: _F32 | None,
        act: int,
        residual: _F32 | None,
        out: _F32,
        work: _U8,
        /,
    ) -> None: ...
    def gemm_workspace(self, batch: int, M: int, N: int, K: int, planes: int, /) -> int: ...
    def gemm_bf16(
        self,
        a: _U16,
        b: _U16,
        scale: float,
        bias: _F32 | None,
        act: int,
        residual: _U16 | None,
        wide_residual: _F32 | None,
        out: _U16 | None,
        wide_out: _F32 | None,
        work: _U8,
        /,
    ) -> None: ...
    def gemm_bf16_workspace(self, batch: int, M: int, N: int, K: int, wide: int, /) -> int: ...
    def gemm_s8(
        self,
        a: _S8,
        b: _S8,
        bias: _S32 | None,
        multiplier: _S32 | None,
        shift: _S32 | None,
        zero: int,
        lo: int,
        hi: int,
        sums: _S32 | None,
        codes: _S8 | None,
        work: _U8,
        /,
    ) -> None: ...
    def gemm_s8_workspace(self, M: int, N: int, K: int, requantise: int, /) -> int: ...
    def qlinear_f32(
        self,
        x: _F32,
        act_bits: int,
        tiles: _U8,
        G: int,
        bits: int,
        strip_bits: _U8 | None,
        asymmetric: int,
        bias: _F32 | None,
        up: _F32 | None,
        residual: _F32 | None,
        act: int,
        out: _F32,
        work: _U8,
        /,
    ) -> None: ...
    def qlinear_bf16(
        self,
        x: _U16,
        act_bits: int,
        tiles: _U8,
        G: int,
        bits: int,
        strip_bits: _U8 | None,
        asymmetric: int,
        bias: _F32 | None,
        up: _U16 | None,
        residual: _U16 | None,
        act: int,
        out: _U16,
        work: _U8,
        /,
    ) -> None: ...
    def qlinear_s8(
        self,
        x: _S8,
        xscale: _F32,
        tiles: _U8,
        G: int,
        bits: int,
        strip_bits: _U8 | None,
        asymmetric: int,
        bias: _F32 | None,
        up: _F32 | None,
        residual: _F32 | None,
        act: int,
        out: _F32,
        work: _U8,
        /,
    ) -> None: ...
    def qlinear_workspace(
        self,
        M: int,
        N: int,
        K: int,
        G: int,
        bits: int,
        strip_bits: _U8 | None,
        act_bits: int,
        bf16: int,
        given_codes: int,
        /,
    ) -> int: ...
    def project_row(
        self, x: _F32, weight: _F32 | None, lo: float, hi: float, target: float, out: _F32, /
    ) -> None: ...
    def project_bwd_row(
        self, g: _F32, b: _F32, weight: _F32 | None, lo: float, hi: float, out: _F32, /
    ) -> None: ...
    def round_bits_row(self, b: _F32, lo: int, hi: int, total: int, out: _U8, /) -> None: ...
    def attention(
        self,
        xq: _F32,
        xk: _F32,
        wp: _F32 | None,
        bp: _F32 | None,
        wq: _F32,
        bq: _F32 | None,
        wk: _F32,
        bk: _F32 | None,
        wv: _F32,
        bv: _F32 | None,
        wo: _F32,
        bo: _F32 | None,
        gamma: _F32 | None,
        beta: _F32 | None,
        mask: _U8 | None,
        heads: int,
        residual: int,
        eps: float,
        planes: int,
        out: _F32,
        kv: _F32 | None,
        q: _F32 | None,
        k: _F32 | None,
        v: _F32 | None,
        ctx: _F32 | None,
        y: _F32 | None,
        lse: _F32,
        stat: _F32,
        entropy: _F32 | None,
        weights: _F32 | None,
        work: _U8,
        /,
    ) -> None: ...
    def attention_bwd(
        self,
        g: _F32,
        xq: _F32,
        xk: _F32,
        wp: _F32 | None,
        bp: _F32 | None,
        wq: _F32,
        bq: _F32 | None,
        wk: _F32,
        bk: _F32 | None,
        wv: _F32,
        bv: _F32 | None,
        wo: _F32,
        bo: _F32 | None,
        gamma: _F32 | None,
        beta: _F32 | None,
        mask: _U8 | None,
        heads: int,
        residual: int,
        eps: float,
        planes: int,
        kv: _F32 | None,
        q: _F32 | None,
        k: _F32 | None,
        v: _F32 | None,
        ctx: _F32 | None,
        y: _F32 | None,
        lse: _F32,
        stat: _F32,
        dxq: _F32 | None,
        dxk: _F32 | None,
        dwp: _F32 | None,
        dbp: _F32 | None,
        dwq: _F32 | None,
        dbq: _F32 | None,
        dwk: _F32 | None,
        dbk: _F32 | None,
        dwv: _F32 | None,
        dbv: _F32 | None,
        dwo: _F32 | None,
        dbo: _F32 | None,
        dgamma: _F32 | None,
        dbeta: _F32 | None,
        work: _U8,
        /,
    ) -> None: ...
    def attention_workspace(
        self,
        B: int,
        Lq: int,
        Lk: int,
        Dq: int,
        Dk: int,
        P: int,
        E: int,
        Do: int,
        heads: int,
        residual: int,
        planes: int,
        saved: int,
        backward: int,
        /,
    ) -> int: ...
    def allocate(
        self,
        distortion: _F32,
        cost: NDArray[int64] | None,
        weight: NDArray[int64] | None,
        table: NDArray[int64] | None,
        budget: int,
        choice: _U8,
        info: _F64,
        spent: NDArray[int64],
        work: _U8,
        /,
    ) -> None: ...
    def allocate_workspace(self, units: int, options: int, /) -> int: ...
    def histogram(
        self, x: _F32, exponent: int, first: int, counts: NDArray[int64], work: _U8, /
    ) -> None: ...
    def histogram_workspace(self, elements: int, bins: int, /) -> int: ...
    def ranks_row(self, x: _F32, ranks: NDArray[int64], out: _F32, work: _U8, /) -> None: ...
    def ranks_workspace(self, rows: int, cols: int, /) -> int: ...
    def magnitudes_row(self, x: _F32, counts: NDArray[uint32], top: _F32, work: _U8, /) -> None: ...
    def magnitudes_workspace(self, rows: int, cols: int, /) -> int: ...
    def klclip_row(
        self,
        counts: NDArray[uint32],
        levels: int,
        best: NDArray[uint32],
        least: _F64,
        work: _F64,
        /,
    ) -> None: ...
    def klclip_workspace(self, rows: int, cols: int, /) -> int: ...
    def attend_f32(
        self,
        qkv: _F32,
        cos: _F32,
        sin: _F32,
        keys: _F32,
        values: _F32,
        at: int,
        scale: float,
        out: _F32,
        work: _U8,
        /,
    ) -> None: ...
    def attend_bf16(
        self,
        qkv: _F32,
        cos: _F32,
        sin: _F32,
        keys: NDArray[uint16],
        values: NDArray[uint16],
        at: int,
        scale: float,
        out: _F32,
        work: _U8,
        /,
    ) -> None: ...
    def attend_workspace(self, heads: int, key_heads: int, width: int, room: int, /) -> int: ...
    def rmsnorm_f32(self, x: _F32, weight: _F32, eps: float, out: _F32, /) -> None: ...
    def rmsnorm_bf16(
        self, x: NDArray[uint16], weight: NDArray[uint16], eps: float, out: NDArray[uint16], /
    ) -> None: ...
    def noise(
        self,
        seed: int,
        step: int,
        sample: int,
        stream: int,
        first: int,
        table: _F32 | None,
        out: _F32,
        /,
    ) -> None: ...
    def channel_bits(
        self,
        x: _F32,
        low: _F32,
        high: _F32,
        bits: _F32,
        tables: _F32 | None,
        samples: int,
        seed: int,
        step: int,
        sample: int,
        stream: int,
        y: _F32,
        rate: _F32,
        /,
    ) -> None: ...
    def channel_bits_bwd(
        self,
        x: _F32,
        low: _F32,
        high: _F32,
        bits: _F32,
        tables: _F32 | None,
        samples: int,
        seed: int,
        step: int,
        sample: int,
        stream: int,
        gy: _F32,
        grate: _F32,
        gx: _F32,
        gbits: _F32,
        glow: _F64,
        ghigh: _F64,
        gtables: _F32 | None,
        work: _F64,
        /,
    ) -> None: ...
    def channel_workspace(self, cols: int, /) -> int: ...
    def rangecode_encode(
        self,
        cdf: _U16,
        first: NDArray[uint32],
        context: _S32,
        group: _S32,
        symbols: _U8,
        out: _U8,
        sizes: _S64,
        work: NDArray[uint32],
        /,
    ) -> None: ...
    def rangecode_decode(
        self,
        cdf: _U16,
        first: NDArray[uint32],
        context: _S32,
        group: _S32,
        payload: _U8,
        sizes: _S64,
        symbols: _U8,
        whole: _U8,
        work: NDArray[uint32],
        /,
    ) -> None: ...
    def rangecode_workspace(self, groups: int, cols: int, /) -> int: ...
    def rangecode_bytes(self, rows: int, cols: int, lanes: int, /) -> int: ...
    def bottleneck(
        self,
        mu: _F32,
        logvar: _F32,
        low: _F32,
        high: _F32,
        bits: _F32,
        samples: int,
        seed: int,
        step: int,
        sample: int,
        stream: int,
        table: _F32,
        y: _F32,
        kl: _F32,
        /,
    ) -> None: ...
    def bottleneck_bwd(
        self,
        mu: _F32,
        logvar: _F32,
        low: _F32,
        high: _F32,
        bits: _F32,
        samples: int,
        seed: int,
        step: int,
        sample: int,
        stream: int,
        table: _F32,
        gy: _F32,
        gkl: _F32,
        gmu: _F32,
        glogvar: _F32,
        gbits: _F32,
        glow: _F64,
        ghigh: _F64,
        /,
    ) -> None: ...
    def sqdiff_row(self, a: _F32, b: _F32, sum: _F64, work: _F64, /) -> None: ...
    def sqdiff_bwd_row(self, a: _F32, b: _F32, factor: _F64, out: _F32, /) -> None: ...
    def sqdiff_workspace(self, rows: int, cols: int, /) -> int: ...
