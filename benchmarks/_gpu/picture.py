"""Draw the record of the hot path beside it.

python -m benchmarks._gpu.picture FOLDER/hot_path_gpu.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(record: str) -> int:
    """Draw a picture with the record's name; 1 where there is nothing to draw it with."""
    path = Path(record)
    try:
        from benchmarks.gpu_curves import save_gpu_curves
    except ImportError as error:  # A machine with a GPU may have no matplotlib.
        print(error)
        return 1
    save_gpu_curves(path.with_suffix(".png"), json.loads(path.read_text())["rows"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
