"""Check what this project wrote with the published MBQ itself, in the environment host-mbq.

    python tests/golden/check_vlm.py --mbq DIR --llava DIR FOLDER

For every model, runs a few searches anew and compares them with the golden numbers, bit for bit but
for the last digits of sums; then has MBQ load ``FOLDER/<family>.pt`` (scales of the run
w3/mae/reweight, written by `cmibq.io.save_scales`) and compares its logits with those after its own
file. Exits with an error that says what differs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cases_vlm
import numpy as np
import torch
import upstream

HERE = Path(__file__).resolve().parent
AGAIN = ("w3/mae/reweight", "w4a8/mse/reweight/distort")


def stored(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a golden file."""
    with np.load(HERE / f"{name}.npz") as archive:
        return dict(archive)


def check(family: str, folder: Path) -> None:
    """Run what is compared for one model."""
    arrays, want = stored(f"vlm_{family}"), stored(f"vlm_{family}_search")
    for config in [c for c in cases_vlm.RUNS if c[0] in AGAIN]:
        with tempfile.TemporaryDirectory() as place:
            made = cases_vlm.run(family, arrays, config, Path(place) / "scales.pt")
        for key, value in made.items():
            np.testing.assert_allclose(value, want[key], rtol=1e-4, atol=1e-4, err_msg=key)
    options = {"q_group_size": cases_vlm.GROUP, "w_bit": 3, "wa_quant": False, "a_bit": 16}
    wrapper = cases_vlm.loaded(family, arrays, folder / f"{family}.pt", options)
    got = cases_vlm.logits(wrapper, arrays)
    np.testing.assert_allclose(got, want["w3/mae/reweight/logits"], rtol=1e-3, atol=1e-3)


def main() -> None:
    """Check both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbq", type=Path, required=True, help="work tree of thu-nics/MBQ")
    parser.add_argument("--llava", type=Path, required=True, help="work tree of haotian-liu/LLaVA")
    parser.add_argument("folder", type=Path, help="scale files <family>.pt to load")
    args = parser.parse_args()
    torch.set_num_threads(1)
    upstream.load_models(args.mbq, args.llava)
    with upstream.as_on_gpu():
        for family in ("qwen2_vl", "llava"):
            check(family, args.folder)


if __name__ == "__main__":
    main()
