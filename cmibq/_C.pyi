from typing import final

from numpy import float32, float64
from numpy.typing import NDArray

_F32 = NDArray[float32]
_F64 = NDArray[float64]

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
        self, x: _F32, g: _F32, scale: _F32, lo: _F32, hi: _F32, gx: _F32, gscale: _F64, /
    ) -> None: ...
    def fakequant_bwd_col(
        self,
        x: _F32,
        g: _F32,
        scale: _F32,
        lo: _F32,
        hi: _F32,
        gx: _F32,
        gscale: _F64,
        work: _F64,
        /,
    ) -> None: ...
    def fakequant_bwd_blocks(self, rows: int, cols: int, /) -> int: ...
