"""Write the composed model that ships: the row "calm", and a projector for the reader.

    python benchmarks/calm/ship.py [FILE]

The fusions were trained with light heads; here the projector learns to tell the reader what the
composed tower sees, on the answers to all kinds of questions that training shows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import Tensor, nn

from cmibq.demo.album import Album

__all__ = ["Seen", "main"]


class Seen(nn.Module):
    """Features that a frozen tower gave, and the projector that is trained.

    Args:
        features: [N, 4, D], of all pictures.
        projector: behind them.
    """

    def __init__(self, features: Tensor, projector: nn.Sequential) -> None:
        super().__init__()
        self.features, self.projector = features, projector

    def forward(self, _: Album, rows: Tensor) -> Tensor:
        """Return the reader's tokens of some pictures, [B, 4, D]."""
        found: Tensor = self.projector(self.features[rows])
        return found


def _aligned(steps: int) -> tuple[nn.ModuleList, nn.Sequential, str]:
    """Return fusions, the trained projector and the configuration as JSON."""
    from benchmarks.calm.cells import album_of, parts, trained
    from benchmarks.calm.eyes import Composed
    from benchmarks.calm.tasks import RATES, Cell
    from cmibq.demo.album import fit_eyes_

    cell = Cell("calm", RATES.get("calm", RATES[""]))
    eyes, _ = trained(cell)
    assert isinstance(eyes, Composed)
    album = album_of(cell, "train")
    with torch.no_grad():
        rows = torch.arange(len(album)).split(200)
        features = torch.cat([eyes.fused(album, some) for some in rows])
    projector = parts().anchor_projector.requires_grad_(True)
    made = Seen(features, projector)
    curve = fit_eyes_(made, parts().reader, album, seed=0, steps=steps, rate=6e-3, title="ship")
    print(f"loss {sum(curve[-50:]) / len(curve[-50:]):.3f} after {steps} steps")
    return eyes.fusions, projector, json.dumps(eyes.fed[0].calm_config.to_dict())


def main() -> int:
    """Train, where the cell is not there, and write."""
    from safetensors.torch import save

    from cmibq.demo.composed import COMPOSED
    from cmibq.fileio import write_bytes

    torch.set_num_threads(1)  # so small that a second thread costs more than it brings
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    fusions, projector, config = _aligned(steps)
    tensors = {f"fusions.{k}": v.contiguous() for k, v in fusions.state_dict().items()}
    tensors |= {f"projector.{k}": v.contiguous() for k, v in projector.state_dict().items()}
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else COMPOSED
    write_bytes(path, save(tensors, {"format": "pt", "calm": config}))
    print(f"{path}: {path.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
