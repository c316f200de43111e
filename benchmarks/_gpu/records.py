"""The JSON records of a run: read while they are written, stamped, and moved out whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]


class Verdict(NamedTuple):
    """Whether the results of a run are right.

    Attributes:
        correct: False where any result is wrong, None where a check is missing, else True.
        failed: the names of the cases that are wrong, each after the name of its stage.
    """

    correct: bool | None
    failed: list[str]


def read_record(path: Path) -> Record | None:
    """A record, or None where there is none, or only a part of one so far."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON in one step. A NaN becomes null, because JSON has none."""
    write_whole(path, (json.dumps(_without_nan(record), indent=2) + "\n").encode())


def judge(records: Mapping[str, Record | None], checks: Mapping[str, bool]) -> Verdict:
    """The verdict over all records.

    Args:
        records: of every stage, by its name. Any of them may say that something is wrong.
        checks: the stages that the results are right by, and whether each of them is done: what
            a stopped one wrote so far says only what is wrong.
    """
    failed: list[str] = []
    answers: list[bool | None] = []
    for name, record in records.items():
        said = None if record is None else record.get("correct")
        wrong = [] if record is None else [f"{name}: {case}" for case in record.get("failed", [])]
        if wrong or said is False:
            failed += wrong or [f"{name}: correct is false"]
            answers.append(False)
        elif name in checks:
            answers.append(said if checks[name] else None)
    if False in answers:
        return Verdict(False, failed)
    return Verdict(True if answers and all(answers) else None, failed)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, Mapping):
        return {str(key): _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return value
