from __future__ import annotations

from collections.abc import Iterator

import pytest

from cmibq.ops.library import torch_threads


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tiny tensors, in fixtures of the package too: waiting threads cost minutes when busy."""
    with torch_threads(1):
        yield
