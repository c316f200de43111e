"""Finished runs, stored as one line of JSON each; a stored run is not run again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._training.measures import Measured, Similarity
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


@dataclass(frozen=True)
class Run:
    """One training run and its results. Ratios and statistics are empty without contrast.

    Attributes:
        key: identifies the run.
        train_fingerprint, heldout_fingerprint: of the images and labels it used.
        seconds: time of the training alone.
        measured: results on the held-out images.
        ratio_steps, ratios: the gradient ratios at the trunk, and at which steps.
        stats: `loss.stats` at those steps.
        environment: machine, versions and date.
    """

    key: Key
    train_fingerprint: str
    heldout_fingerprint: str
    seconds: float
    measured: Measured
    ratio_steps: list[int]
    ratios: list[float]
    stats: list[dict[str, float]]
    environment: dict[str, object]


Runs = Mapping[Key, Run]


def key_of(data: str, split: str, recipe: Recipe, seed: int) -> Key:
    """Make the key of a run; the number of seeds of the recipe does not belong to it."""
    return Key(data, split, replace(recipe, seeds=1), seed)


def append_run(path: Path, run: Run) -> None:
    """Append a run to the file in one write, so that several processes can share the file."""
    record = {**run.key._asdict(), **vars(run), "recipe": asdict(run.key.recipe)}
    record |= {"measured": asdict(run.measured)}
    del record["key"]
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(without_nan(record), allow_nan=False) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(_missing_end(path) + line.encode())
        os.fsync(file.fileno())


def load_runs(path: Path) -> dict[Key, Run]:
    """Load the runs of a file, the first of each key. Incomplete lines are skipped."""
    runs: dict[Key, Run] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            run = _parse(line) if line.endswith("\n") else None
            if run is not None:
                runs.setdefault(run.key, run)
    return runs


def without_nan(value: object) -> object:
    """Replace NaN and infinities by None: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value


def _missing_end(path: Path) -> bytes:
    """Return the newline that an incomplete last line lacks."""
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return b"" if file.read(1) == b"\n" else b"\n"


def _parse(line: str) -> Run | None:
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:  # a line that a killed process left incomplete
        return None
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.pop("recipe").items()
    }
    key = Key(record.pop("data"), record.pop("split"), Recipe(**fields), record.pop("seed"))
    found = record.pop("measured")
    measured = Measured(
        mean_iou=_number(found["mean_iou"]),
        class_iou=[_number(value) for value in found["class_iou"]],
        trunk=Similarity(**{name: _number(value) for name, value in found["trunk"].items()}),
        projection=Similarity(
            **{name: _number(value) for name, value in found["projection"].items()}
        ),
    )
    ratios = [_number(value) for value in record.pop("ratios")]
    return Run(key=key, measured=measured, ratios=ratios, **record)


def _number(value: float | None) -> float:
    return math.nan if value is None else value
