"""The scripts for a GPU, on the CPU: what they write, what they refuse, and what fails in them."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu, gpu_checks, sanitizer_cases, shard
from benchmarks.gpu_checks import Verdict
from benchmarks.processes import Command, Ended, run_together

ON_CPU = ["--rehearse", "--repeats", "2"]
CASES = ["--shapes", "40x304x16x4", "32xitselfx16x4"]


def test_without_a_device_they_refuse(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "new")]) == 2
    assert "no CUDA device here" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


DETAILS = {"passed": 9, "failed": 1, "failures": ["a::b"], "skipped": {"why": 2}, "shards": {},
           "sanitizer": {"memcheck": "compute-sanitizer is not there"}}  # fmt: skip


@pytest.mark.parametrize("anyway", [False, True])
def test_speed_is_not_measured_where_results_are_wrong(anyway, tmp_path, capsys, monkeypatch):
    measured = []
    monkeypatch.setattr(gpu_checks, "check", lambda *_: Verdict(False, DETAILS))
    monkeypatch.setattr(gpu, "_measure", lambda *_: measured.append(1) or "measured")
    monkeypatch.setattr(gpu, "_measure_steps", lambda *_: "measured")
    options = ["--out", str(tmp_path), *(["--anyway"] if anyway else []), "--rehearse", "x"]
    assert gpu.main(options) == gpu.RED
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["correctness"]["green"] is False
    assert summary["correctness"]["failures"] == ["a::b"]
    assert len(measured) == anyway
    assert (summary["speed"] == "measured") == anyway
    printed = capsys.readouterr().out
    assert "correctness: RED, 9 tests passed, 1 failed, 2 skipped" in printed
    assert "compute-sanitizer is not there" in printed


GREEN = {**DETAILS, "failed": 0, "failures": []}


@pytest.mark.parametrize(
    ("changes", "statuses", "expected"),
    [
        ({}, (0, 5), True),
        ({"failed": 1}, (0, 0), False),
        ({"passed": 0}, (5, 5), False),
        ({}, (0, 1), False),
        ({}, (0, None), False),
        ({"sanitizer": {"memcheck": "exit status 9 after 3 s"}}, (0, 0), False),
        ({"sanitizer": {"memcheck": "timed out after 3 s"}}, (0, 0), True),
    ],
)
def test_what_is_green(changes, statuses, expected):
    shards = [Ended(status, 1.0) for status in statuses]
    assert gpu_checks.is_green({**GREEN, **changes}, shards) == expected


def test_processes_share_a_deadline_and_keep_their_logs(tmp_path):
    def python(text):
        return Command((sys.executable, "-S", "-c", text), {"WORD": "here"})

    ended = run_together(
        {
            "good": python("import os; print(os.environ['WORD'])"),
            "bad": python("raise SystemExit(7)"),
            "slow": python("import time; print('begun', flush=True); time.sleep(60)"),
        },
        tmp_path,
        seconds=2.0,
    )
    assert {name: one.status for name, one in ended.items()} == {"good": 0, "bad": 7, "slow": None}
    assert (tmp_path / "good.log").read_text() == "here\n"
    assert (tmp_path / "slow.log").read_text() == "begun\n"
    assert ended["slow"].seconds < 10


def test_shards_are_all_the_tests_each_once():
    class Config:
        hook = type("Hook", (), {"pytest_deselected": staticmethod(lambda items: None)})

        def __init__(self, part):
            self.part = part

        def getoption(self, name):
            return self.part

    parts = []
    for number in range(3):
        items = list(range(100))
        shard.pytest_collection_modifyitems(Config(f"{number}/3"), items)
        assert items[:8] == list(range(8 * number, 8 * number + 8))
        parts += items
    assert sorted(parts) == list(range(100))


def test_the_cases_for_the_sanitizer_run(capsys, monkeypatch):
    monkeypatch.setattr(sanitizer_cases, "SIZES", ((9, 20, 3),))
    sanitizer_cases.main("cpu", "tiled")
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 8
    assert "nan" not in "".join(printed)


def test_nothing_is_imported_that_a_machine_with_a_gpu_may_lack():
    program = """
import sys
sys.modules.update(dict.fromkeys(["tqdm", "sklearn", "PIL", "matplotlib", "pytest_timeout"]))
import benchmarks.gpu, benchmarks.hot_path, benchmarks.step, benchmarks.sanitizer_cases
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_all_of_it_on_the_cpu(tmp_path, capsys, monkeypatch):
    """The tests that need a GPU, some of them and with the tiled form, and then the figures."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k 'bits_twice and not 16'")
    options = ["--out", str(tmp_path), "--processes", "1", "--minutes", "2"]
    status = gpu.main(
        [*options, "--rehearse", *ON_CPU, "--ways", "info_nce", *CASES, "--modes", "bf16"]
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    printed = capsys.readouterr().out
    assert status == 0, (summary, (tmp_path / "tests.log").read_text())
    assert summary["correctness"]["green"]
    assert summary["correctness"]["passed"] == 6
    assert summary["steps"] == "measured"
    assert summary["speed"] == "measured"
    assert summary["picture"] == "drawn"
    assert summary["environment"]["torch"] == torch.__version__
    assert (tmp_path / "hot_path_gpu.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "hot_path_gpu.json", "hot_path_gpu.png", "speed.log", "step_gpu.json", "steps.log",
        "summary.json", "tests.log",
    ]  # fmt: skip
    assert "correctness: green, 6 tests passed" in printed
    assert "bf16, 32 x itself x 16" in printed
    assert "small, bank" in printed
