"""Finished runs, stored as one line of JSON each; a stored run is not run again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._training.recipe import Recipe


class Key(NamedTuple):
    """Everything that determines a run.

    `data` is `"camvid"` or `"digits"`. `split` names the images it is scored on: `"tuning"` for
    held-out training images, or `"val"`.
    """

    data: str
    split: str
    recipe: Recipe
    seed: int


Run = dict[str, Any]
"""The results of a run by name, as `experiment.run_experiment` lists them."""
Runs = Mapping[Key, Run]


def append_run(path: Path, key: Key, run: Run) -> None:
    """Append a run to the file in one write, so that several processes can share the file."""
    record = {**key._asdict(), "recipe": asdict(key.recipe), **run}
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(without_nan(record), allow_nan=False) + "\n"
    with path.open("ab+", buffering=0) as file:
        # An incomplete last line lacks its end.
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        end = b"\n" if file.read(1) not in (b"", b"\n") else b""
        file.write(end + line.encode())
        os.fsync(file.fileno())


def load_runs(path: Path) -> dict[Key, Run]:
    """Load the runs of a file, the first of each key, with NaN for null. Skip incomplete lines."""
    runs: dict[Key, Run] = {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    for line in lines:
        try:
            run: Run = json.loads(line if line.endswith("\n") else "")
        except json.JSONDecodeError:  # a line that a killed process left incomplete
            continue
        recipe: Any = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in run.pop("recipe").items()
        }
        key = Key(run.pop("data"), run.pop("split"), Recipe(**recipe), run.pop("seed"))
        run |= {name: _with_nan(run[name]) for name in ("measured", "ratios")}
        runs.setdefault(key, run)
    return runs


def without_nan(value: Any) -> Any:
    """Replace NaN and infinities by None: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return [without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return math.nan if value is None else value
