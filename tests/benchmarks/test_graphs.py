"""What a CUDA device does, played by the test: events around runs, and the capture of a graph."""

from contextlib import contextmanager

import pytest
import torch

from benchmarks._measure.device import WARM_RUNS, replayed
from benchmarks._measure.timers import seconds_of

CUDA = torch.device("cuda")


@pytest.fixture
def card(monkeypatch):
    """The list of what is done on the card, in order."""
    done = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            done.append("record")

        def synchronize(self):
            done.append("wait")

        def elapsed_time(self, end):
            return 6000.0

    class Stream:
        def __init__(self, device=None):
            self.device = device

        def wait_stream(self, other):
            done.append("streams wait")

    class Graph:
        def replay(self):
            done.append("replay")

    @contextmanager
    def stream_of(stream):
        yield

    @contextmanager
    def capture(graph):
        done.append("capture")
        yield
        done.append("captured")

    for name, made in (("Event", Event), ("Stream", Stream), ("CUDAGraph", Graph)):
        monkeypatch.setattr(torch.cuda, name, made)
    monkeypatch.setattr(torch.cuda, "stream", stream_of)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: done.append("stream restored"))
    return done


def test_events_stand_around_the_timed_runs(card):
    assert seconds_of(lambda: card.append("run"), CUDA, times=3, untimed=2) == 2.0
    assert card == [*["run"] * 2, "record", *["run"] * 3, "record", "wait"]


def test_a_run_is_warmed_up_captured_once_and_replayed(card):
    results = [("loss", "gradient")]
    replay = replayed(lambda: card.append("run") or results[0], CUDA)
    assert card == []
    assert replay() is replay() is results[0]
    assert card == [
        "streams wait", *["run"] * WARM_RUNS, "streams wait",
        "capture", "run", "captured", "stream restored", "replay", "replay",
    ]  # fmt: skip


def test_a_capture_that_fails_restores_the_stream(card):
    runs = []

    def fail_in_capture():
        runs.append(1)
        if len(runs) > WARM_RUNS:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        replayed(fail_in_capture, CUDA)()
    assert card[-1] == "stream restored"


def test_a_graph_needs_a_cuda_device():
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        replayed(lambda: None, torch.device("cpu"))()
