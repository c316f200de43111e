"""Describe the machine of a run, in a process of its own that may take or hold the device.

python -m benchmarks._gpu.environment --device cuda --out FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks._gpu.records import write_record
from benchmarks._measure.command import REFUSED
from benchmarks._measure.environment import describe_device, describe_environment


def main(arguments: list[str] | None = None) -> int:
    """Write the description; `REFUSED` without a CUDA device."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks._gpu.environment")
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--commit")
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        return REFUSED
    described = {**describe_environment(options.commit), **describe_device(options.device)}
    write_record(options.out, described)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
