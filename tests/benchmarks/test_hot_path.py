"""`benchmarks.hot_path`: cases, implementations, the check against the truth, and the record."""

import json
import subprocess
import sys
import warnings

import pytest
import torch

from benchmarks import host, hot_path
from benchmarks._measure import timers
from benchmarks._measure.command import DEVICE_LOST, REFUSED
from benchmarks._measure.device import measured_peak
from benchmarks._measure.timers import DeviceLostError
from benchmarks._ways import attention, formulas
from benchmarks._ways.problem import Case, Problem
from benchmarks._ways.ways import (
    CUDA_WAYS,
    UNCHECKED,
    floor_products,
    flops_of,
    make_runs,
    square_product,
    way_of,
)

CPU = torch.device("cpu")
MEANS = {"backend": "tiled", "compiler": lambda function: function, "square": 32}
REHEARSAL = ["--rehearse", "--repeats", "2"]
SHAPES = ["--shapes", "40x304x16x4", "32xitselfx16x4"]
BANK = ["--shapes", "40x304x16x4"]
OURS = ["--ways", "info_nce", "unit length"]
ON_CPU = ("floor", "tiled", "mined", "dense", "authors")  # compiling takes seconds

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def run_hot_path(folder, *options, ways=("--ways", "tiled"), shapes=SHAPES):
    given = [*REHEARSAL, *shapes, *ways, "--no-memory", "--out", str(folder), *options]
    status = hot_path.main(given)
    return status, json.loads((folder / "hot_path_gpu.json").read_text())


def test_hot_path_on_the_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hot_path, "MOST_SIMILARITIES", 23_999)
    shapes = ["--shapes", "40x300x16x4", "80x300x16x4", "40x600x16x4"]
    options = [*shapes, "--ways", *ON_CPU, "--repeats", "2", "--no-memory"]
    assert hot_path.main([*options, "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "hot_path.json").read_text())["rows"]
    assert [(row["anchors"], row["entries"]) for row in rows] == [(40, 300), (80, 300), (40, 600)]
    for row in rows:
        few = row["anchors"] * row["entries"] < 24_000
        assert set(row["measured"]) == set(ON_CPU if few else ON_CPU[:2])
        assert row["skipped"] == {}
        assert row["note"] is None
        for one in row["measured"].values():
            for reference in ("floor", "tiled"):
                expected = one["seconds"] / row["measured"][reference]["seconds"]
                assert one[f"to_{reference}"] == pytest.approx(expected)
            assert one["extra_mb"] is None
    assert "x floor" in capsys.readouterr().out


def test_hot_path_in_a_rehearsal_of_a_gpu(tmp_path, capsys):
    status = hot_path.main(
        [
            *REHEARSAL,
            *SHAPES,
            "--modes",
            "bf16",
            "float32",
            "--out",
            str(tmp_path),
        ]
    )
    record = json.loads((tmp_path / "hot_path_gpu.json").read_text())
    assert status == 0
    assert record["environment"]["card"] is None
    assert record["correct"] is True
    rows = record["rows"]
    assert [(row["mode"], row["entries"]) for row in rows] == [
        (mode, entries) for mode in ("bf16", "float32") for entries in (304, None)
    ]
    for row in rows:
        flops = 4 * 40 * 304 * 16 if row["entries"] else 6 * 32 * 32 * 16
        assert row["flops"] == flops
        measured = row["measured"]
        assert row["correct"] is True
        assert {way_of(name) for name in measured} == set(CUDA_WAYS)
        ours = measured["info_nce"]["seconds"]
        square = 2 * 32**3 / measured["square"]["seconds"] / 1e12
        for name, one in measured.items():
            if name in ("square", "floor"):
                assert one["extra_mb"] is None
                continue
            if name == "flex" or "replayed" in name:
                assert "CPU" in one["status"] or "CUDA graph" in one["status"]
                continue
            assert one["samples"] == 2
            assert one["extra_mb"] >= 0
            if name != "compiled":  # It was timed beside an earlier run of ours.
                assert one["to_info_nce"] == pytest.approx(one["seconds"] / ours)
            assert ("error" in one) == (way_of(name) not in UNCHECKED)
            assert one.get("correct", True) is True
            assert one["tflops"] == pytest.approx(flops / one["seconds"] / 1e12)
            assert one["of_square"] == pytest.approx(one["tflops"] / square)
    printed = capsys.readouterr().out
    assert "bf16, 40 x 304 x 16" in printed
    assert "float32, 32 x itself x 16" in printed


@pytest.mark.parametrize("entries", [200, None])
def test_all_implementations_make_the_same_loss_and_gradient(entries):
    case = Case("float32", 30, entries, 16, 4)
    problem = Problem.draw(case, CPU)
    runs = make_runs(case, problem, CUDA_WAYS, replays=True, **MEANS)
    leaf = problem.to(torch.float64)
    loss = formulas.our_loss(leaf.anchors, leaf.anchor_labels, leaf.entries, leaf.entry_labels,
                             backend="dense")  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, leaf.anchors)
    for name, run in runs.items():
        if way_of(name) in UNCHECKED or name == "flex" or "replayed" in name:
            continue
        found = run()
        torch.testing.assert_close(found[0].double(), loss.detach(), rtol=1e-5, atol=0)
        torch.testing.assert_close(found[1].double(), gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("entries", [200, None])
@pytest.mark.parametrize("rows_at_a_time", [7, 1000])
def test_the_truth_is_the_textbook_formula_in_float64(entries, rows_at_a_time, monkeypatch):
    problem = Problem.draw(Case("bf16", 30, entries, 16, 4), CPU)
    monkeypatch.setattr(formulas, "MOST_ELEMENTS", rows_at_a_time * (entries or 30))
    truth = formulas.truth_of(problem)
    leaf = problem.to(torch.float64)
    loss = formulas.our_loss(leaf.anchors, leaf.anchor_labels, leaf.entries, leaf.entry_labels,
                             backend="dense")  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, leaf.anchors)
    torch.testing.assert_close(truth[0], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(truth[1], gradient, rtol=1e-10, atol=1e-15)
    assert formulas.relative_error((truth[0], 1.5 * truth[1]), truth) == pytest.approx(0.5)
    assert formulas.relative_error((truth[0] * torch.nan, truth[1]), truth) == float("inf")


@pytest.mark.parametrize("entries", [2 * 640, None])
def test_flex_attention_makes_the_loss_and_the_gradient(entries, monkeypatch):
    # Its uncompiled form can differentiate on the CPU, but is not offered there.
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    if not hasattr(flex, "AuxRequest"):
        pytest.skip("needs PyTorch 2.9")
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    problem = Problem.draw(Case("float32", 300, entries, 16, 4), CPU)
    loss = attention.FlexLoss(problem, lambda function: function)
    assert loss.heads > 1
    # Anchors in the order of their labels leave blocks that need no test of each element.
    assert loss.mask.full_kv_num_blocks.sum() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler, which traces the uncompiled form too
        value = loss()
        (gradient,) = torch.autograd.grad(value, problem.anchors)
    truth = formulas.truth_of(problem)
    assert formulas.relative_error((value.detach(), gradient), truth) < 1e-5


@pytest.mark.parametrize(
    ("anchors", "entries", "processors", "expected"),
    [
        (1024, 190_000, 132, 16),  # 8 blocks of rows: 128 programs of 132
        (4096, 190_000, 132, 4),  # 32 blocks of rows: the same
        (1024, 1024, 132, 8),  # no head is shorter than a block
        (40, 100, 132, 1),
    ],
)
def test_heads_fill_the_processors(anchors, entries, processors, expected):
    assert attention.num_heads(anchors, entries, processors) == expected


def test_the_square_is_one_product_in_the_dtype_of_the_problem(monkeypatch):
    seen, mm = [], torch.mm
    run = square_product(torch.empty(3, 4, dtype=torch.bfloat16), 32)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append((a, b)) or mm(a, b, out=out))
    run()
    ((left, right),) = seen
    assert left.dtype == right.dtype == torch.bfloat16
    assert 2 * left.numel() * right.shape[1] == flops_of("square", Case("bf16", 6, 50, 4), 32)
    assert min(left.float().std(), right.float().std()) > 0.5


def test_the_floor_is_the_two_products_of_the_problem(monkeypatch):
    case = Case("float32", 6, 50, 4)
    problem = Problem.draw(case, CPU)
    seen, mm = [], torch.mm
    run = floor_products(problem, most_elements=6 * 20)
    monkeypatch.setattr(
        torch, "mm", lambda a, b, out: seen.append(2 * a.numel() * b.shape[1]) or mm(a, b, out=out)
    )
    run()
    assert sum(seen) == flops_of("floor", case, 32) == 4 * 6 * 50 * 4
    assert len(seen) == 6


def test_what_runs_out_of_memory_costs_only_itself(tmp_path, capsys, monkeypatch):
    def exhaust(*_):
        raise torch.cuda.OutOfMemoryError("tried to allocate 65.54 GiB")

    def fail(*_):
        raise ValueError("wrong\nand more")

    monkeypatch.setattr(formulas, "textbook_loss", exhaust)
    monkeypatch.setattr(formulas, "authors_loss", fail)
    ways = ["--ways", "tiled", "dense", "authors"]
    status, record = run_hot_path(tmp_path, "--modes", "float32", ways=ways, shapes=BANK)
    assert status == 0
    (row,) = record["rows"]
    assert row["measured"]["dense"] == {"status": "out of memory"}
    assert row["measured"]["authors"] == {"status": "failed: ValueError: wrong"}
    assert row["measured"]["tiled"]["seconds"] > 0
    assert capsys.readouterr().out.count("failed: ValueError: wrong") == 1


def test_a_wrong_result_marks_the_record_and_keeps_its_time(tmp_path, monkeypatch):
    loss = formulas.our_loss
    monkeypatch.setattr(
        formulas, "our_loss",
        lambda *given, **more: (1.1 if "unit_length" in more else 1) * loss(*given, **more),
    )  # fmt: skip
    status, record = run_hot_path(tmp_path, "--modes", "float32", ways=OURS, shapes=BANK)
    assert status == 0
    assert record["correct"] is False
    (row,) = record["rows"]
    assert row["correct"] is False
    wrong = row["measured"]["unit length"]
    assert wrong["error"] == pytest.approx(0.1, rel=1e-3)
    assert wrong["correct"] is False
    assert wrong["seconds"] > 0
    assert row["measured"]["info_nce"]["correct"] is True


def test_ours_is_recorded_before_slower_ways_run(tmp_path, monkeypatch):
    seen = []

    def enter(*_):
        seen.append(json.loads((tmp_path / "hot_path_gpu.json").read_text())["rows"][-1])
        raise RuntimeError("the process is stopped here")

    monkeypatch.setattr(formulas, "textbook_loss", enter)
    run_hot_path(tmp_path, "--modes", "bf16", ways=[*OURS, "dense"], shapes=BANK)
    assert seen[0]["note"] == "did not finish"
    assert {way_of(name) for name in seen[0]["measured"]} == set(OURS[1:])
    assert seen[0]["measured"]["info_nce"]["seconds"] > 0


def test_a_lost_device_ends_the_process(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def lose(device):
        raise DeviceLostError("an illegal memory access")

    with monkeypatch.context() as patched:
        patched.setattr(formulas, "textbook_loss", fail)
        patched.setattr(timers, "release", lose)
        ways = ["--ways", "tiled", "dense"]
        status, record = run_hot_path(tmp_path, "--modes", "float32", ways=ways)
    assert status == DEVICE_LOST
    (row,) = record["rows"]
    assert "illegal" in row["note"]
    assert "illegal" in row["measured"]["dense"]["status"]


def test_nothing_is_started_after_the_budget(tmp_path):
    status, record = run_hot_path(tmp_path, "--modes", "bf16", "--budget", "-1")
    assert status == 0
    assert [(row["note"], row["measured"]) for row in record["rows"]] == 2 * [("no time left", {})]


def test_what_compiles_is_measured_last_and_only_where_there_is_time(tmp_path, capsys):
    options = ("--modes", "bf16", *BANK)
    ways = ["--ways", "tiled", "compiled"]
    _, record = run_hot_path(tmp_path, *options, "--budget", "30", ways=ways)
    assert set(record["rows"][0]["measured"]) == {"tiled"}
    _, record = run_hot_path(tmp_path, *options, "--budget", "300", ways=ways)
    (row,) = record["rows"]
    assert row["measured"]["compiled"]["seconds"] > 0
    assert row["measured"]["compiled"]["correct"] is True
    assert row["skipped"] == {}
    assert "did not finish" not in capsys.readouterr().out


def test_matrices_too_large_to_try_are_skipped(monkeypatch):
    class Card:
        total_memory = 80e9

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Card)
    for anchors, expected in ((1024, []), (4096, []), (16384, ["dense"])):
        case = Case("bf16", anchors, 1_000_000, 64)
        ways = [way for way in ("info_nce", "dense")
                if hot_path.too_large(way, case, torch.device("cuda"))]  # fmt: skip
        assert ways == expected


def test_without_a_device_it_refuses(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hot_path.main(["--device", "cuda", "--modes", "bf16"]) == REFUSED
    assert "no CUDA device here" in capsys.readouterr().out


def test_memory_of_one_way_in_this_process():
    small, run = hot_path.runs_to_weigh(Case("float32", 500, 20_000, 8), "dense")
    small()
    # Several matrices of 500 x 20,000 float32 numbers, 38 MB each.
    assert 100 < measured_peak(run) < 600


def test_the_host_time_of_kernels_that_do_nothing():
    pytest.importorskip("triton")
    command = [sys.executable, "-W", "error", "-m", "benchmarks.host"]  # of an option too
    run = subprocess.run(command, cwd=host.HERE, capture_output=True, text=True, check=True)
    launches = [int(line.split(", ")[1].split()[0]) for line in run.stdout.splitlines()]
    bank, anchors, both = launches
    assert 0 < anchors < bank < both <= 10
