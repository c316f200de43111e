"""The runner of the GPU stages: no stage takes another's figures, and the budget is kept."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks._gpu.process import run_limited
from benchmarks._gpu.records import judge, write_record
from benchmarks._gpu.report import last_lines, report
from benchmarks._gpu.runner import DONE, FAILED, NO_TIME, TIMED_OUT, Runner
from benchmarks._gpu.stages import STAGES, Stage, choose_stages

ROOT = Path(gpu.__file__).parents[1]
WRITES = """
import json, os, signal, sys, time
def write(**record):
    with open({path!r}, "w") as file:
        json.dump(record, file)
"""
MEASURES = "write(seconds=0.5); print('a figure')"
CHECKS = "write(correct=True, failed=[])"
HANGS = "write(seconds=0.25); print('begun', flush=True); time.sleep(60)"
CLINGS = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {HANGS}"


def stage(name, end, program, *, record=None, **options):
    """A stage that runs a program, which has `write` for its record."""
    record = record or f"{name}.json"
    lines = WRITES.replace("{path!r}", f"os.path.join(sys.argv[1], {record!r})") + program
    command = (sys.executable, "-S", "-c", lines.replace("{", "{{").replace("}", "}}"))
    return Stage(name, end, (*command, "{folder}", "{budget}"), record, name, shown=50, **options)


def run(tmp_path, *stages, budget=20.0, **options):
    """Run stages; returns the runner and the summary that it wrote."""
    runner = Runner(stages, tmp_path / "out", tmp_path / "work", budget, began=time.monotonic(),
                    environment={"card": "a card"}, variables={}, say=lambda line: None,
                    **options)  # fmt: skip
    runner.run()
    return runner, published(tmp_path, "summary")


def published(tmp_path, name):
    return json.loads((tmp_path / "out" / f"{name}.json").read_text())


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_stage_that_fails_hangs_or_overruns_takes_nothing_else_with_it(tmp_path):
    start = time.monotonic()
    runner, summary = run(
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
    assert {name: one["status"] for name, one in summary["stages"].items()} == {
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
    assert "broken" in summary["stages"]["fails"]["log_tail"]
    assert "begun" in summary["stages"]["hangs"]["log_tail"]
    for name, seconds in {
        "fails": 0.125, "hangs": 0.25, "overruns": 0.25, "measures": 0.5, "last": 0.5
    }.items():  # fmt: skip
        record = published(tmp_path, name)
        assert record["seconds"] == seconds
        assert record["correct"] is True
        assert record["environment"] == {"card": "a card"}
        assert record["stages"] == {name: summary["stages"][name]["status"]}
    assert names_in(tmp_path / "out") == [
        "checks.json", "fails.json", "gpu.log", "hangs.json", "last.json", "measures.json",
        "overruns.json", "summary.json",
    ]  # fmt: skip
    printed = report(runner)
    assert "fails: failed; broken" in printed
    assert "a figure" in printed


def test_the_budget_is_kept_where_every_stage_hangs(tmp_path):
    start = time.monotonic()
    hanging = [stage(name, end, CLINGS) for name, end in (("first", 0.3), ("last", 1.0))]
    _, summary = run(tmp_path, *hanging, budget=5.0)
    assert time.monotonic() - start < 5.0 + 5.0
    assert [one["status"] for one in summary["stages"].values()] == [TIMED_OUT, TIMED_OUT]


def test_a_stage_without_time_is_not_started(tmp_path):
    _, summary = run(tmp_path, stage("late", 0.01, MEASURES), stage("next", 1.0, MEASURES))
    assert summary["stages"]["late"]["status"] == NO_TIME
    assert summary["stages"]["next"]["status"] == DONE
    assert "late.json" not in names_in(tmp_path / "out")


def test_time_that_is_left_over_goes_to_the_next_stage(tmp_path):
    tells = "write(budget=float(sys.argv[2]))"
    run(tmp_path, stage("first", 0.5, tells), stage("second", 1.0, tells), budget=40.0)
    # Of 20 seconds 4 are for the case in which the budget ends; of nearly 40 no more than 8.
    assert 14.0 < published(tmp_path, "first")["budget"] <= 16.0
    assert 29.0 < published(tmp_path, "second")["budget"] <= 32.0


def test_figures_come_out_while_a_stage_runs(tmp_path):
    seen = []
    writes = "write(rows=1); time.sleep(2.5); write(rows=2)"
    runner = Runner([stage("slow", 1.0, writes)], tmp_path / "out", tmp_path / "work", 20.0,
                    began=time.monotonic(), environment={}, variables={}, say=print)  # fmt: skip
    publish = runner.publish

    def watched():
        publish()
        seen.append(published(tmp_path, "slow"))

    runner.publish = watched
    runner.run()
    assert [seen[0]["rows"], seen[-1]["rows"]] == [1, 2]
    assert [seen[0]["stages"], seen[-1]["stages"]] == [{"slow": "not done"}, {"slow": DONE}]


def test_a_record_that_breaks_off_replaces_no_whole_one(tmp_path):
    breaks = "write(rows=1); time.sleep(1.6); open(sys.argv[1] + '/one.json', 'w').write('{');"
    run(tmp_path, stage("one", 0.5, breaks + "time.sleep(60)"), budget=8.0)
    assert published(tmp_path, "one")["rows"] == 1


def test_a_crashed_stage_starts_again_where_it_was(tmp_path):
    program = """
rows = json.load(open(sys.argv[1] + "/shared.json"))["rows"] if "--resume" in sys.argv else 0
write(rows=rows + 1)
sys.exit(3 if rows < 2 else 0)
"""
    headlines = stage("headlines", 0.5, program, record="shared.json")
    headlines = replace(headlines, resume=("--resume",), restarts=3)
    rest = replace(headlines, name="rest", end=1.0, command=(*headlines.command, "--resume"))
    _, summary = run(tmp_path, headlines, rest)
    assert summary["stages"]["headlines"]["restarts"] == 2
    assert summary["stages"]["headlines"]["status"] == DONE
    record = published(tmp_path, "shared")
    assert record["rows"] == 4
    assert record["stages"] == {"headlines": DONE, "rest": DONE}


@pytest.mark.parametrize(
    ("smoke", "tests", "correct", "failed"),
    [
        ("write(correct=True, failed=[])", "write(correct=True, failed=[])", True, []),
        ("write(correct=True, failed=[])", "write(correct=None, failed=[])", None, []),
        ("write(correct=True, failed=[])", "sys.exit(1)", None, []),
        # A verdict from a process that did not end well is none, unless it is a bad one.
        ("write(correct=True, failed=[]); sys.exit(1)", CHECKS, None, []),
        ("write(correct=False, failed=['a']); sys.exit(7)", CHECKS, False, ["smoke: a"]),
        ("write(correct=False, failed=['a', 'b']); sys.exit(1)",
         "write(correct=None, failed=['c'])", False, ["smoke: a", "smoke: b", "tests: c"]),
        ("write(correct=False)", CHECKS, False, ["smoke: correct is false"]),
    ],
)  # fmt: skip
def test_correctness_marks_the_figures_and_withholds_none(smoke, tests, correct, failed, tmp_path):
    _, summary = run(
        tmp_path,
        stage("smoke", 0.3, smoke, judges=True, published=False),
        stage("measures", 0.6, MEASURES),
        stage("tests", 1.0, tests, judges=True),
    )
    assert (summary["correct"], summary["failed"]) == (correct, failed)
    record = published(tmp_path, "measures")
    assert record["seconds"] == 0.5
    assert (record["correct"], record["failed"]) == (correct, failed)
    assert summary["stages"]["smoke"]["record"].get("correct") in (True, False)


def test_a_stage_that_finds_faults_is_done(tmp_path):
    finds = "write(correct=False, failed=['a']); sys.exit(1)"
    _, summary = run(tmp_path, stage("tests", 1.0, finds, judges=True, restarts=2))
    assert summary["stages"]["tests"]["status"] == DONE
    assert summary["complete"] is True


def test_no_check_is_no_verdict():
    assert judge({}, {}) == (None, [])


def test_nan_becomes_null(tmp_path):
    write_record(tmp_path / "a.json", {"rows": [float("nan"), 1.0], "most": float("inf")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"rows": [None, 1.0], "most": None}


def test_what_a_command_started_ends_with_it(tmp_path):
    """Also in a session of its own, and when its parent has ended well."""
    program = """
import subprocess, sys
for _ in range(2):
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"],
                             start_new_session=True)
    print(child.pid, flush=True)
"""
    ended = run_limited([sys.executable, "-S", "-c", program], seconds=20.0,
                        output=tmp_path / "out", errors=tmp_path / "err",
                        environment={})  # fmt: skip
    assert ended.exit_status == 0
    for pid in (tmp_path / "out").read_text().split():
        state = Path(f"/proc/{pid}/stat")
        # Who is dead may wait for its parent to look.
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_lines_are_kept_whole_from_the_end():
    text = "".join(f"line {n}\n" for n in range(100))
    kept = last_lines(text, 40)
    assert len(kept) <= 40
    assert kept.splitlines()[:2] == ["...", "line 96"]
    assert last_lines("short\n", 40) == "short"


def test_the_report_fits_on_a_screen_of_12000_characters(tmp_path):
    prints = "print('x' * 99 + chr(10)) or [print('y' * 80) for _ in range(400)]"
    failed = json.dumps([f"case {n} " + "z" * 500 for n in range(100)])
    loud = [replace(stage(f"loud-{n}", 0.8, prints), shown=9000) for n in range(3)]
    checks = stage("checks", 1.0, f"write(correct=False, failed={failed})", judges=True)
    runner, _ = run(tmp_path, *loud, checks)
    printed = report(runner)
    assert 9000 < len(printed) < 12_000
    assert "checks: case 0" in printed
    assert "and 80 more" in printed


def test_the_stages_of_a_run():
    assert [stage.name for stage in STAGES] == [
        "precompile", "smoke", "headlines", "steps", "launches", "tests", "rest", "picture",
    ]  # fmt: skip
    ends = [stage.end for stage in STAGES]
    assert ends == sorted(ends)
    assert ends[-1] < 1.0
    # Beside the summary and the log, with one place free of the seven.
    assert len({stage.record for stage in STAGES if stage.published}) + 2 <= 7
    assert [stage.name for stage in choose_stages(["tests", "smoke"], False)] == ["smoke", "tests"]
    for one in choose_stages(None, rehearse=True):
        assert ("--rehearse" in one.command) == (one.name != "picture")


def test_without_a_device_it_refuses(tmp_path):
    """And has no PyTorch in the process that keeps the time."""
    program = (
        "import sys; from benchmarks import gpu; status = gpu.main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert ended.returncode == gpu.REFUSED, ended.stderr
    assert "no CUDA device here" in ended.stdout
    assert not (tmp_path / "out").exists()


def test_stopped_from_outside_it_stops_its_stage_and_keeps_the_figures(tmp_path):
    program = f"""
import sys
from benchmarks import gpu
from benchmarks._gpu.stages import Stage
import signal
command = (sys.executable, "-S", "-c", sys.argv[1], "{{folder}}")
gpu._describe = lambda *_: {{}}
gpu.choose_stages = lambda *_: [Stage("slow", 1.0, command, "slow.json", "slow")]
signal.signal(signal.SIGTERM, gpu._stop)
sys.exit(gpu.main(["--out", {str(tmp_path / "out")!r}, "--budget", "60"]))
"""
    writes = "import os, sys, time; print(os.getpid(), flush=True)\n"
    writes += "open(sys.argv[1] + '/slow.json', 'w').write('{{\"rows\": 1}}'); time.sleep(60)"
    running = subprocess.Popen(
        [sys.executable, "-c", program, writes],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
    )
    deadline = time.monotonic() + 20
    while not (tmp_path / "out" / "slow.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    running.terminate()
    assert running.wait(timeout=10) == 143
    assert published(tmp_path, "slow")["rows"] == 1
    pid = (tmp_path / "out" / "gpu.log").read_text().split()[2]
    assert not Path(f"/proc/{pid}/cwd").exists()
    assert names_in(tmp_path) == ["out"]
