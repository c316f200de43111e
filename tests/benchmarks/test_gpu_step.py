"""The script of whole steps on a GPU, on the CPU: what it writes, and what fails in it."""

import json

import pytest
import torch

from benchmarks import gpu_launches, gpu_step, step
from benchmarks.cuda_timing import DeviceLostError
from benchmarks.gpu_cases import DEVICE_LOST

ON_CPU = ["--device", "cpu", "--shapes", "small", "--repeats", "2"]
NO_GRAPH = {"status": "failed: RuntimeError: a CUDA graph needs a CUDA device"}


def run(folder, *options):
    status = gpu_step.main([*ON_CPU, *options, "--out", str(folder)])
    return status, json.loads((folder / "step_gpu.json").read_text())


def test_steps_of_a_gpu_from_the_command_line(tmp_path, capsys):
    status, record = run(tmp_path, "--commit", "abc")
    assert status == 0
    assert record["environment"]["card"] is None
    rows = record["rows"]
    assert [(row["name"], row["case"], row["note"]) for row in rows] == [
        ("small", case, None) for case in ("batch", "bank", "mining")
    ]
    for row in rows:
        ours = {"step", "replayed", "loss", "step float32"}
        others = {"unmined"} if row["case"] == "mining" else {"authors", "authors autocast"}
        assert set(row["measured"]) == ours | others
        seconds = row["measured"]["step"]["seconds"]
        for way, one in row["measured"].items():
            if way == "replayed":
                assert one == NO_GRAPH
                continue
            assert one["to_step"] == pytest.approx(one["seconds"] / seconds)
            assert one["extra_mb"] >= 0
            assert one["waits"] is one["launches"] is None
        assert row["anchors"]["step"] > 0
    printed = capsys.readouterr().out
    assert "small, mining" in printed
    assert "a CUDA graph needs a CUDA device" in printed


def test_a_case_that_fails_costs_only_itself(tmp_path, monkeypatch):
    way = gpu_step.Case.way

    def fail(self, name):
        if self.case == "bank":
            raise ValueError("wrong")
        return way(self, name)

    monkeypatch.setattr(gpu_step.Case, "way", fail)
    status, record = run(tmp_path)
    assert status == 0
    assert [row["note"] for row in record["rows"]] == [None, "failed: ValueError: wrong", None]


def test_a_lost_device_ends_it(tmp_path, monkeypatch):
    def lose(*_):
        raise DeviceLostError("an illegal memory access")

    monkeypatch.setattr(gpu_step, "measure", lose)
    status, record = run(tmp_path)
    assert status == DEVICE_LOST
    assert "illegal" in record["rows"][0]["note"]
    assert len(record["rows"]) == 1


def test_nothing_is_begun_after_the_budget(tmp_path):
    status, record = run(tmp_path, "--budget", "-1")
    assert status == 0
    assert {row["note"] for row in record["rows"]} == {"no time left"}


def test_the_step_script_hands_over(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as refused:
        step.main(["--shapes", "small", "--device", "cuda"])
    assert refused.value.code == 2
    assert "no CUDA device here" in capsys.readouterr().out


def test_full_logits_say_the_same():
    case = gpu_step.Case(gpu_step.SHAPES["small"], "batch", torch.device("cpu"), full_logits=True)
    assert case.logits.shape[2:] == case.batch.labels.shape[1:]
    stride = case.shape.stride
    assert torch.equal(case.logits[:, :, ::stride, ::stride], case.batch.logits)


def test_waits_are_counted_from_the_alarm(monkeypatch):
    """With the alarm and the device played by the test."""
    import warnings

    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run_twice_waiting():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("of something else", UserWarning, stacklevel=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert gpu_launches.count_waits(run_twice_waiting, torch.device("cuda")) == 2
    assert modes == ["warn", "default"]
