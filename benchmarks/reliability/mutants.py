"""Small faults put into the package one at a time, and which of them the tests see.

    python -m benchmarks.reliability.mutants samplers.py bank.py --out mutants.jsonl

Each fault is written into a copy of the checkout, where a fork of this process runs the tests that
execute the line (`reach.py`). What no test sees is printed, and is to be killed by a new test or
explained. `--again` tries those once more that no test saw before: after a first run that was cut
short by `--seconds`, with new tests, or with other files of tests than those of `reach.py`
(`--tests`), as those that start several ranks or interpret kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import hypothesis.stateful  # noqa: F401  here, once for all forks
import pytest
import torch
import torch._dynamo

from benchmarks.reliability.faults import Fault, faults_of
from benchmarks.reliability.reach import PLAIN, Chosen, Reach, find_reach

ROOT = Path(__file__).parents[2]
PARTS = ("pixcontrast", "tests", "benchmarks", "docs", "README.md", "pyproject.toml")
UNSEEN = ("survived", "not executed")
MOST_SECONDS = 60.0
"""Of a file of tests whose time is not known."""


def main(arguments: list[str] | None = None) -> int:
    """Every fault of the files, or as many as asked for, drawn by a fixed seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="of the package, as _info_nce/tiled/passes.py")
    parser.add_argument("--most", type=int, help="faults of each file")
    parser.add_argument("--out", type=Path, required=True, help="a line for each fault")
    parser.add_argument("--reach", type=Path, help="a file for which test executes which line")
    parser.add_argument("--seconds", type=float, help="of tests for each fault, shortest first")
    parser.add_argument("--tests", nargs="+", help="files of tests, whole, in place of these")
    parser.add_argument("--again", action="store_true", help="those alone that no test saw before")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # The first of these compiles for seconds.
    torch.nested.nested_tensor([torch.ones(1, 1)] * 2, layout=torch.jagged)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        os.chdir(_copied(Path(folder)))
        reach = Reach({}, {})
        if not options.tests:
            reach = find_reach((options.reach or Path(folder) / "reach.json").absolute())
        before = _before(options.out)
        survived = 0
        for name in options.files:
            found = list(faults_of((ROOT / "pixcontrast" / name).read_text()))
            if options.most is not None and len(found) > options.most:
                found = sorted(Random(0).sample(found, options.most))
            for fault in found:
                known = before.get((name, fault.line, fault.what))
                if known not in UNSEEN if options.again else known is not None:
                    continue
                tests = options.tests or reach.of(name, fault.lines, options.seconds)
                survived += _try(name, fault, tests, reach.seconds, options.out) in UNSEEN
    return 1 if survived else 0


def _try(name: str, fault: Fault, tests: list[str], seconds_of: dict[str, float], out: Path) -> str:
    start = time.monotonic()
    seconds = sum(seconds_of.get(test, MOST_SECONDS) for test in tests)
    status = run_tests(name, fault.source, tests, seconds) if tests else "not executed"
    row = {"file": name, "line": fault.line, "what": fault.what, "status": status,
           "tests": len(tests), "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    if status in UNSEEN:
        print(name, fault.line, fault.what, status, flush=True)
    return status


def run_tests(name: str, source: str, tests: list[str], seconds: float) -> str:
    """killed, survived or timed out, of the tests with this text in the place of the file's."""
    path = Path("pixcontrast") / name
    original = path.read_text()
    # Python tells a source from what it has compiled by size and time alone.
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
        compiled.unlink()
    path.write_text(source)
    try:
        return _in_fork(tests, 30 + 10 * seconds)
    finally:
        path.write_text(original)


def _copied(folder: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.png")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=ignored)
        else:
            shutil.copy(source, folder / part)
    # `pixcontrast` of the copy, and not what this module's package belongs to.
    sys.path.insert(0, str(folder))
    for module in [m for m in sys.modules if m.split(".")[0] in ("benchmarks", "pixcontrast")]:
        del sys.modules[module]
    return folder


def _in_fork(tests: list[str], seconds: float) -> str:
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        files = sorted({test.split("::")[0] for test in tests})
        # `reach.py` knows no doctests.
        few = ("-o", "addopts=") if all("::" in test for test in tests) else ()
        os._exit(int(pytest.main([*PLAIN, *few, *files], plugins=[Chosen(tests)])))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return "survived" if status == 0 else "killed"
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def _before(path: Path) -> dict[tuple[str, int, str], str]:
    """How each fault ended that was tried already, the last time counting.

    A row with a `why` is explained: there is nothing to be seen.
    """
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {
        (row["file"], row["line"], row["what"]): "explained" if "why" in row else row["status"]
        for row in rows
    }


if __name__ == "__main__":
    raise SystemExit(main())
