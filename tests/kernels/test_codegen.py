"""The hot loops of the matrix kernels keep their sums in registers, as objdump shows."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest

from cmibq.runtime import native

KERNELS = ("gemm_f32_tile_avx2", "gemm_f32_tile_avx512", "gemm_bf16_tile_avx512bf16")
FMA = re.compile(r"\bvfmadd\w*ps\b|\bvdpbf16ps\b")
LINE = re.compile(r"^\s*([0-9a-f]+):\s+(\S.*)$")
JUMP = re.compile(r"^j\w+\s+([0-9a-f]+)")
SPILL = re.compile(r"\b[yz]mm\d+.*\(%r[sb]p\)|\(%r[sb]p\).*\b[yz]mm\d+")


def loops(code: dict[int, str]) -> list[list[str]]:
    """Return the innermost loops: from the target of a backward jump to the jump."""
    spans = []
    for at, text in code.items():
        jump = JUMP.match(text)
        if jump and (start := int(jump[1], 16)) in code and start <= at:
            spans.append((start, at))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[text for at, text in code.items() if a <= at <= b] for a, b in inner]


@pytest.fixture(scope="module")
def listing() -> str:
    tool = shutil.which("objdump")
    if tool is None or platform.machine() != "x86_64":
        pytest.skip("objdump for x86-64 is not installed")
    names = subprocess.run([tool, "-t", native().__file__], capture_output=True, text=True).stdout
    if "cq_gemm_f32_tile_avx512" not in names:
        pytest.skip("the extension has no symbols")
    if re.search("__[at]san_|__ubsan_|__gcov_|gcov_", names):
        pytest.skip("the extension is instrumented")
    command = [tool, "-d", "--no-show-raw-insn", native().__file__]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("kernel", KERNELS)
def test_sums_stay_in_registers(listing: str, kernel: str) -> None:
    # Inlined helpers are part of the kernel; others follow it as <name.part.0>, <eight> and so on.
    names = {f"cq_{kernel}"} | ({"eight"} if "bf16" in kernel else set())
    hot = 0
    for block in re.split(r"\n\n", listing):
        head = re.search(r"<([\w.]+)>:\n", block)
        if head is None or head[1].split(".")[0] not in names:
            continue
        lines = [m for line in block[head.end() :].splitlines() if (m := LINE.match(line))]
        for loop in loops({int(m[1], 16): m[2] for m in lines}):
            if sum(bool(FMA.search(text)) for text in loop) >= 8:
                hot += 1
                assert not [text for text in loop if SPILL.search(text)], kernel
    assert hot, f"no hot loop found in {kernel}"
