"""What the benchmarks measure: problems, and the implementations that are compared on them."""
