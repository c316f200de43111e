"""The runner of the GPU tests: packing, outcomes, limits, and a rehearsal."""

import json
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest

from benchmarks._gpu import run_tests
from benchmarks._gpu.outcomes import describe_memcheck, judge_tests, read_outcomes
from benchmarks._gpu.packing import count_compilations, pack
from benchmarks._gpu.process import Ended

NONE, FIRST, SECOND = frozenset(), frozenset("abcd"), frozenset("wxyz")


def test_tests_that_share_kernels_stay_together():
    kernels = {"1": FIRST, "2": SECOND, "3": FIRST - {"a"}, "4": SECOND - {"w"}, "5": FIRST}
    packed = pack(kernels, 2)
    assert sorted(packed) == [["1", "3", "5"], ["2", "4"]]
    assert count_compilations(packed, kernels) == [4, 4]


@pytest.mark.parametrize("processes", [1, 3, 14, 100])
def test_every_test_is_packed_once(processes):
    kernels = {f"{n}": frozenset(map(str, range(n % 7, n % 7 + n % 5))) for n in range(60)}
    packed = pack(kernels, processes)
    assert len(packed) == processes
    assert sorted(chain(*packed)) == sorted(kernels)
    for tests in packed:
        assert tests == [test for test in kernels if test in tests]


def test_loads_are_even_where_nothing_is_shared():
    kernels = {f"{n}": frozenset((f"{n}", f"-{n}")) for n in range(24)}
    assert count_compilations(pack(kernels, 4), kernels) == [12] * 4
    without = dict.fromkeys(kernels, NONE)
    assert [len(tests) for tests in pack(without, 4)] == [6] * 4


def plan_of(**groups):
    return {
        test: {"kernels": [], "ungated": group, "large_memory": False}
        for test, group in groups.items()
    }


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
    record = judge_tests(plan_of(a=None, b=None, c="ranks"), True, outcomes, memcheck)
    assert record["correct"] is correct
    assert set(record["failed"]) == {
        *(test for test in ("a", "b") if outcomes.get(test) == FAIL),
        *(["memcheck"] if memcheck.startswith("found") else []),
    }
    assert record["ungated"]["ranks"]["passed"] == (outcomes.get("c") == PASS)
    if correct:
        partly = judge_tests(plan_of(a=None, b=None, c="ranks"), False, outcomes, memcheck)
        assert partly["correct"] is None


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
"""


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A run over tests that fail, hang and crash, with a short limit for each."""
    (tmp_path / "test_strange.py").write_text(TESTS)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "TEST_SECONDS", 3.0)
    monkeypatch.setattr(run_tests, "PYTEST", (*run_tests.PYTEST, "-o", "markers=", "-m", ""))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))

    def run(budget):
        work = tmp_path / "work"
        work.mkdir()
        made = run_tests.TestRun(work, time.monotonic() + budget, 1, rehearse=True)
        names = "passes", "fails", "is_skipped", "hangs", "crashes", "is_last"
        tests = [f"test_strange.py::test_{name}" for name in names]
        made.plan = {
            test: {"kernels": [], "ungated": None, "large_memory": False} for test in tests
        }
        made.plan_is_whole = True
        made._run_list("tests-0", tests)
        return made, tests

    return run


@pytest.mark.long
@pytest.mark.timeout(300)
def test_tests_that_hang_or_crash_cost_only_themselves(strange):
    made, tests = strange(budget=200)
    record = made.record()
    assert record["passed"] == 2
    assert record["failed"] == [tests[1], tests[4]]
    assert "1 == 2" in record["why"][tests[1]]
    assert record["why"][tests[4]] == "the process was ended by signal 11"
    assert record["skipped"] == {"not here": 1}
    assert record["unfinished"] == [tests[3]]
    assert record["correct"] is False


def test_the_budget_ends_everything(strange):
    start = time.monotonic()
    made, tests = strange(budget=0.5)
    assert time.monotonic() - start < 4
    record = made.record()
    # The first tests may have ended in time; the one that hangs cannot.
    assert tests[3] in record["unfinished"]
    assert tests[3] not in record["failed"]
    assert record["correct"] is not True


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "some.outcomes"
    path.write_text('{"test": "a"}\n{"test": "a", "outcome": "passed"}\n{"test": "b"}\n{"tes')
    assert read_outcomes(path) == {"a": {"test": "a", "outcome": "passed"}, "b": {"test": "b"}}
    assert read_outcomes(tmp_path / "none") == {}


def test_the_cases_for_memcheck_run(capsys):
    from benchmarks._gpu import memcheck_cases

    memcheck_cases.main("cpu", "tiled")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(memcheck_cases.CASES)
    assert "nan" not in "".join(printed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_rehearsal_from_the_command_line(tmp_path):
    out = tmp_path / "tests_gpu.json"
    command = [sys.executable, "-m", "benchmarks._gpu.run_tests", "--out", str(out)]
    ended = subprocess.run(
        [*command, "--budget", "500", "--processes", "1", "--rehearse"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    record = json.loads(out.read_text())
    assert ended.returncode == 0, (ended.stderr, record)
    assert record["correct"] is True, record
    assert record["passed"] > 5
    assert record["kernels"] > 0
    assert record["problems"] == []
    assert record["ungated"]["opcheck"]["passed"] == 1
    assert "tests: correct" in ended.stdout
