"""Benchmarks of pixcontrast. Every module here is a command; their parts are in the folders."""

import time

STARTED = time.perf_counter()
"""When the process began: importing PyTorch counts towards a budget."""
