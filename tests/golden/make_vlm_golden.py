"""Make the golden numbers of whole models with the published MBQ, in the environment host-mbq.

    python tests/golden/make_vlm_golden.py --mbq DIR --llava DIR --out tests/golden

``DIR`` are work trees of thu-nics/MBQ and haotian-liu/LLaVA, anywhere outside this repository.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
from pathlib import Path

import cases_vlm
import numpy as np
import torch
import transformers
import upstream

LLAVA_COMMIT = "c121f0432da27facab705978f83c4ada465e46fd"
SEEDS = {"qwen2_vl": 11, "llava": 12}
LOG = logging.getLogger("golden")


def main() -> None:
    """Make the files of both models."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbq", type=Path, required=True, help="work tree of thu-nics/MBQ")
    parser.add_argument("--llava", type=Path, required=True, help="work tree of haotian-liu/LLaVA")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    upstream.load_models(args.mbq, args.llava)
    facts = {"llava_commit": LLAVA_COMMIT, "python": platform.python_version()}
    facts |= {"torch": torch.__version__, "transformers": transformers.__version__}
    with upstream.as_on_gpu():
        for family, seed in SEEDS.items():
            arrays = cases_vlm.make_model(family, seed)
            found = cases_vlm.searches(family, arrays, args.out / f"mbq_scales_{family}.pt")
            for name, part in ((f"vlm_{family}", arrays), (f"vlm_{family}_search", found)):
                path = args.out / f"{name}.npz"
                np.savez_compressed(path, **part)  # type: ignore[arg-type]
                LOG.info("%-24s %3d arrays %7d bytes", path.name, len(part), path.stat().st_size)
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    (args.out / "provenance_vlm.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
