"""The runner of the GPU stages: no stage takes another's figures, and the budget is kept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks._gpu.stages import (
    DONE,
    FAILED,
    NO_TIME,
    TIMED_OUT,
    Stage,
    Stages,
    run_limited,
)
from benchmarks.gpu import STAGES

ROOT = Path(gpu.__file__).parents[1]
WRITES = """
import json, os, signal, sys, time
def write(**record):
    with open({path!r}, "w") as file:
        json.dump(record, file)
"""
MEASURES = "write(seconds=0.5)"
CHECKS = "write(correct=True, failed=[])"
HANGS = "write(seconds=0.25); print('begun', flush=True); time.sleep(60)"
CLINGS = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {HANGS}"


def stage(name, end, program, **options):
    """A stage that runs a program, which has `write` for its record."""
    lines = WRITES.replace("{path!r}", f"os.path.join(sys.argv[1], '{name}.json')") + program
    return ProgramStage(name, end, (lines,), f"{name}.json", **options)


class ProgramStage(Stage):
    """A stage whose command is a program."""

    def arguments(self, folder, budget, rehearse):
        return [sys.executable, "-S", "-c", *self.command, str(folder), f"{budget:.1f}"]


def run(tmp_path, *stages, budget=20.0, began=None):
    """Run stages; returns them and the summary that they wrote."""
    began = time.monotonic() if began is None else began
    found = Stages(stages, tmp_path, budget, began=began, environment={"card": "a card"},
                   variables={})  # fmt: skip
    found.run()
    return found, published(tmp_path, "summary")


def published(tmp_path, name):
    return json.loads((tmp_path / f"{name}.json").read_text())


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_stage_that_fails_hangs_or_overruns_takes_nothing_else_with_it(tmp_path, capsys):
    start = time.monotonic()
    stages, summary = run(
        tmp_path,
        stage("checks", 0.15, CHECKS, judges=True),
        stage("fails", 0.3, "write(seconds=0.125); raise SystemExit('broken')"),
        stage("hangs", 0.4, CLINGS),
        stage("measures", 0.7, MEASURES),
        stage("overruns", 0.75, HANGS),
        stage("last", 1.0, MEASURES),
        budget=10.0,
    )
    assert time.monotonic() - start < 10.0
    statuses = {name: one["status"] for name, one in summary["stages"].items()}
    assert statuses == {
        "checks": DONE,
        "fails": FAILED,
        "hangs": TIMED_OUT,
        "measures": DONE,
        "overruns": TIMED_OUT,
        "last": DONE,
    }
    assert summary["correct"] is True
    assert summary["complete"] is False
    assert summary["stages"]["fails"]["exit_status"] == 1
    assert summary["environment"] == {"card": "a card"}
    for name, seconds in {
        "fails": 0.125, "hangs": 0.25, "overruns": 0.25, "measures": 0.5, "last": 0.5
    }.items():  # fmt: skip
        assert published(tmp_path, name)["seconds"] == seconds
    assert names_in(tmp_path) == sorted(
        ["gpu.log", "summary.json", *(f"{name}.json" for name in statuses)]
    )
    printed = capsys.readouterr().out
    for words in ("broken", "begun", "== fails: failed", "== hangs: timed out"):
        assert words in printed
    assert "broken" in (tmp_path / "gpu.log").read_text()
    assert any(line.split()[:2] == ["fails", "failed"] for line in stages.report().splitlines())


def test_the_budget_is_kept_where_every_stage_hangs(tmp_path):
    start = time.monotonic()
    hanging = [stage(name, end, CLINGS) for name, end in (("first", 0.35), ("last", 1.0))]
    _, summary = run(tmp_path, *hanging, budget=8.0)
    assert time.monotonic() - start < 8.0 + 5.0
    assert [one["status"] for one in summary["stages"].values()] == [TIMED_OUT, TIMED_OUT]


def test_a_stage_without_time_is_not_started(tmp_path):
    _, summary = run(tmp_path, stage("late", 0.01, MEASURES), stage("next", 1.0, MEASURES))
    assert summary["stages"]["late"]["status"] == NO_TIME
    assert summary["stages"]["next"]["status"] == DONE
    assert "late.json" not in names_in(tmp_path)


def test_time_that_is_left_over_goes_to_the_next_stage(tmp_path):
    tells = "write(budget=float(sys.argv[2]))"
    run(tmp_path, stage("first", 0.5, tells), stage("second", 1.0, tells), budget=40.0)
    # Of 20 seconds and of nearly 40, but for the three in which a stage ends in order.
    assert 14.0 < published(tmp_path, "first")["budget"] <= 17.0
    assert 31.0 < published(tmp_path, "second")["budget"] <= 37.0


def test_a_slow_start_costs_every_stage_the_same_share(tmp_path):
    tells = "write(budget=float(sys.argv[2]))"
    _, summary = run(tmp_path, stage("first", 0.5, tells), budget=60.0, began=time.monotonic() - 40)
    # Half of the 20 seconds that were left, but for the two in which a stage ends in order.
    assert 7.5 < published(tmp_path, "first")["budget"] <= 8.0
    assert summary["seconds_before_stages"] == pytest.approx(40, abs=0.5)


def test_records_of_an_earlier_run_are_removed(tmp_path):
    (tmp_path / "tests.json").write_text('{"correct": true, "failed": []}')
    _, summary = run(tmp_path, stage("tests", 1.0, "sys.exit(0)", judges=True))
    assert summary["correct"] is None


@pytest.mark.parametrize(
    ("smoke", "tests", "correct", "failed"),
    [
        ("write(correct=True, failed=[])", "write(correct=True, failed=[])", True, []),
        ("write(correct=True, failed=[])", "write(correct=None, failed=[])", None, []),
        ("write(correct=True, failed=[])", "sys.exit(1)", None, []),
        # A verdict from a process that did not end well is none, unless it is a bad one.
        ("write(correct=True, failed=[])", "write(correct=True); sys.exit(1)", None, []),
        # The tests include what smoke did not finish.
        ("write(correct=None, failed=[])", CHECKS, True, []),
        ("sys.exit(1)", CHECKS, True, []),
        ("write(correct=False, failed=['a']); sys.exit(7)", CHECKS, False, ["smoke: a"]),
        ("write(correct=False, failed=['a', 'b']); sys.exit(1)",
         "write(correct=None, failed=['c'])", False, ["smoke: a", "smoke: b", "tests: c"]),
        ("write(correct=False)", CHECKS, False, ["smoke: correct is false"]),
    ],
)  # fmt: skip
def test_correctness_is_in_the_summary_and_withholds_no_figure(
    smoke, tests, correct, failed, tmp_path
):
    stages, summary = run(
        tmp_path,
        stage("smoke", 0.3, smoke, judges=True),
        stage("measures", 0.6, MEASURES),
        stage("tests", 1.0, tests, judges=True),
    )
    assert (summary["correct"], summary["failed"]) == (correct, failed)
    assert published(tmp_path, "measures")["seconds"] == 0.5
    words = {True: "correct: yes", False: "correct: NO", None: "correct: not known"}[correct]
    assert stages.report().startswith(words)


def test_a_stage_that_finds_faults_is_done(tmp_path):
    finds = "write(correct=False, failed=['a']); sys.exit(1)"
    _, summary = run(tmp_path, stage("tests", 1.0, finds, judges=True))
    assert summary["stages"]["tests"]["status"] == DONE
    assert summary["complete"] is True


def test_what_figures_say_of_themselves_counts_only_against_them(tmp_path):
    figures = stage("headlines", 1.0, "write(correct=False)")
    _, summary = run(tmp_path, stage("smoke", 0.5, CHECKS, judges=True), figures)
    assert (summary["correct"], summary["failed"]) == (False, ["headlines: correct is false"])
    stages, summary = run(tmp_path, stage("figures", 1.0, "write(correct=True)"))
    assert summary["correct"] is None
    assert stages.verdict() == (None, [])


def test_what_a_command_started_ends_with_it(tmp_path):
    """Also when its parent has ended well."""
    program = """
import subprocess, sys
for _ in range(2):
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
"""
    status, printed = run_limited([sys.executable, "-S", "-c", program], 20.0, tmp_path / "out", {})
    assert status == 0
    assert len(printed.split()) == 2

    def lives(pid):
        # A process without a command line has ended; its parent may not have looked yet.
        path = Path(f"/proc/{pid}/cmdline")
        return path.exists() and path.read_bytes() != b""

    deadline = time.monotonic() + 10  # A signal takes effect when the process is scheduled.
    while any(map(lives, printed.split())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(lives, printed.split()))


def test_the_stages_of_a_run():
    names = ["smoke", "headlines", "steps", "launches", "tests"]
    assert [stage.name for stage in STAGES] == names
    ends = [stage.end for stage in STAGES]
    assert ends == sorted(ends)
    assert ends[-1] < 1.0
    files = {"gpu.log", "summary.json", *(stage.record for stage in STAGES)}
    assert len(files) == len(STAGES) + 2 <= 8


def test_without_a_device_it_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == gpu.REFUSED
    assert "no CUDA device here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_stopped_from_outside_it_stops_its_stage_and_keeps_the_figures(tmp_path):
    program = f"""
import sys
from benchmarks import gpu
from benchmarks._gpu.stages import Stage
import signal
class Slow(Stage):
    def arguments(self, folder, *_):
        return [sys.executable, "-S", "-c", sys.argv[1], str(folder)]
gpu.has_device = lambda device: True
gpu.STAGES = [Slow("slow", 1.0, (), "slow.json")]
signal.signal(signal.SIGTERM, gpu._stop)
sys.exit(gpu.main(["--out", {str(tmp_path / "out")!r}, "--budget", "60"]))
"""
    writes = "import os, sys, time; print(os.getpid(), flush=True)\n"
    writes += "open(sys.argv[1] + '/slow.json', 'w').write('{\"rows\": 1}'); time.sleep(60)"
    running = subprocess.Popen(
        [sys.executable, "-c", program, writes],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "out" / "slow.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.terminate()
    printed, _ = running.communicate(timeout=30)
    assert running.returncode == 143
    assert "correct: not known" in printed
    assert published(tmp_path / "out", "slow")["rows"] == 1
    pid = (tmp_path / "out" / "gpu.log").read_text().split()[0]
    assert not Path(f"/proc/{pid}/cwd").exists()
    assert names_in(tmp_path) == ["out"]
