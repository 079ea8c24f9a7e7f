"""The tables of a fusion's speed, from rows made by hand, and those of the page."""

import json

from benchmarks import fusion_page as page

FUSION = [
    {
        "strategy": "gated_attention",
        "keys": 257,
        "half": False,
        "threads": 1,
        "median_ms": {"ours": 100.0, "torch eager": 150.0, "nn.MultiheadAttention": 200.0},
        "ratio": {"ours": 1.0, "torch eager": 1.5, "nn.MultiheadAttention": 2.0},
        "memory_mib": {"forward": {"ours": 10.0, "torch sdpa": 31.0}},
    }
]
COMPOSED = [
    {
        "size": 224,
        "dtype": "bfloat16",
        "threads": 2,
        "median_ms": {"anchor": 100.0, "augmenting": 50.0, "composed": 160.0, "composed W8A8": 105},
        "to_both_towers": {"composed": 1.067, "composed W8A8": 0.7},
        "to_the_anchor": {"composed": 1.6, "composed W8A8": 1.05},
    }
]


def blank(*names: str) -> str:
    return "".join(f"<!-- {n}:begin -->\n<!-- {n}:end -->\n" for n in names)


def test_tables_by_hand():
    text = page.filled(blank("fusion-step", "fusion-memory", "composed"), FUSION, COMPOSED)
    assert "| float32 | 257 | 1 | 100 ms | 150 ms, 1.50 | - | 200 ms, 2.00 |" in text
    assert "| `gated_attention` | forward | 257 | 10.0 MiB | 31.0 MiB | 3.10 |" in text
    last = "| bfloat16 | 224 px | 2 | 100 ms | 50 ms | 160 ms, 1.07 x both | - |"
    assert f"{last} 105 ms, 1.05 x the anchor |" in text


def test_the_page_has_the_figures_of_the_files():
    found = (
        json.loads((page.HERE / f"bench_{n}.json").read_text()) for n in ("fusion", "composed")
    )
    text = page.PAGE.read_text()
    assert page.filled(text, *found) == text
