"""What a run prints at its end, short enough to come back whole from any machine."""

from __future__ import annotations

from benchmarks._gpu.runner import Runner

MOST_CHARACTERS = 11_500
MOST_FAILURES = 20


def report(runner: Runner) -> str:
    """The figures that stages printed, then the verdict, then where the time went."""
    end = "\n".join([*_verdict_lines(runner), *_time_lines(runner)])
    figures = "\n".join(
        f"== {stage.name}\n{last_lines(runner.output_of(stage), stage.shown)}"
        for stage in runner.stages
        if stage.shown > 0
    )
    return f"{last_lines(figures, MOST_CHARACTERS - len(end))}\n{end}"


def last_lines(text: str, characters: int) -> str:
    """The whole lines at the end of a text that fit; the first one says where some are left out."""
    text = text.strip("\n")
    if len(text) <= characters:
        return text
    kept = text[len(text) - max(0, characters - 4) :]
    return "...\n" + kept.partition("\n")[2]


def _verdict_lines(runner: Runner) -> list[str]:
    correct, failed = runner.verdict()
    words = {True: "yes", False: "NO", None: "not known, a check did not finish"}[correct]
    lines = ["== verdict", f"correct: {words}"]
    lines += [f"  wrong: {name[:120]}" for name in failed[:MOST_FAILURES]]
    if len(failed) > MOST_FAILURES:
        lines.append(f"  and {len(failed) - MOST_FAILURES} more, see the records")
    for name, outcome in runner.outcomes.items():
        tail = outcome.log_tail.strip().splitlines()
        if outcome.status != "done":
            lines.append(f"  {name}: {outcome.status}; {tail[-1][:120] if tail else 'no output'}")
    return lines


def _time_lines(runner: Runner) -> list[str]:
    lines = ["== time", f"{'stage':<12}{'status':<14}{'seconds':>8}{'limit':>7}{'kernels':>9}"]
    for name, outcome in runner.outcomes.items():
        lines.append(
            f"{name:<12}{outcome.status:<14}{outcome.seconds:>8.1f}{outcome.limit:>7.0f}"
            f"{outcome.kernels:>9}"
        )
    return lines
