"""Random problems on the card beside float64, and replays of a captured step beside eager steps."""

import os
from random import Random

import pytest
import torch
from on_gpu import BACKEND, DEVICE, REHEARSAL, needs_gpu, size
from steps import OPTIONS, Step

from benchmarks.reliability import truth
from benchmarks.reliability.calls import make_call

pytestmark = needs_gpu
CALLS = int(os.environ.get("PIXCONTRAST_GPU_CALLS", size(3000, 300)))
REPLAYS = int(os.environ.get("PIXCONTRAST_GPU_REPLAYS", size(500, 5)))
"""By hand 10^6 calls and 100,000 replays, see docs/reliability.md."""


def on_device(value):
    if isinstance(value, torch.Tensor):
        moved = value.detach().to(DEVICE)
        return moved.requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)):
        return type(value)(on_device(one) for one in value)
    if isinstance(value, torch.Generator):
        return torch.Generator(DEVICE).manual_seed(value.initial_seed())
    return value


@pytest.mark.plain_empty
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(4))
def test_random_calls(part):
    """Calls of `info_nce` whose arguments fit: no NaN, and within rounding of float64."""
    defects, judged = {}, 0
    for number in range(part, CALLS, 4):
        call = make_call(number)
        if call.target != "info_nce" or call.spoiled:
            continue
        given = {name: on_device(value) for name, value in call.arguments.items()}
        double = given["anchors"].dtype == torch.float64
        given["backend"] = "tiled" if double else Random(number).choice((BACKEND, "tiled"))
        judged += 1
        loss = call.function(**given).detach().cpu()
        wrong = truth.wrong_with(call, {}, loss, {})
        if wrong is not None:
            defects[number] = wrong
    assert defects == {}
    assert judged > 0


@pytest.mark.parametrize("number", [0, 3, 8, 11])
def test_many_steps_are_the_same_bits(number):
    """A soak: every replay of a captured step is the eager step on the same draws, to the bit."""
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
    """A function that replays the step; in rehearsal, the step itself, after as many warm-ups."""
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
