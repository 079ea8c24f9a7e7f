"""Train both towers, the reader and the projectors that ship, each alone; ten minutes.

python benchmarks/calm/parts.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

__all__ = ["main"]


def main() -> int:
    """Train and write."""
    import torch

    from cmibq.demo.tile_models import PARTS, train_parts

    torch.set_num_threads(1)  # so small that a second thread costs more than it brings
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PARTS
    for name, curve in train_parts(path).items():
        print(f"{name}: loss {sum(curve[-50:]) / len(curve[-50:]):.3f} after {len(curve)} steps")
    return 0


if __name__ == "__main__":
    from cmibq.demo.training import restart_with_heap_settings

    restart_with_heap_settings()
    raise SystemExit(main())
