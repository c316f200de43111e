"""Runs that are done, a line of JSON each: what is there is not run again."""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks._tables.pairs import without_nan
from benchmarks._training.measures import Measured, Similarity
from benchmarks._training.recipe import Recipe


class Key(NamedTuple):
    """What makes a run the run it is: everything else follows from it.

    `data` is `"camvid"` or `"digits"`; `split` says what it is scored on, `"tuning"` (held-out
    training images) or `"val"`.
    """

    data: str
    split: str
    recipe: Recipe
    seed: int


@dataclass(frozen=True)
class Run:
    """One training, and what came of it. Ratios and statistics are empty without contrast.

    Attributes:
        key: which run it is.
        train_fingerprint, heldout_fingerprint: of the images and labels that it saw.
        seconds: of the training alone.
        measured: on the held-out images.
        ratio_steps, ratios: the two gradients at the trunk, at some steps.
        stats: what the loss said of itself at those steps.
        environment: where and when.
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


def key_of(data: str, split: str, recipe: Recipe, seed: int) -> Key:
    """The key of a run of a recipe; how many seeds the recipe is run with is none of it."""
    return Key(data, split, replace(recipe, seeds=1), seed)


def append_run(path: Path, run: Run) -> None:
    """Add a run to the file, in one write, so that a second process may add its own."""
    key = run.key
    fields = {name: value for name, value in vars(run).items() if name != "key"}
    record = {
        "data": key.data,
        "split": key.split,
        "seed": key.seed,
        "recipe": asdict(key.recipe),
        **fields,
        "measured": asdict(run.measured),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(without_nan(record), allow_nan=False) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(_missing_end(path) + line.encode())
        os.fsync(file.fileno())


def load_runs(path: Path) -> dict[Key, Run]:
    """Every run of a file; a last line that was cut off, as by a kill, is no run."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = [_parsed(line) for line in lines if line.endswith("\n")]
    return by_key(_run_of(record) for record in records if record is not None)


def by_key(runs: Iterable[Run]) -> dict[Key, Run]:
    """Runs under their keys, the first of each."""
    found: dict[Key, Run] = {}
    for run in runs:
        found.setdefault(run.key, run)
    return found


def _missing_end(path: Path) -> bytes:
    """What ends a line that was cut off, so that the next one stands alone."""
    if path.stat().st_size == 0:
        return b""
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return b"" if file.read(1) == b"\n" else b"\n"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:  # cut off, and ended later by the line after it
        return None
    return record


def _run_of(record: dict[str, Any]) -> Run:
    recipe: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record["recipe"].items()
    }
    measured = record["measured"]
    return Run(
        key=Key(record["data"], record["split"], Recipe(**recipe), record["seed"]),
        train_fingerprint=record["train_fingerprint"],
        heldout_fingerprint=record["heldout_fingerprint"],
        seconds=record["seconds"],
        measured=Measured(
            mean_iou=_number(measured["mean_iou"]),
            class_iou=[_number(value) for value in measured["class_iou"]],
            trunk=Similarity(**{k: _number(v) for k, v in measured["trunk"].items()}),
            projection=Similarity(**{k: _number(v) for k, v in measured["projection"].items()}),
        ),
        ratio_steps=record["ratio_steps"],
        ratios=[_number(value) for value in record["ratios"]],
        stats=record["stats"],
        environment=record["environment"],
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
