"""The scripts for a GPU, on the CPU: what they write, what they refuse, and what fails in them."""

import itertools
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import (
    cuda_timing,
    gpu,
    gpu_checks,
    gpu_hot_path,
    gpu_ways,
    hot_path,
    sanitizer_cases,
    shard,
)
from benchmarks.cuda_timing import DeviceLostError, measure
from benchmarks.gpu_cases import HEADLINES, choose_cases
from benchmarks.gpu_checks import Verdict
from benchmarks.gpu_rates import problem_products
from benchmarks.gpu_ways import MODES, WAYS, Case, Drawn
from benchmarks.processes import Command, Ended, run_together

CPU = torch.device("cpu")
ON_CPU = ["--device", "cpu", "--fused", "tiled", "--square", "32", "--copied", "4096"]
QUICK = [*ON_CPU, "--repeats", "2", "--ways", *(way for way in WAYS if way != "compiled")]
CASES = ["--cases", "40x300x16x4", "32xitselfx16x4"]


def run_hot_path(folder, *options):
    status = gpu_hot_path.main([*QUICK, *CASES, "--out", str(folder), *options])
    return status, json.loads((folder / "hot_path_gpu.json").read_text())


def test_hot_path_of_a_gpu_from_the_command_line(tmp_path, capsys):
    status, record = run_hot_path(tmp_path, "--modes", "bf16", "float32", "--commit", "abc")
    assert status == 0
    assert record["environment"]["card"] is None
    assert record["copy_gb_per_second"] > 0
    rows = record["rows"]
    assert [(row["mode"], row["entries"]) for row in rows] == [
        (mode, entries) for mode in ("bf16", "float32") for entries in (300, None)
    ]
    for row in rows:
        flops = 4 * 40 * 300 * 16 if row["entries"] else 6 * 32 * 32 * 16
        assert row["flops"] == flops
        measured = row["measured"]
        expected = {"square", "products", "fused", "tiled", "dense", "authors"}
        assert set(measured) == expected | (
            {"authors autocast"} if row["mode"] == "bf16" else set()
        )
        fused = measured["fused"]["both"]["seconds"]
        square = 2 * 32**3 / measured["square"]["both"]["seconds"] / 1e12
        for way in expected - {"square", "products"}:
            parts = measured[way]
            seconds = parts["both"]["seconds"]
            assert parts["forward"]["seconds"] > 0
            assert parts["both"]["samples"] == 2
            assert parts["both"]["extra_mb"] >= 0
            assert parts["tflops"] == pytest.approx(flops / seconds / 1e12)
            assert parts["of_square"] == pytest.approx(parts["tflops"] / square)
            assert parts["to_fused"] == pytest.approx(seconds / fused)
    printed = capsys.readouterr().out
    assert "bf16, 40 x 300 x 16" in printed
    assert "float32, 32 x itself x 16" in printed


@pytest.mark.parametrize("entries", [200, None])
def test_all_ways_of_a_gpu_make_the_same_gradient(entries):
    case = Case("bf16", 30, entries, 16, 4)
    drawn = Drawn.draw(case, CPU)
    made = gpu_ways.ways(case, drawn, fused="tiled")
    truth = gpu_ways.ways(case, drawn.in_float32(), fused="dense")["fused"]().both()[0]
    for name in WAYS:
        if name != "compiled":
            (gradient,) = made[name]().both()
            assert (gradient - truth).abs().max() < 0.02 * truth.abs().max(), name
            assert made[name]().forward().requires_grad is False


def test_products_are_those_of_the_problem(monkeypatch):
    case = Case("float32", 6, 50, 4)
    drawn = Drawn.draw(case, CPU)
    seen, mm = [], torch.mm
    monkeypatch.setattr("benchmarks.gpu_rates.MOST_ELEMENTS", 6 * 20)
    run = problem_products(drawn)
    monkeypatch.setattr(
        torch, "mm", lambda a, b, out: seen.append(2 * a.numel() * b.shape[1]) or mm(a, b, out=out)
    )
    run()
    assert sum(seen) == 4 * 6 * 50 * 4
    assert len(seen) == 6


def test_cases_come_in_an_order_that_bears_a_budget():
    cases = choose_cases(None, list(MODES))
    assert len(cases) == 81
    assert [case for case, is_headline in cases.items() if is_headline] == list(cases)[:6]
    assert [(c.mode, c.anchors, c.entries, c.dim) for c in list(cases)[:6]] == list(HEADLINES)
    work = [case.similarities * case.dim for case in list(cases)[6:]]
    assert work == sorted(work)


def test_what_runs_out_of_memory_is_said_and_the_rest_is_measured(tmp_path, capsys, monkeypatch):
    def exhaust(*_):
        raise torch.cuda.OutOfMemoryError("tried to allocate 65.54 GiB")

    def fail(*_):
        raise ValueError("wrong\nand more")

    monkeypatch.setattr(gpu_ways, "textbook", exhaust)
    monkeypatch.setattr(gpu_ways, "authors", fail)
    status, record = run_hot_path(tmp_path, "--modes", "float32")
    assert status == 0
    for row in record["rows"]:
        assert row["measured"]["dense"]["both"] == {"status": "out of memory"}
        assert row["measured"]["authors"]["both"] == {"status": "failed: ValueError: wrong"}
        assert row["measured"]["tiled"]["both"]["seconds"] > 0
    printed = capsys.readouterr().out
    assert printed.count("out of memory") == printed.count("failed: ValueError: wrong") == 2


def test_an_error_between_good_runs_costs_only_its_own_way():
    runs = itertools.count()

    def sometimes():
        if next(runs) == 5:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    found = measure({"odd": sometimes, "good": lambda: None}, 3, CPU)
    assert found["odd"] == {"status": "out of memory"}
    assert found["good"]["samples"] == 3


def test_a_lost_device_ends_the_process_and_another_goes_on(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def lose(device):
        raise DeviceLostError("an illegal memory access")

    with monkeypatch.context() as patched:
        patched.setattr(gpu_ways, "textbook", fail)
        patched.setattr(cuda_timing, "release", lose)
        status, record = run_hot_path(tmp_path, "--modes", "float32")
    assert status == gpu_hot_path.DEVICE_LOST
    (row,) = record["rows"]
    assert "illegal" in row["note"]
    assert "illegal" in row["measured"]["dense"]["forward"]["status"]
    status, record = run_hot_path(tmp_path, "--modes", "float32", "--resume")
    assert status == 0
    assert [row["entries"] for row in record["rows"]] == [300, None]
    assert record["rows"][0] == row
    assert record["rows"][1]["note"] is None
    assert record["resumed"] == 1


def test_nothing_is_begun_after_the_budget(tmp_path):
    status, record = run_hot_path(tmp_path, "--modes", "bf16", "--budget", "-1")
    assert status == 0
    assert [(row["note"], row["measured"]) for row in record["rows"]] == 2 * [("no time left", {})]
    _, record = run_hot_path(tmp_path, "--modes", "bf16", "--resume")
    assert [row["note"] for row in record["rows"]] == [None, None]


def test_ways_after_the_deadline_are_not_begun():
    found = measure({"one": lambda: None}, 3, CPU, deadline=cuda_timing.now() - 1)
    assert found == {"one": {"status": "no time left"}}


def test_what_takes_long_is_sampled_twice(monkeypatch):
    monkeypatch.setattr(cuda_timing, "SLOW_SECONDS", -1.0)
    calls = []
    found = measure({"slow": lambda: calls.append(1)}, 5, CPU)
    assert found["slow"]["samples"] == 2
    assert len(calls) == 4


def test_matrices_too_large_to_try_are_skipped(tmp_path, monkeypatch):
    class Card:
        total_memory = 80e9

    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "get_device_properties", lambda device: Card)
        too_much = [
            gpu_hot_path._holds_too_much(Case("bf16", anchors, 1_000_000, 64), torch.device("cuda"))
            for anchors in (1024, 4096, 16384)
        ]
    assert too_much == [False, False, True]
    monkeypatch.setattr(gpu_hot_path, "_holds_too_much", lambda case, device: True)
    _, record = run_hot_path(tmp_path, "--modes", "bf16")
    for way in ("dense", "authors", "authors autocast"):
        assert record["rows"][0]["measured"][way]["both"]["status"].startswith("skipped")
    assert record["rows"][0]["measured"]["fused"]["both"]["seconds"] > 0


def test_without_a_device_they_refuse(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "new")]) == 2
    assert "no CUDA device here" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit) as refused:
        hot_path.main(["--device", "cuda", "--modes", "bf16"])
    assert refused.value.code == 2
    assert "no CUDA device here" in capsys.readouterr().out


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
import benchmarks.gpu, benchmarks.gpu_hot_path, benchmarks.gpu_step, benchmarks.sanitizer_cases
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_all_of_it_on_the_cpu(tmp_path, capsys, monkeypatch):
    """The tests that need a GPU, some of them and with the tiled form, and then the figures."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-k 'bits_twice and not 16'")
    options = ["--out", str(tmp_path), "--processes", "1", "--minutes", "2"]
    status = gpu.main(
        [*options, "--rehearse", *ON_CPU, "--ways", "fused", *CASES, "--modes", "bf16"]
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
