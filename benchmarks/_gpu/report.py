"""What a run prints at its end, short enough to come back whole from any machine."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks._gpu.figures import hot_path_lines, step_lines, test_lines
from benchmarks._gpu.runner import DONE, Runner

MOST_CHARACTERS = 11_500
MOST_FAILURES = 20


def report(runner: Runner) -> str:
    """The main figures, then the verdict, then where the time went."""
    end = "\n".join([*_verdict_lines(runner), *_time_lines(runner)])
    return f"{first_lines(_figures(runner), MOST_CHARACTERS - len(end))}\n{end}"


def first_lines(text: str, characters: int) -> str:
    """The whole lines at the start of a text that fit; the last one says if some are left out."""
    if len(text) <= characters:
        return text
    return text[: max(0, characters - 4)].rpartition("\n")[0] + "\n..."


def _figures(runner: Runner) -> str:
    records = {stage.name: runner.record_of(stage) for stage in runner.stages}
    profile = records.get("launches")
    tables: dict[str, Callable[..., list[str]]] = {
        "headlines": hot_path_lines,
        "steps": lambda record: step_lines(record, profile),
        "tests": test_lines,
    }
    lines: list[str] = []
    for name, table in tables.items():
        record = records.get(name)
        if record is None:
            continue
        try:
            lines += table(record)
        except (AttributeError, KeyError, TypeError) as error:
            # The figures are in the record, and the verdict below must be printed.
            lines.append(f"{name}: no table, the record has another form ({error!r})")
    return "\n".join(lines)


def _verdict_lines(runner: Runner) -> list[str]:
    correct, failed = runner.verdict()
    words = {True: "yes", False: "NO", None: "not known, a check did not finish"}[correct]
    lines = [f"correct: {words}", *(f"  wrong: {name[:120]}" for name in failed[:MOST_FAILURES])]
    if len(failed) > MOST_FAILURES:
        lines.append(f"  and {len(failed) - MOST_FAILURES} more, see the records")
    for name, outcome in runner.outcomes.items():
        tail = outcome.log_tail.strip().splitlines()
        if outcome.status != DONE:
            lines.append(f"  {name}: {outcome.status}; {tail[-1][:120] if tail else 'no output'}")
    return lines


def _time_lines(runner: Runner) -> list[str]:
    lines = [f"{'stage':<12}{'status':<14}{'seconds':>8}{'limit':>7}{'kernels':>9}"]
    lines.append(f"{'(start)':<26}{runner.before:>8.1f}")
    for name, outcome in runner.outcomes.items():
        lines.append(
            f"{name:<12}{outcome.status:<14}{outcome.seconds:>8.1f}{outcome.limit:>7.0f}"
            f"{outcome.kernels:>9}"
        )
    return lines
