"""Helpers of `python -m benchmarks.gpu`."""
