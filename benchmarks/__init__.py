"""One file per published figure; `python -m benchmarks` runs them and writes docs/figures.md and results.json."""
