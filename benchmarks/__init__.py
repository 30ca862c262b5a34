"""One file a claim; results under `benchmarks/results/`."""
