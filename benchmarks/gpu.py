"""Everything that a GPU is needed for, in one command that keeps to its time.

    python -m benchmarks.gpu --out FOLDER
    python -m benchmarks.gpu --out FOLDER --rehearse    # small, without a GPU

Kernels are compiled side by side, checked against float64, timed alone and in whole training
steps, profiled, and tested, in stages with processes and time limits of their own. A stage that
fails, hangs or runs out of time is recorded, and the others run all the same. FOLDER holds
`summary.json`, which says whether the results are correct, a record of each stage, written while it
runs (`smoke.json`, `hot_path_gpu.json`, `step_gpu.json`, `launches_gpu.json`, `tests_gpu.json`),
and `gpu.log`, with what they print.

Exit status: 0 all measured and right, 1 something is wrong, 2 no CUDA device, 3 a stage did not
finish. A second run is faster with the first one's kernels: set TRITON_CACHE_DIR for both. Without
a git repository the records take the commit from PIXCONTRAST_COMMIT.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from benchmarks._gpu.stages import Stage, Stages
from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import REFUSED, has_device
from benchmarks._measure.environment import describe_environment

RIGHT, WRONG, INCOMPLETE = 0, 1, 3
SECONDS = 540.0
ROOT = Path(__file__).parents[1]
TESTS = "benchmarks._gpu.run_tests"
STEP = ("benchmarks.step", "--device", "cuda")
STAGES: tuple[Stage, ...] = (
    Stage("smoke", 95 / SECONDS, (TESTS, "--smoke"), "smoke.json", judges=True),
    Stage(
        "headlines",
        245 / SECONDS,
        ("benchmarks.hot_path", "--device", "cuda"),
        "hot_path_gpu.json",
    ),
    Stage("steps", 315 / SECONDS, STEP, "step_gpu.json"),
    # A profiler may disturb what it looks at, so nothing is timed in its process.
    Stage("launches", 350 / SECONDS, (*STEP, "--profile"), "launches_gpu.json"),
    Stage("tests", 530 / SECONDS, (TESTS,), "tests_gpu.json", judges=True),
)
"""In order, each with the share of the time of all that is over when it must end."""


def main(arguments: list[str] | None = None) -> int:
    """Run the stages and print the figures, the verdict, and where the time went."""
    began = time.monotonic()
    parser = command_parser("gpu", __doc__)
    add = parser.add_argument
    names = [stage.name for stage in STAGES]
    add("--out", type=Path, required=True, metavar="FOLDER", help="for the result files")
    budget = f"for everything (default: {SECONDS:.0f})"
    add("--budget", type=float, default=SECONDS, metavar="SECONDS", help=budget)
    add("--stages", nargs="+", choices=names, metavar="NAME", help=f"only these of {names}")
    add("--rehearse", action="store_true", help="small sizes on the CPU")
    options = parser.parse_args(arguments)
    if not options.rehearse and not has_device("cuda"):
        return REFUSED
    with tempfile.TemporaryDirectory(prefix="pixcontrast-", ignore_cleanup_errors=True) as folder:
        stages = Stages(
            [one for one in STAGES if one.name in (options.stages or names)],
            options.out,
            options.budget,
            began=began,
            environment={**describe_environment(), "rehearsal": options.rehearse},
            variables=_variables(Path(folder)),
            rehearse=options.rehearse,
        )
        try:
            stages.run()
        finally:  # A run that is stopped from outside keeps and shows what it has.
            stages.publish()
            print(stages.report(), flush=True)
        correct, _ = stages.verdict()
    if correct is False:
        return WRONG
    return RIGHT if correct and stages.complete() else INCOMPLETE


def _variables(work: Path) -> dict[str, str]:
    """Return environment variables of every stage: shared caches, and a folder for its files."""
    caches = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    return {
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(work),
        **{name: os.environ.get(name, str(work / folder)) for name, folder in caches.items()},
    }


def _stop(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    # A stop from outside ends the running stage too, and keeps what was written.
    signal.signal(signal.SIGTERM, _stop)
    raise SystemExit(main())
