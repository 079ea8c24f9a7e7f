"""What a machine runs out of: memory, threads, and bytes that 32 bits can count."""

from __future__ import annotations

import subprocess
import sys


def test_a_machine_without_memory() -> None:
    code = (
        "import resource, numpy as np\n"
        "from cmibq import arrays, memory\n"
        "x = np.ones((4096, 4096), np.float32); s = np.ones(4096, np.float32)\n"
        "arrays.gemm(x[:4], x), memory.clear()\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "for left in range(0, 5 * 2**26, 2**26):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + left, -1))\n"
        "    first = lambda: arrays.fakequant(x, s, -s, s)\n"
        "    for call in (first, lambda: arrays.gemm(x[:4], x)):\n"
        "        kept = []\n"
        "        try:\n"
        "            for _ in range(9): kept.append(call())\n"
        "        except MemoryError:\n"
        "            assert len(kept) < 9\n"
        "        assert call is not first or len(kept) <= left >> 26, (len(kept), left)\n"
        "print('done')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
