"""One file per axis, each with its list CASES; `benchmarks/cases.py` collects them."""
