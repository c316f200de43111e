"""The runner of the GPU tests: sharing, outcomes, limits, and a rehearsal."""

import json
import subprocess
import sys
import time

import pytest

from benchmarks._gpu import run_tests
from benchmarks._gpu.process import Ended
from benchmarks._gpu.run_tests import describe_memcheck, judge_tests, read_outcomes

PASS, FAIL = {"outcome": "passed"}, {"outcome": "failed", "why": "assert 1 == 2"}
SKIP = {"outcome": "skipped", "why": "no"}
NO_ERRORS = "no errors after 3 s"


@pytest.mark.parametrize(
    ("outcomes", "memcheck", "correct"),
    [
        ({"a": PASS, "b": PASS, "c": PASS}, NO_ERRORS, True),
        ({"a": PASS, "b": SKIP, "c": FAIL}, "could not run (exit status 1): x", True),
        ({"a": PASS, "b": PASS}, "not finished", True),
        ({"a": PASS, "c": PASS}, NO_ERRORS, None),
        ({"a": PASS, "b": {}}, NO_ERRORS, None),
        ({"a": SKIP, "b": SKIP}, NO_ERRORS, None),
        ({"a": PASS, "b": FAIL}, NO_ERRORS, False),
        ({"b": FAIL}, NO_ERRORS, False),
        ({"a": PASS, "b": PASS}, "found errors: x", False),
    ],
)
def test_what_is_correct(outcomes, memcheck, correct):
    record = judge_tests({"a": None, "b": None, "c": "ranks"}, outcomes, memcheck)
    assert record["correct"] is correct
    assert set(record["failed"]) == {
        *(test for test in ("a", "b") if outcomes.get(test) == FAIL),
        *(["memcheck"] if memcheck.startswith("found") else []),
    }
    assert record["ungated"]["ranks"]["passed"] == (outcomes.get("c") == PASS)


@pytest.mark.parametrize(
    ("status", "log", "words"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "no errors"),
        (9, "========= Invalid read", "found errors: ========= Invalid read"),
        (1, "device not supported", "could not run (exit status 1): device not supported"),
        (0, "", "could not run"),
        (None, "", "not finished"),
    ],
)
def test_only_its_own_exit_status_is_an_error_of_memcheck(status, log, words):
    assert describe_memcheck(Ended(status, 3.0), log).startswith(words)


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


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A run over tests that fail, hang and crash, with a short limit for each."""
    (tmp_path / "test_strange.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    options = ("--rootdir", str(tmp_path), "-o", "markers=ungated", "-m", "")
    monkeypatch.setattr(run_tests, "TEST_SECONDS", 3.0)
    monkeypatch.setattr(run_tests, "PYTEST", (*run_tests.PYTEST, *options))
    work = tmp_path / "work"
    work.mkdir()

    def run(budget, processes=1):
        end = time.monotonic() + budget
        made = run_tests.TestRun(work, end, processes, [str(tmp_path)], rehearse=True)
        made.run()
        return made.record()

    return run


def named(*names):
    return [f"test_strange.py::test_{name}" for name in names]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [1, 2])
def test_tests_that_hang_or_crash_cost_only_themselves(strange, processes):
    record = strange(200, processes)
    assert record["passed"] == 2
    assert record["failed"] == named("fails", "crashes")
    assert "1 == 2" in record["why"][named("fails")[0]]
    assert record["why"][named("crashes")[0]] == "the process was ended by signal 11"
    assert record["skipped"] == {"not here": 1}
    assert record["unfinished"] == named("hangs")
    assert record["ungated"]["a group"]["passed"] == 1
    assert record["correct"] is False
    assert record["problems"] == []


def test_the_budget_ends_everything(strange):
    start = time.monotonic()
    record = strange(0.5)
    assert time.monotonic() - start < 4
    assert record["failed"] == []
    assert record["correct"] is not True


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "some.outcomes"
    path.write_text('{"test": "a"}\n{"test": "a", "outcome": "passed"}\n{"test": "b"}\n{"tes')
    assert read_outcomes(path) == {"a": {"test": "a", "outcome": "passed"}, "b": {"test": "b"}}
    assert read_outcomes(tmp_path / "none") == {}


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
    assert record["problems"] == []
    assert record["ungated"]["opcheck"]["passed"] == 1
    assert "tests: correct" in ended.stdout
