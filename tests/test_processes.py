"""Operators from forked and spawned processes, DataLoader workers and many threads: right, no hang.

The parents of processes run as subprocesses with a time limit, so that a hang fails.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cmibq import memory
from cmibq.nn import PackedLinear
from cmibq.ops import attention, fakequant, gemm, scaleloss
from cmibq.quant import PerGroup, QuantSpec
from cmibq.runtime import kernels

LIMIT = 60  # seconds; a child that hangs ends itself after a third


def normal(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def one_fakequant(seed: int) -> Tensor:
    one = torch.ones(512)
    return fakequant(normal(seed, 512, 300), one / 8, -8 * one, 7 * one)


def one_gemm(seed: int) -> Tensor:
    return gemm(normal(seed, 130, 200), normal(seed + 1, 200, 150))


def one_bfloat16(seed: int) -> Tensor:
    a, b = normal(seed, 130, 256).bfloat16(), normal(seed + 1, 256, 160).bfloat16()
    return gemm(a, b).float()


def one_packed(seed: int) -> Tensor:
    linear = torch.nn.Linear(256, 192, bias=False)
    linear.weight.data.copy_(normal(seed, 192, 256))
    packed = PackedLinear.from_linear(linear, QuantSpec(4, PerGroup(32)))
    with torch.no_grad():
        few = packed(normal(seed + 1, 3, 256))
        # Not contiguous: torch copies it inside the op, with its own threads.
        return torch.cat([few, packed(normal(seed + 2, 256, 400).T)])


def one_attention(seed: int) -> Tensor:
    x = normal(seed, 1, 70, 128)
    w = [normal(seed + i, 128, 128) / 12 for i in range(1, 5)]
    return attention(x, x, *w, heads=2).out


def one_scaleloss(seed: int) -> Tensor:
    s = normal(seed, 3, 128).abs() + 0.5
    x, w = normal(seed + 1, 90, 128), normal(seed + 2, 64, 128)
    return scaleloss(x, w, s, bits=4, mode=1, group_size=32)


OPS: list[Callable[[int], Tensor]] = [
    one_fakequant, one_gemm, one_bfloat16, one_packed, one_attention, one_scaleloss,
]  # fmt: skip


def digest(kind: str, seed: int = 0) -> str:
    """Return a hash of results: of `fakequant` ("ours") or of all ops ("all")."""
    made = [op(seed) for op in (OPS if kind == "all" else OPS[:1])]
    return hashlib.sha256(b"".join(m.numpy().tobytes() for m in made)).hexdigest()


def child(kind: str) -> None:
    signal.alarm(LIMIT // 3)
    os.write(1, f"{kind} {digest(kind)}\n".encode())


def forked(kind: str) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            assert kernels(2).threads == 1
            child(kind)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def started(method: str, kind: str) -> int | None:
    process = multiprocessing.get_context(method).Process(target=child, args=(kind,))
    process.start()
    process.join()
    return process.exitcode


class Items(torch.utils.data.Dataset[str]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> str:
        return digest("all", i)


def loaded() -> None:
    want = [digest("all", i) for i in range(4)]
    got = list(torch.utils.data.DataLoader(Items(), batch_size=None, num_workers=2, timeout=20))
    assert got == want


def kinds(method: str) -> list[str]:
    """Return what to try; spawned children import torch anew, so one of them is enough."""
    return ["all"] if "spawn" in method or "server" in method else ["ours", "all"]


def parent(before: str, methods: list[str]) -> None:
    """What the subprocess runs: use threads as `before` says, then start children."""
    torch.set_num_threads(2)
    if before == "torch":
        torch.ones(1 << 20).add_(1)
    elif before == "ours":
        digest("ours")
    for method in methods:
        if method == "loader":
            loaded()
            continue
        for kind in kinds(method):
            code = forked(kind) if method == "os.fork" else started(method, kind)
            assert code == 0, f"{method} {kind} after {before}: exit {code}"


@pytest.mark.parametrize(
    ("before", "methods"),
    [
        ("none", ["os.fork", "fork"]),
        ("ours", ["os.fork", "fork", "loader"]),
        ("torch", ["os.fork", "fork", "spawn", "forkserver"]),
    ],
)
def test_children_compute_what_the_parent_would(before: str, methods: list[str]) -> None:
    root = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, __file__, before, *methods], capture_output=True, text=True,
        timeout=LIMIT, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    tried = [kind for m in methods if m != "loader" for kind in kinds(m)]
    want = sorted(f"{kind} {digest(kind)}" for kind in tried)
    assert sorted(run.stdout.splitlines()) == want


def test_threads_at_once_get_the_serial_bits() -> None:
    jobs = [(op, 10 * i) for i, op in enumerate(OPS + OPS[2:4])]
    want = [op(seed) for op, seed in jobs]
    wrong: list[str] = []
    gate = threading.Barrier(len(jobs))

    def work(i: int) -> None:
        gate.wait(LIMIT)
        for turn in range(len(jobs)):  # each thread passes through all ops: tiles set up anew
            op, seed = jobs[(i + turn) % len(jobs)]
            if not torch.equal(op(seed), want[(i + turn) % len(jobs)]):
                wrong.append(f"{op.__name__}({seed})")

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(len(jobs))]
    for t in threads:
        t.start()
    for t in threads:
        t.join(LIMIT)
    assert not any(t.is_alive() for t in threads)
    assert wrong == []


def test_a_child_s_arrays_are_its_own() -> None:
    memory.clear()
    size = 2 * memory.LARGE
    kept, waits = memory.empty(size, np.uint8), memory.empty(size, np.uint8)
    kept[:] = 1
    del waits
    pid = os.fork()
    if pid == 0:
        signal.alarm(LIMIT // 3)
        made = [memory.empty(size, np.uint8) for _ in range(3)]
        for value, array in enumerate([*made, kept], 2):
            array[:] = value
        own = all((a == v).all() for v, a in enumerate([*made, kept], 2))
        del kept, array  # a mapping of the parent's: the child may use its copy again
        again = memory.empty(size, np.uint8)
        again[:] = 9
        os._exit(0 if own and all((a == v).all() for v, a in enumerate(made, 2)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (kept == 1).all()
    assert memory.held() >= size
    memory.clear()


if __name__ == "__main__":
    parent(sys.argv[1], sys.argv[2:])
