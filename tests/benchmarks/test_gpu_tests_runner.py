"""The runner of the GPU tests: outcomes, limits, and a rehearsal."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks._gpu import run_tests


@pytest.mark.parametrize(
    ("outcomes", "correct"),
    [
        ({"a": "passed", "b": "passed", "c": "passed"}, True),
        ({"a": "passed", "b": "skipped", "c": "failed"}, True),
        ({"a": "passed", "b": "passed"}, True),
        ({"a": "passed", "c": "passed"}, None),
        ({"a": "skipped", "b": "skipped"}, None),
        ({"a": "passed", "b": "failed"}, False),
        ({"b": "failed"}, False),
    ],
)
def test_what_is_correct(outcomes, correct, tmp_path):
    recorder = run_tests.Recorder(tmp_path / "tests_gpu.json")
    recorder.tests, recorder.ungated = ["a", "b", "c"], tmp_path / "ungated.json"
    recorder.ungated.write_text('["c"]')
    recorder.outcomes = {test: (outcome, "no") for test, outcome in outcomes.items()}
    record = recorder.write()
    assert json.loads((tmp_path / "tests_gpu.json").read_text()) == record
    assert record["correct"] is correct
    assert record["failed"] == [test for test in ("a", "b") if outcomes.get(test) == "failed"]
    assert record["ungated"]["passed"] == (outcomes.get("c") == "passed")


TESTS = """
import os, signal, time
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2
@pytest.mark.skipif(True, reason="not here")
def test_is_skipped(): pass
def test_hangs(): signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}); time.sleep(60)
def test_crashes(): os.kill(os.getpid(), signal.SIGSEGV)
def test_is_last(): pass
@pytest.mark.ungated("a group")
def test_decides_nothing(): pass
"""


def named(*names):
    return [f"test_strange.py::test_{name}" for name in names]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_tests_that_hang_or_crash_cost_only_themselves(tmp_path):
    """The outcomes are written while tests run, in processes of their own."""
    (tmp_path / "test_strange.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = ungated\n")
    program = f"""
from pathlib import Path
from benchmarks._gpu import run_tests
run_tests.TEST_SECONDS = 3
run_tests.PYTEST = (*run_tests.PYTEST[2:], "--rootdir", {str(tmp_path)!r})
recorder = run_tests.Recorder(Path({str(tmp_path / "record.json")!r}))
run_tests.run_tests(recorder, 2, [{str(tmp_path)!r}])
recorder.write()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                           check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["passed"] == 2, ended.stdout
    assert sorted(record["failed"]) == sorted(named("fails", "crashes"))
    assert "1 == 2" in record["why"][named("fails")[0]]
    assert "crashed" in record["why"][named("crashes")[0]]
    assert record["skipped"] == {"not here": 1}
    assert record["unfinished"] == named("hangs")
    assert record["ungated"]["passed"] == 1
    assert record["correct"] is False


def test_the_budget_ends_everything(tmp_path):
    command = [sys.executable, "-m", "benchmarks._gpu.run_tests", "--out", str(tmp_path)]
    start = time.monotonic()
    ended = subprocess.run(
        [*command, "--budget", "4", "--processes", "1", "--rehearse"],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - start < 30
    record = json.loads((tmp_path / "tests_gpu.json").read_text())
    assert record["correct"] is None
    assert record["failed"] == []


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_rehearsal_from_the_command_line(tmp_path):
    out = tmp_path / "tests_gpu.json"
    command = [sys.executable, "-m", "benchmarks._gpu.run_tests", "--out", str(tmp_path)]
    ended = subprocess.run(
        [*command, "--budget", "500", "--processes", "1", "--rehearse"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    record = json.loads(out.read_text())
    assert ended.returncode == 0, (ended.stderr, record)
    assert record["correct"] is True, record
    assert record["passed"] > 5
    assert record["ungated"]["passed"] == 1
