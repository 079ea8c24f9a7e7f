"""``cmibq verify DIR --against FLOAT_DIR``: is a quantised model still the same model?"""

from __future__ import annotations

from collections.abc import Sequence

from cmibq.cli.export import with_path
from cmibq.cli.options import read_options
from cmibq.cli.output import complain, say
from cmibq.cli.quantize import BAD_RESULT
from cmibq.recipe.tools import VerifyConfig

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Run the command."""
    options = read_options(
        "verify",
        VerifyConfig,
        with_path(words),
        about="Compare a quantised model with the float model: KL, top tokens, captions.",
    )
    if options.done:
        return 0
    from cmibq.ptq.against import verify

    code = 0
    for config in options.runs:
        found = verify(config)
        say(f"{config.path}: {found.summary()}")
        if found.reload_exact is not None:
            say(f"  its own probe: {'bit for bit' if found.reload_exact else 'other logits'}")
        for caption in found.captions:
            say(f"  {caption['prompt']}")
            say(f"    float:     {caption['float']}")
            say(f"    quantised: {caption['quantised']}")
        if not found.ok:
            complain(f"cmibq: verify: {config.path} is not the model it was made from: "
                     f"{'; '.join(found.reasons)}")  # fmt: skip
            code = BAD_RESULT
    return code
