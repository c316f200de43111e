"""How the benchmarks measure: timers, memory, counts, CUDA graphs, records and tables."""
