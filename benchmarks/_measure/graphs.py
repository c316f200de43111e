"""Capture a run as a CUDA graph."""

from __future__ import annotations

import torch

from benchmarks._measure.timers import Run

WARM_RUNS = 3
"""Runs before the capture: kernels are compiled and libraries allocate their workspaces."""


def captured(run: Run, device: torch.device) -> Run:
    """Return a function that replays the run and returns the static results of the capture.

    The run may include a backward by `torch.autograd.grad`: its gradients are then static too. A
    random number of the default generator is drawn anew by each replay.
    """
    if device.type != "cuda":
        raise RuntimeError("a CUDA graph needs a CUDA device")
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(WARM_RUNS):
            run()
    current = torch.cuda.current_stream(device)
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = run()
    finally:
        # A capture that fails may leave its own stream as the current one.
        torch.cuda.set_stream(current)

    def replay() -> object:
        graph.replay()
        return results

    return replay


def replayed(run: Run, device: torch.device) -> Run:
    """Return a function that captures the run when it is first called, and replays it then on."""
    graph: list[Run] = []

    def replay() -> object:
        if not graph:
            graph.append(captured(run, device))
        return graph[0]()

    return replay
