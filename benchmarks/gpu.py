"""Everything that a GPU is needed for, in one command that keeps to its time.

    python -m benchmarks.gpu --out FOLDER
    python -m benchmarks.gpu --out FOLDER --rehearse    # small, without a GPU

Kernels are compiled side by side, checked against float64, timed alone and in whole training
steps, profiled, and tested, in stages with processes and time limits of their own. A stage that
fails, hangs or runs out of time is recorded, and the others run all the same. Wrong results mark
the figures (`"correct"` in every record) and withhold none. FOLDER holds six files:
`summary.json`, `hot_path_gpu.json`, `step_gpu.json`, `launches_gpu.json`, `tests_gpu.json` and
`gpu.log`. They are written while the run goes on.

Exit status: 0 all measured and right, 1 something is wrong, 2 no CUDA device, 3 a stage did not
finish. A second run is faster with the first one's kernels: set TRITON_CACHE_DIR for both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._gpu.runner import DONE, Runner, Stage
from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import NO_DEVICE, REFUSED
from benchmarks._measure.tables import remarks, table

RIGHT, WRONG, INCOMPLETE = 0, 1, 3
SECONDS, SECONDS_OF_REHEARSAL = 540.0, 230.0
SECONDS_OF_DESCRIPTION = 40.0
ROOT = Path(__file__).parents[1]
MOST_CHARACTERS, MOST_CASES, MOST_LINES = 11_500, 12, 20
"""Of what is printed at the end, so that it comes back whole from any machine."""
HOT_PATH = "hot_path_gpu.json"
TIMES_LOSS = ("benchmarks.hot_path", "--device", "cuda")
TIMES_STEPS = ("benchmarks.step", "--device", "cuda")
STAGES = (
    Stage("smoke", 95 / SECONDS, ("benchmarks._gpu.run_tests", "--smoke"), "smoke.json",
          published=False, judges=True),
    Stage("headlines", 220 / SECONDS, (*TIMES_LOSS, "--stage", "headlines"), HOT_PATH,
          resumes=True),
    Stage("steps", 285 / SECONDS, TIMES_STEPS, "step_gpu.json"),
    # Profilers may disturb what they look at, so nothing is timed in these processes.
    Stage("launches", 320 / SECONDS, (*TIMES_STEPS, "--profile"), "launches_gpu.json"),
    Stage("tests", 490 / SECONDS, ("benchmarks._gpu.run_tests",), "tests_gpu.json", judges=True),
    # All cases, so that headlines for which no time was left come first.
    Stage("rest", 530 / SECONDS, (*TIMES_LOSS, "--resume"), HOT_PATH, resumes=True),
)  # fmt: skip
"""In order, each with the share of the time of all that is over when it must end."""


def main(arguments: list[str] | None = None) -> int:
    """Run the stages and print the figures, the verdict, and where the time went."""
    began = time.monotonic()  # This process imports no PyTorch: that too would take time.
    parser = command_parser("gpu", __doc__)
    add = parser.add_argument
    names = [stage.name for stage in STAGES]
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the result files")
    add("--budget", type=float, metavar="SECONDS",
        help=f"for everything (default: {SECONDS:.0f}, {SECONDS_OF_REHEARSAL:.0f} in a rehearsal)"
        )  # fmt: skip
    add("--stages", nargs="+", choices=names, metavar="NAME", help=f"only these of {names}")
    add("--commit", help="for the records, where there is no git")
    add("--rehearse", action="store_true", help="small sizes on the CPU")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="pixcontrast-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        variables = _variables(work)
        environment = _describe(options.rehearse, options.commit, variables)
        if environment is None:
            print(f"{NO_DEVICE} (--rehearse runs on the CPU)")
            return REFUSED
        runner = Runner(
            [one for one in STAGES if one.name in (options.stages or names)],
            options.out,
            work,
            options.budget or (SECONDS_OF_REHEARSAL if options.rehearse else SECONDS),
            began=began,
            environment={**environment, "rehearsal": options.rehearse},
            variables=variables,
            rehearse=options.rehearse,
        )
        try:
            runner.run()
        finally:  # A run that is stopped from outside keeps and shows what it has.
            runner.publish()
            print(report(runner), flush=True)
        correct, _ = runner.verdict()
    if correct is False:
        return WRONG
    return RIGHT if correct and runner.complete() else INCOMPLETE


def _describe(
    rehearse: bool, commit: str | None, variables: dict[str, str]
) -> dict[str, Any] | None:
    """Return what is known of the machine, perhaps nothing; None without a CUDA device."""
    command = [sys.executable, "-m", "benchmarks._measure.environment"]
    command += ["cpu" if rehearse else "cuda", *filter(None, [commit])]
    try:
        ended = subprocess.run(command, env={**os.environ, **variables}, stdout=subprocess.PIPE,
                               timeout=SECONDS_OF_DESCRIPTION, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return {}
    described: dict[str, Any] = json.loads(ended.stdout) if ended.returncode == 0 else {}
    return None if ended.returncode == REFUSED else described


def _variables(work: Path) -> dict[str, str]:
    """Return environment variables of every stage: shared caches, and a folder for its files."""
    (work / "tmp").mkdir()
    caches = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(work / "tmp"),
        **{name: os.environ.get(name, str(work / folder)) for name, folder in caches.items()},
    }


def report(runner: Runner) -> str:
    """Return the main figures, then the verdict, then where the time went."""
    correct, failed = runner.verdict()
    words = {True: "yes", False: "NO", None: "not known, a check did not finish"}[correct]
    lines = [f"correct: {words}", *_first([f"  wrong: {name}" for name in failed])]
    times = [f"{'stage':<12}{'status':<14}{'seconds':>8}{'limit':>7}"]
    times.append(f"{'(start)':<26}{runner.before:>8.1f}")
    for name, one in runner.outcomes.items():
        tail = one.get("log_tail", "").strip().splitlines()
        if one["status"] != DONE:
            lines.append(f"  {name}: {one['status']}; {tail[-1][:120] if tail else 'no output'}")
        times.append(f"{name:<12}{one['status']:<14}{one['seconds']:>8.1f}{one['limit']:>7.0f}")
    end = "\n".join([*lines, *times])
    return f"{first_lines(_figures(runner), MOST_CHARACTERS - len(end))}\n{end}"


def first_lines(text: str, characters: int) -> str:
    """Return the whole lines at the start of a text that fit; the last one says if some do not."""
    if len(text) <= characters:
        return text
    return text[: max(0, characters - 4)].rpartition("\n")[0] + "\n..."


def _figures(runner: Runner) -> str:
    """Return the tables of the hot path, the steps and their profile, and what the tests found."""
    records = {stage.name: runner.record_of(stage) for stage in runner.stages}
    lines: list[str] = []
    for name in ("headlines", "steps", "launches", "tests"):
        record = records.get(name)
        try:
            if record is not None:
                lines += _tests(record) if name == "tests" else _table(name, record)
        except (AttributeError, KeyError, TypeError) as error:
            # The figures are in the record, and the verdict must be printed.
            lines.append(f"{name}: no table, the record has another form ({error!r})")
    return "\n".join(lines)


def _table(name: str, record: dict[str, Any]) -> list[str]:
    title = "{mode} {anchors} x {entries} x {dim}" if name == "headlines" else "{name}, {case}"
    figures = {"headlines": ["seconds", "of_square"], "steps": ["seconds"]}
    found = record["rows" if name == "headlines" else "steps"]
    rows = {
        title.format(**{**row, "entries": row.get("entries") or "itself"}): row for row in found
    }
    measured = {case: row for case, row in rows.items() if row["measured"]}
    chosen = dict(list(measured.items())[:MOST_CASES])
    shown = table(chosen, figures.get(name, ["waits", "launches", "extra_mb"]))
    return [f"== {name}", *shown, *_first(remarks(rows), 12)]


def _tests(record: dict[str, Any]) -> list[str]:
    counts = f"tests: {record.get('passed')} passed, {len(record.get('failed', []))} failed"
    return [counts, *(f"  {key}: {record.get(key)}"[:300] for key in ("ungated", "memcheck"))]


def _first(lines: list[str], most: int = MOST_LINES) -> list[str]:
    left_out = len(lines) - most
    more = [f"  and {left_out} more, see the records"] * (left_out > 0)
    return [line[:120] for line in lines[:most]] + more


def _stop(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    # A stop from outside ends the running stage too, and keeps what was written.
    signal.signal(signal.SIGTERM, _stop)
    raise SystemExit(main())
