"""`benchmarks.step`: what it measures is what it says, and a failure costs only its own case."""

import json
import math
import warnings
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch

from benchmarks import step
from benchmarks._measure import device
from benchmarks._measure.command import DEVICE_LOST, REFUSED
from benchmarks._measure.device import measured_peak
from benchmarks._measure.timers import DeviceLostError
from benchmarks._ways.batches import SHAPES
from benchmarks._ways.steps import BASE_TEMPERATURE, TEMPERATURE, StepCase

CPU = torch.device("cpu")
SMALL = SHAPES["small"]
REHEARSAL = ["--rehearse", "--repeats", "2"]
NO_GRAPH = {"status": "failed: RuntimeError: a CUDA graph needs a CUDA device"}


def run(folder, *options, name="step_gpu.json"):
    status = step.main([*options, "--out", str(folder)])
    return status, json.loads((folder / name).read_text())


def test_step_on_the_cpu(tmp_path, capsys):
    options = ["--shapes", "small", "--repeats", "2", "--no-memory"]
    status, record = run(tmp_path, *options, name="step.json")
    assert status == 0
    assert [row["case"] for row in record["steps"]] == ["bank", "batch", "mining"]
    for row in record["steps"]:
        other = "unmined" if row["case"] == "mining" else "authors"
        assert list(row["measured"]) == ["step", "loss", other]
        seconds = {way: one["seconds"] for way, one in row["measured"].items()}
        for one in row["measured"].values():
            assert one["to_step"] == pytest.approx(one["seconds"] / seconds["step"])
            assert one["to_loss"] == pytest.approx(one["seconds"] / seconds["loss"])
            assert math.isfinite(one["spread"])
    assert record["environment"]["torch"] == torch.__version__
    printed = capsys.readouterr().out
    assert "authors" in printed
    assert "unmined" in printed


def test_step_in_a_rehearsal_of_a_gpu(tmp_path, capsys):
    status, record = run(tmp_path, *REHEARSAL)
    assert status == 0
    assert record["environment"]["card"] is None
    rows = record["steps"]
    assert [(row["name"], row["case"], row["note"]) for row in rows] == [
        ("small", case, None) for case in ("bank", "batch", "mining")
    ]
    for row in rows:
        other = "unmined" if row["case"] == "mining" else "authors"
        assert set(row["measured"]) == {"step", "replayed", "loss", other}
        seconds = row["measured"]["step"]["seconds"]
        for way, one in row["measured"].items():
            if way == "replayed":
                assert one == NO_GRAPH
            else:
                assert one["to_step"] == pytest.approx(one["seconds"] / seconds)
    printed = capsys.readouterr().out
    assert "small, mining" in printed
    assert "a CUDA graph needs a CUDA device" in printed


def test_a_profile_measures_no_time(tmp_path, monkeypatch):
    seen = {"waits": 0, "launches": 80, "kernels": []}
    profile_run = step.profile_run

    def profile(run, device):
        return profile_run(run, device) | seen

    monkeypatch.setattr(step, "profile_run", profile)
    status, record = run(tmp_path, *REHEARSAL, "--profile", name="launches_gpu.json")
    assert status == 0
    for row in record["steps"]:
        assert row["note"] is None
        assert list(row["measured"])[:2] == ["step", "loss"]
        for one in row["measured"].values():
            assert one == {"extra_mb": one["extra_mb"], **seen}
            assert one["extra_mb"] >= 0


def test_a_profile_that_fails_costs_only_itself(tmp_path, monkeypatch):
    def fail(self):
        raise ValueError("wrong")

    monkeypatch.setattr(StepCase, "_authors_step", lambda self: lambda: fail(self))
    _, record = run(tmp_path, *REHEARSAL, "--profile", name="launches_gpu.json")
    measured = record["steps"][0]["measured"]
    assert measured["authors"] == {"status": "failed: ValueError: wrong"}
    assert set(measured["step"]) == {"extra_mb"}


def test_waits_are_counted_by_the_warnings(monkeypatch):
    """With the warnings and the device played by the test."""
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run_with_two_waits():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        prototype = "a prototype feature and does not yet detect all synchronizing operations"
        for other in ("of something else", prototype):  # The second one is that of the mode itself.
            warnings.warn(other, UserWarning, stacklevel=1)

    assert device.count_waits(run_with_two_waits) == 2
    assert modes == ["warn", "default"]


def test_kernels_are_listed_by_their_time(monkeypatch):
    """With the profiler and the device played by the test."""

    class Kernel(NamedTuple):
        key: str
        count: int
        self_device_time_total: float
        device_type: torch.autograd.DeviceType

    card, host = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    seen = [Kernel("a", 2, 6.0, card), Kernel("b", 1, 9.0, card), Kernel("launch", 3, 0.0, host)]

    class Profile:
        def key_averages(self):
            return seen

    monkeypatch.setattr(torch.profiler, "profile", lambda **_: nullcontext(Profile()))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert device.count_launches(lambda: None, torch.device("cuda")) == {
        "launches": 3,
        "kernels": [
            {"name": "b", "launches": 1, "microseconds": 9.0},
            {"name": "a", "launches": 2, "microseconds": 6.0},
        ],
    }


def test_ours_is_recorded_before_the_authors_step_runs(tmp_path, monkeypatch):
    seen = []

    def enter(self):
        seen.append(json.loads((tmp_path / "step_gpu.json").read_text())["steps"][-1])
        raise RuntimeError("the process is stopped here")

    monkeypatch.setattr(StepCase, "_authors_step", lambda self: lambda: enter(self))
    run(tmp_path, *REHEARSAL, "--cases", "bank")
    assert set(seen[0]["measured"]) == {"step", "replayed", "loss"}
    assert seen[0]["measured"]["step"]["seconds"] > 0


def test_a_case_that_fails_costs_only_itself(tmp_path, monkeypatch):
    way = StepCase.way

    def fail(self, name):
        if self.case == "bank":
            raise ValueError("wrong")
        return way(self, name)

    monkeypatch.setattr(StepCase, "way", fail)
    status, record = run(tmp_path, *REHEARSAL)
    assert status == 0
    assert [row["note"] for row in record["steps"]] == ["failed: ValueError: wrong", None, None]


def test_a_lost_device_ends_it(tmp_path, monkeypatch):
    def lose(*_, **__):
        raise DeviceLostError("an illegal memory access")

    monkeypatch.setattr(step, "measure", lose)
    status, record = run(tmp_path, *REHEARSAL)
    assert status == DEVICE_LOST
    assert "illegal" in record["steps"][0]["note"]
    assert len(record["steps"]) == 1


def test_nothing_is_started_after_the_budget(tmp_path):
    status, record = run(tmp_path, *REHEARSAL, "--budget", "-1")
    assert status == 0
    assert {row["note"] for row in record["steps"]} == {"no time left"}


def test_without_a_device_it_refuses(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert step.main(["--shapes", "small", "--device", "cuda"]) == REFUSED
    assert "no CUDA device here" in capsys.readouterr().out


def test_peak_of_a_way_in_this_process():
    _, run_step = step.runs_to_weigh("small", "bank", "step")
    assert measured_peak(run_step) >= 0


def test_full_logits_have_the_same_classes():
    case = StepCase(SMALL, "batch", CPU, as_on_gpu=True)
    assert case.logits.shape[2:] == case.batch.labels.shape[1:]
    assert torch.equal(case.logits[:, :, :: SMALL.stride, :: SMALL.stride], case.batch.logits)


@pytest.mark.parametrize("case", ["batch", "bank"])
def test_the_loss_alone_has_the_anchors_and_entries_of_the_step(case):
    problem = StepCase(SMALL, case, CPU)
    torch.manual_seed(3)
    (of_anchors,) = problem.way("loss")()
    taken = problem.way("step")
    torch.manual_seed(3)
    (of_map,) = taken()
    torch.manual_seed(3)
    with torch.no_grad():
        _, sample = problem.criterion()(
            problem.batch.emb, problem.batch.labels, problem.batch.logits, return_anchors=True
        )
    real = sample.labels >= 0
    rows = of_map.movedim(1, -1).flatten(0, -2)[sample.indices]
    anchors = problem.batch.emb.detach().movedim(1, -1).flatten(0, -2)[sample.indices]
    # Normalizing to unit length removes the component along the vector.
    along = (of_anchors * anchors).sum(dim=1, keepdim=True) * anchors
    expected = TEMPERATURE / BASE_TEMPERATURE * (of_anchors - along)
    torch.testing.assert_close(rows[real], expected[real], rtol=1e-4, atol=1e-6)
    assert of_map.abs().sum() > 0
    torch.testing.assert_close(of_map.abs().sum(), rows[real].abs().sum())


def test_a_mined_step_is_another_one():
    problem, gradients = StepCase(SMALL, "mining", CPU), []
    for way in ("step", "unmined"):
        run_way = problem.way(way)
        torch.manual_seed(0)
        gradients.append(run_way()[0])
    # An anchor has 40 positives and 160 negatives; semi-hard mining keeps a tenth of each.
    assert (gradients[0] - gradients[1]).abs().max() > 1e-3
