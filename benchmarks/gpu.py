"""Everything that a GPU is needed for, in one command that keeps to its time.

    python -m benchmarks.gpu --out FOLDER
    python -m benchmarks.gpu --out FOLDER --rehearse    # small, without a GPU

Kernels are compiled side by side, checked against float64, timed alone and in whole training
steps, profiled, and tested, in stages with processes and time limits of their own. A stage that
fails, hangs or runs out of time is recorded, and the others run all the same. Wrong results mark
the figures (`"correct"` in every record) and withhold none. FOLDER holds at most seven files:
`summary.json`, `hot_path_gpu.json` and its picture, `step_gpu.json`, `launches_gpu.json`,
`tests_gpu.json` and `gpu.log`. They are written while the run goes on.

Exit status: 0 all measured and right, 1 something is wrong, 2 no CUDA device, 3 a stage did not
finish. A second run is faster with the first one's kernels: set TRITON_CACHE_DIR for both.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._gpu.process import run_limited
from benchmarks._gpu.records import Record, read_record
from benchmarks._gpu.report import report
from benchmarks._gpu.runner import Runner
from benchmarks._gpu.stages import SECONDS, STAGES, choose_stages

RIGHT, WRONG, REFUSED, INCOMPLETE = range(4)
SECONDS_OF_REHEARSAL = 230.0
SECONDS_OF_DESCRIPTION = 40.0
MOST_PROCESSES = 14
ROOT = Path(__file__).parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Run the stages and print the figures, the verdict, and where the time went."""
    began = time.monotonic()  # This process imports no PyTorch: that too would take time.
    options = _parser().parse_args(arguments)
    stages = choose_stages(options.stages, options.rehearse)
    with tempfile.TemporaryDirectory(prefix="pixcontrast-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        variables = _variables(work)
        environment = _describe(options, work, variables)
        if environment is None:
            print("no CUDA device here (--rehearse runs on the CPU)")
            return REFUSED
        runner = Runner(
            stages,
            options.out,
            work,
            options.budget or (SECONDS_OF_REHEARSAL if options.rehearse else SECONDS),
            began=began,
            environment={**environment, "rehearsal": options.rehearse},
            variables=variables,
            processes=options.processes,
            say=lambda line: print(line, flush=True),
        )
        try:
            runner.run()
        finally:  # A run that is stopped from outside keeps and shows what it has.
            runner.publish()
            print(report(runner), flush=True)
        correct = runner.verdict().correct
    if correct is False:
        return WRONG
    return RIGHT if correct and runner.complete() else INCOMPLETE


def _describe(options: argparse.Namespace, work: Path, variables: dict[str, str]) -> Record | None:
    """What is known of the machine, perhaps nothing; None without a CUDA device."""
    path = work / "environment.json"
    device = "cpu" if options.rehearse else "cuda"
    command = [sys.executable, "-m", "benchmarks._gpu.environment", "--device", device]
    command += ["--out", str(path)] + (["--commit", options.commit] if options.commit else [])
    ended = run_limited(
        command,
        seconds=SECONDS_OF_DESCRIPTION,
        output=work / "environment.out",
        errors=work / "environment.err",
        environment=variables,
    )
    return None if ended.exit_status == REFUSED else read_record(path) or {}


def _variables(work: Path) -> dict[str, str]:
    """Environment variables of every stage: one cache for all, and files outside the results."""
    (work / "tmp").mkdir()
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(work / "tmp"),
        "TRITON_CACHE_DIR": os.environ.get("TRITON_CACHE_DIR", str(work / "triton")),
        "TORCHINDUCTOR_CACHE_DIR": os.environ.get(
            "TORCHINDUCTOR_CACHE_DIR", str(work / "inductor")
        ),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    processes = max(1, min(MOST_PROCESSES, (os.cpu_count() or 2) - 2))
    names = [stage.name for stage in STAGES]
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the result files")
    add("--budget", type=float, metavar="SECONDS",
        help=f"for everything (default: {SECONDS:.0f}, {SECONDS_OF_REHEARSAL:.0f} in a rehearsal)"
        )  # fmt: skip
    add("--stages", nargs="+", choices=names, metavar="NAME", help=f"only these of {names}")
    add("--processes", type=int, default=processes, metavar="N", help="processes side by side")
    add("--commit", help="for the records, where there is no git")
    add("--rehearse", action="store_true", help="small sizes on the CPU")
    return parser


def _stop(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    # A stop from outside ends the running stage too, and keeps what was written.
    signal.signal(signal.SIGTERM, _stop)
    raise SystemExit(main())
