"""Random problems against float64, and replays of a captured step against eager steps."""

import contextlib
import os

import pytest
import torch
from on_gpu import BACKEND, DEVICE, REHEARSAL, needs_gpu, size
from steps import OPTIONS, Step

from benchmarks.reliability.calls import make_call
from benchmarks.reliability.judge import defect_of
from benchmarks.reliability.perform import perform, placed

pytestmark = needs_gpu
CALLS = int(os.environ.get("PIXCONTRAST_GPU_CALLS", 240))
REPLAYS = int(os.environ.get("PIXCONTRAST_GPU_REPLAYS", size(500, 5)))
"""A long run has 10^6 calls and 100,000 replays, see docs/reliability.md."""


@pytest.mark.plain_empty
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(4))
def test_random_calls(part):
    """Valid calls of `info_nce` give no NaN; loss and gradients differ from float64 by rounding."""
    defects, judged = {}, 0
    for number in range(part, CALLS, 4):
        made = make_call(number)
        if made.target != "info_nce" or made.spoiled:
            continue
        call = placed(made, BACKEND, DEVICE.type)
        if call is None:
            continue
        judged += 1
        with contextlib.suppress(Exception):
            perform(call, None)  # Compiles kernels, which is not part of the limited time.
        _, wrong = defect_of(call)
        if wrong is not None:
            defects[number] = wrong
    assert judged > 0
    assert defects == {}


@pytest.mark.parametrize("number", [0, 3, 8, 11])
def test_many_steps_are_the_same_bits(number):
    """Every replay of a captured step equals the eager step on the same draws, bit for bit."""
    torch.manual_seed(3)
    captured = Step(device=DEVICE, backend=BACKEND, **OPTIONS[number])
    torch.manual_seed(3)
    eager = Step(device=DEVICE, backend=BACKEND, **OPTIONS[number])
    replay = capture(captured)
    for seed in range(3):
        run(eager, seed)
    for seed in range(REPLAYS):
        torch.manual_seed(seed)
        made = replay()
        expected = run(eager, seed)
        for one, other in zip(made[:2], expected[:2], strict=True):
            assert torch.equal(one, other), f"replay {seed}"
    if captured.bank is not None:
        for one, other in zip(captured.bank.buffers(), eager.bank.buffers(), strict=True):
            assert torch.equal(one, other)


def run(step, seed):
    torch.manual_seed(seed)
    return step()


def capture(step):
    """A function that replays the step; in rehearsal the step itself, after the warm-up."""
    if REHEARSAL:
        for seed in range(3):
            run(step, seed)
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for seed in range(3):
            run(step, seed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()

    def replay():
        graph.replay()
        return made

    return replay
