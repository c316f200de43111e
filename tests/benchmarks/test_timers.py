"""What the measuring commands share: timers, memory, options."""

import itertools

import pytest
import torch

from benchmarks import hot_path
from benchmarks._measure import command, environment, timers
from benchmarks._measure.device import measured_peak, peak_memory
from benchmarks._measure.timers import DeviceLostError, measure

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture
def played_card(monkeypatch):
    """A CUDA device whose runs take the seconds that they return."""
    calls = []

    def seconds_of(run, device, times=1, untimed=0):
        calls.append((times, untimed))
        return run()

    monkeypatch.setattr(timers, "seconds_of", seconds_of)
    monkeypatch.setattr(timers, "release", lambda device: None)
    return calls


def test_runs_take_turns():
    order = []
    found = measure({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b"] * 4  # one warm-up and three samples of each
    assert found["a"]["samples"] == 3
    assert found["a"]["seconds"] >= 0


def test_ratios_are_those_of_the_medians():
    found = measure({"a": lambda: None, "b": lambda: sum(range(1000))}, 3, references=("a", "no"))
    assert found["b"]["to_a"] == found["b"]["seconds"] / found["a"]["seconds"]
    assert found["b"]["to_no"] is None


def test_an_error_between_good_runs_costs_only_its_own_way():
    runs = itertools.count()

    def sometimes():
        if next(runs) == 2:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")

    found = measure({"odd": sometimes, "good": lambda: None}, 3)
    assert found["odd"] == {"status": "out of memory"}
    assert found["good"]["samples"] == 3


def test_strict_raises_what_a_run_raises():
    def fail():
        raise ValueError("wrong")

    assert measure({"odd": fail}, 2) == {"odd": {"status": "failed: ValueError: wrong"}}
    with pytest.raises(ValueError, match="wrong"):
        measure({"odd": fail}, 2, strict=True)


def test_nothing_is_started_after_the_deadline():
    found = measure({"one": lambda: None}, 3, deadline=timers.now() - 1)
    assert found == {"one": {"status": "no time left"}}


def test_a_deadline_ends_the_turns_after_two(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(timers, "now", lambda: next(clock))
    found = measure({"one": lambda: None}, 50, deadline=20)
    assert 2 <= found["one"]["samples"] < 20


def test_a_status_does_not_replace_figures():
    measured = {"timed": {"seconds": 1.0}, "failed": {"status": "out of memory"}}
    late = {"status": "no time left"}
    runs = dict.fromkeys(("timed", "failed", "new"), lambda: None)
    measure(runs, 2, into=measured, deadline=timers.now() - 1)
    assert measured == {"timed": {"seconds": 1.0}, "failed": late, "new": late}
    measure({"new": lambda: None}, 2, into=measured)
    assert measured["new"]["seconds"] >= 0


def test_a_ratio_is_to_a_run_of_the_same_turns():
    measured = {"former": {"seconds": 1.0, "to_reference": 3.0}}
    measure({"reference": lambda: None}, 2, into=measured, references=["reference"])
    assert measured["former"] == {"seconds": 1.0, "to_reference": 3.0}
    assert measured["reference"]["to_reference"] == 1.0


def test_samples_on_cuda_are_as_long_as_the_run_is_short(played_card):
    runs = {"fast": lambda: 0.001, "slow": lambda: 0.5}
    found = measure(runs, 5, CUDA)
    assert found["fast"] == {"seconds": 0.001, "spread": 0.0, "samples": 5}
    assert found["slow"]["samples"] == 2
    # The first two calls warm up; a fast run is then sampled four at a time, after an untimed one.
    assert played_card == [(1, 1), (1, 1), (4, 1), (1, 0), (4, 1), (1, 0), (4, 1), (4, 1), (4, 1)]


@pytest.mark.usefixtures("played_card")
def test_a_lost_device_keeps_the_figures_so_far(monkeypatch):
    def lose(device):
        raise DeviceLostError("an illegal memory access")

    runs = itertools.count()

    def sometimes():
        if next(runs) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 1.0

    monkeypatch.setattr(timers, "release", lose)
    measured = {}
    with pytest.raises(DeviceLostError):
        measure({"good": lambda: 0.001, "bad": sometimes}, 5, CUDA, into=measured)
    assert measured["good"]["samples"] == 2
    assert "illegal" in measured["bad"]["status"]


def test_peak_is_that_of_the_run():
    assert 90 < measured_peak(lambda: torch.ones(25_000_000)) < 130


def test_peak_counts_memory_that_an_earlier_run_left_behind():
    def run():
        return [torch.ones(16_000) for _ in range(1000)]

    pieces, last = run(), torch.ones(16_000)
    del pieces  # the heap keeps their memory below `last`
    assert 50 < measured_peak(run) < 90
    assert last.sum() == 16_000


def make_tensors(size):
    return lambda: None, lambda: torch.ones(size)


def test_peak_in_a_process_of_its_own():
    assert 90 < peak_memory(make_tensors, 25_000_000) < 130
    assert peak_memory(make_tensors, -1) is None  # it fails


def test_a_busy_machine_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(environment, "load_averages", lambda: [1e6])
    environment.look_at_machine()
    assert "busy" in capsys.readouterr().err


def test_one_repeat_has_no_spread_and_is_refused(capsys):
    with pytest.raises(SystemExit):
        hot_path.main(["--repeats", "1"])
    assert "at least 2" in capsys.readouterr().err


def test_a_record_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "record.json"
    command.write_record(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        command.write_record(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 1\n}\n'
    assert [found.name for found in tmp_path.iterdir()] == ["record.json"]
