"""The runner of the GPU stages: no stage takes another's figures, and the budget is kept."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks._gpu.process import run_limited
from benchmarks._gpu.runner import DONE, FAILED, NO_TIME, TIMED_OUT, Runner, Stage
from benchmarks.gpu import STAGES, first_lines, report

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


def stage(name, end, program, *, record=None, **options):
    """A stage that runs a program, which has `write` for its record."""
    record = record or f"{name}.json"
    lines = WRITES.replace("{path!r}", f"os.path.join(sys.argv[1], {record!r})") + program
    return ProgramStage(name, end, (lines,), record, **options)


class ProgramStage(Stage):
    """A stage whose command is a program."""

    def arguments(self, folder, budget, rehearse, is_restart):
        given = [str(folder), f"{budget:.1f}", *(["--resume"] * is_restart)]
        return [sys.executable, "-S", "-c", *self.command, *given]


def run(tmp_path, *stages, budget=20.0, **options):
    """Run stages; returns the runner and the summary that it wrote."""
    runner = Runner(stages, tmp_path / "out", tmp_path / "work", budget, began=time.monotonic(),
                    environment={"card": "a card"}, variables={}, **options)  # fmt: skip
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
        assert record["run"]["stages"] == {name: summary["stages"][name]["status"]}
    assert names_in(tmp_path / "out") == [
        "checks.json", "fails.json", "gpu.log", "hangs.json", "last.json", "measures.json",
        "overruns.json", "summary.json",
    ]  # fmt: skip
    printed = report(runner)
    assert "fails: failed; broken" in printed


def test_the_budget_is_kept_where_every_stage_hangs(tmp_path):
    start = time.monotonic()
    hanging = [stage(name, end, CLINGS) for name, end in (("first", 0.35), ("last", 1.0))]
    _, summary = run(tmp_path, *hanging, budget=4.0)
    assert time.monotonic() - start < 4.0 + 5.0
    assert [one["status"] for one in summary["stages"].values()] == [TIMED_OUT, TIMED_OUT]


def test_a_stage_without_time_is_not_started(tmp_path):
    _, summary = run(tmp_path, stage("late", 0.01, MEASURES), stage("next", 1.0, MEASURES))
    assert summary["stages"]["late"]["status"] == NO_TIME
    assert summary["stages"]["next"]["status"] == DONE
    assert "late.json" not in names_in(tmp_path / "out")


def test_time_that_is_left_over_goes_to_the_next_stage(tmp_path):
    tells = "write(budget=float(sys.argv[2]))"
    run(tmp_path, stage("first", 0.5, tells), stage("second", 1.0, tells), budget=40.0)
    # Of 20 seconds and of nearly 40, but for the three in which a stage ends in order.
    assert 14.0 < published(tmp_path, "first")["budget"] <= 17.0
    assert 31.0 < published(tmp_path, "second")["budget"] <= 37.0


def test_a_slow_start_costs_every_stage_the_same_share(tmp_path):
    tells = "write(budget=float(sys.argv[2]))"
    began = time.monotonic() - 40
    runner = Runner([stage("first", 0.5, tells)], tmp_path / "out", tmp_path / "work", 60.0,
                    began=began, environment={}, variables={})  # fmt: skip
    runner.run()
    # Half of the 20 seconds that were left, but for the two in which a stage ends in order.
    assert 7.5 < published(tmp_path, "first")["budget"] <= 8.0
    assert published(tmp_path, "summary")["seconds_before_stages"] == pytest.approx(40, abs=0.5)


def test_figures_come_out_while_a_stage_runs(tmp_path):
    seen = []
    writes = "write(rows=1); time.sleep(2.5); write(rows=2)"
    runner = Runner([stage("slow", 1.0, writes)], tmp_path / "out", tmp_path / "work", 20.0,
                    began=time.monotonic(), environment={}, variables={})  # fmt: skip
    publish = runner.publish

    def watched():
        publish()
        seen.append(published(tmp_path, "slow"))

    runner.publish = watched
    runner.run()
    assert [seen[0]["rows"], seen[-1]["rows"]] == [1, 2]
    assert [one["run"]["stages"] for one in (seen[0], seen[-1])] == [
        {"slow": "not done"},
        {"slow": DONE},
    ]


def test_a_record_that_breaks_off_replaces_no_whole_one(tmp_path):
    breaks = "write(rows=1); time.sleep(1.3); open(sys.argv[1] + '/one.json', 'w').write('{');"
    run(tmp_path, stage("one", 0.9, breaks + "time.sleep(60)"), budget=3.0)
    assert published(tmp_path, "one")["rows"] == 1


def test_a_crashed_stage_starts_again_where_it_was(tmp_path):
    program = """
rows = json.load(open(sys.argv[1] + "/shared.json"))["rows"] if "--resume" in sys.argv else 0
write(rows=rows + 1)
sys.exit(3 if rows < 2 else 0)
"""
    headlines = stage("headlines", 0.5, program, record="shared.json")
    headlines = headlines._replace(resumes=True)
    resumed = headlines.command[0].replace('if "--resume" in sys.argv', "if True")
    rest = headlines._replace(name="rest", end=1.0, command=(resumed,))
    _, summary = run(tmp_path, headlines, rest)
    assert summary["stages"]["headlines"]["restarts"] == 2
    assert summary["stages"]["headlines"]["status"] == DONE
    record = published(tmp_path, "shared")
    assert record["rows"] == 4
    assert record["run"]["stages"] == {"headlines": DONE, "rest": DONE}


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
    assert record["correct"] is correct
    assert (record["run"]["correct"], record["run"]["failed"]) == (correct, failed)
    assert summary["stages"]["smoke"]["record"].get("correct") in (True, False)


def test_a_stage_that_finds_faults_is_done(tmp_path):
    finds = "write(correct=False, failed=['a']); sys.exit(1)"
    _, summary = run(tmp_path, stage("tests", 1.0, finds, judges=True, resumes=True))
    assert summary["stages"]["tests"]["status"] == DONE
    assert summary["complete"] is True


def test_what_figures_say_of_themselves_counts_only_against_them(tmp_path):
    """Of a record that two stages write once."""
    right, wrong = "write(correct=True)", "write(correct=False)"
    hot_path = stage("headlines", 0.4, wrong, record="hot_path.json")
    rest = hot_path._replace(name="rest", end=1.0)
    _, summary = run(tmp_path, stage("smoke", 0.2, CHECKS, judges=True), hot_path, rest)
    assert (summary["correct"], summary["failed"]) == (False, ["headlines: correct is false"])
    assert published(tmp_path, "hot_path")["correct"] is False
    _, summary = run(tmp_path, stage("figures", 1.0, right))
    assert summary["correct"] is None


def test_no_check_is_no_verdict(tmp_path):
    runner, _ = run(tmp_path, stage("figures", 1.0, "write(correct=True)"))
    assert runner.verdict() == (None, [])


def test_nan_becomes_null(tmp_path):
    run(tmp_path, stage("a", 1.0, "write(rows=[float('nan'), 1.0], most=float('inf'))"))
    found = published(tmp_path, "a")
    assert (found["rows"], found["most"]) == ([None, 1.0], None)


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
                        log=tmp_path / "out", environment={})  # fmt: skip
    assert ended.exit_status == 0
    for pid in (tmp_path / "out").read_text().split():
        state = Path(f"/proc/{pid}/stat")
        # Who is dead may wait for its parent to look.
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_lines_are_kept_whole_from_the_start():
    kept = first_lines("".join(f"line {n}\n" for n in range(100)), 40)
    assert len(kept) <= 40
    assert kept.splitlines()[-2:] == ["line 4", "..."]
    assert first_lines("short", 40) == "short"


def hot_path_rows(count):
    figures = {
        "info_nce": {"seconds": 0.0012345, "of_square": 0.4},
        "unit length replayed": {"seconds": 0.0007, "of_square": 0.579},
        "dense": {"status": "out of memory"},
        "flex": {"status": "failed: RuntimeError: " + "no " * 200},
    }
    return [
        {"mode": "bf16", "anchors": 1024, "entries": 190_000 + n, "dim": 256, "classes": 19,
         "note": None, "correct": n != 1, "measured": figures} for n in range(count)
    ]  # fmt: skip


def test_the_report_shows_the_figures_and_fits_on_a_screen_of_12000_characters(tmp_path):
    steps = [
        {"name": "cityscapes", "case": "bank", "note": None,
         "measured": {"step": {"seconds": 0.002}, "replayed": {"seconds": 0.001}}},
        {"name": "cityscapes", "case": "batch", "note": "no time left", "measured": {}},
    ]  # fmt: skip
    counts = {"waits": 0, "launches": 351, "extra_mb": 812.3}
    profiled = [{"name": "cityscapes", "case": "bank", "measured": {"step": counts}}]
    failed = [f"case {n} " + "z" * 500 for n in range(100)]
    runner, _ = run(
        tmp_path,
        stage("headlines", 0.4, f"write(rows={hot_path_rows(81)})"),
        stage("steps", 0.5, f"write(steps={steps})"),
        stage("launches", 0.6, f"write(steps={profiled})"),
        stage("tests", 1.0, f"write(correct=False, failed={failed}, passed=12)", judges=True),
    )
    printed = report(runner)
    assert len(printed) < 12_000
    lines = printed.splitlines()
    first = next(line for line in lines if line.startswith("bf16 1024 x 190000 x 256"))
    assert first.split()[6:] == ["ms", "1.234", "0.700", "failed", "failed"]
    assert lines[lines.index(first) + 1].split() == ["of", "square", *["0.40", "0.58", "failed"],
                                                     "failed"]  # fmt: skip
    assert [line.split()[3] for line in lines if line.endswith("WRONG")] == ["190001"]
    step = next(number for number, line in enumerate(lines) if line.startswith("cityscapes, bank"))
    assert lines[step].split()[2:] == ["ms", "2.000", "1.000"]
    counted = [line.split() for line in lines if line.startswith("cityscapes, bank   ")][1]
    assert counted[2:] == ["waits", "0"]
    assert any(line.split() == ["launches", "351"] for line in lines)
    assert "  cityscapes, batch: no time left" in lines
    assert "tests: 12 passed, 100 failed" in lines
    assert "and 80 more, see the records" in printed
    assert lines[-4].split()[:2] == ["headlines", "done"]
    assert lines[-5].startswith("(start)")


def test_a_record_of_another_form_costs_only_its_table(tmp_path):
    runner, _ = run(tmp_path, stage("headlines", 1.0, "write(rows=[{}])"))
    assert "headlines: no table" in report(runner)
    assert "correct: not known" in report(runner)


def test_the_stages_of_a_run():
    assert [stage.name for stage in STAGES] == [
        "smoke", "headlines", "steps", "launches", "tests", "rest",
    ]  # fmt: skip
    ends = [stage.end for stage in STAGES]
    assert ends == sorted(ends)
    assert ends[-1] < 1.0
    # Beside the summary and the log, with one place free of the seven.
    assert len({stage.record for stage in STAGES if stage.published}) + 2 <= 7


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
from benchmarks._gpu.runner import Stage
import signal
class Slow(Stage):
    def arguments(self, folder, *_):
        return [sys.executable, "-S", "-c", sys.argv[1], str(folder)]
gpu._describe = lambda *_: {{}}
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
    assert published(tmp_path, "slow")["rows"] == 1
    pid = (tmp_path / "out" / "gpu.log").read_text().split()[2]
    assert not Path(f"/proc/{pid}/cwd").exists()
    assert names_in(tmp_path) == ["out"]
