"""A whole training step on a GPU: the host never waits, and a CUDA graph can replay it."""

from contextlib import contextmanager

import pytest
import torch
from on_gpu import BACKEND, COUNTING, DEVICE, REHEARSAL, compiled, needs_gpu
from steps import OPTIONS, Step

pytestmark = needs_gpu
each_option = pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))
each_source = pytest.mark.parametrize("own", [False, True], ids=["default", "generator"])


@contextmanager
def waits_raise():
    """Operations that make the host wait for the device raise."""
    if REHEARSAL:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step_with(options, seed=3):
    torch.manual_seed(seed)
    return Step(device=DEVICE, backend=BACKEND, **options)


def run_afresh(step, seed, own):
    """Run a step with the random numbers of a seed, of the default or of its own generator."""
    torch.manual_seed(seed)
    step.generator.manual_seed(seed)
    return step(step.generator if own else None)


@each_option
def test_a_step_never_waits(options):
    step = step_with(options)
    step()  # Compiles kernels.
    with waits_raise():
        made = step()
    assert torch.isfinite(made[1]).all()


@each_option
def test_two_runs_are_the_same_bits(options):
    runs = [[run_afresh(step, 7, own=False) for _ in range(2)] for step in
            (step_with(options), step_with(options))]  # fmt: skip
    for first, second in zip(*runs, strict=True):
        for one, other in zip(first, second, strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.skipif(bool(REHEARSAL) and not COUNTING, reason="a CUDA graph needs a CUDA device")
@each_source
@each_option
def test_replays_are_steps(options, own):
    """A replay equals the eager step bit for bit, bank included, and draws new numbers."""
    captured, eager = step_with(options), step_with(options)
    if COUNTING:
        eager()
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for step in (captured, eager):
            for seed in range(3):
                run_afresh(step, seed, own)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if own:
        graph.register_generator_state(captured.generator)
    with torch.cuda.graph(graph):
        made = captured(captured.generator if own else None)

    seen = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        captured.generator.manual_seed(seed)
        graph.replay()
        seen.append([None if part is None else part.clone() for part in made])
        for one, other in zip(seen[-1], run_afresh(eager, seed, own), strict=True):
            assert one is other is None or torch.equal(one, other)
        if captured.bank is not None:
            for one, other in zip(captured.bank.buffers(), eager.bank.buffers(), strict=True):
                assert torch.equal(one, other)
    # Both losses sample fewer pixels than exist, so other random numbers give another gradient.
    assert not torch.equal(seen[0][1], seen[1][1])


@pytest.mark.ungated("inductor")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.plain_empty
@pytest.mark.parametrize("options", OPTIONS[::3], ids=range(0, len(OPTIONS), 3))
def test_compiled_whole(options):
    step, plain = step_with(options), step_with(options)
    torch._dynamo.reset()
    step.loss = compiled(step.loss)
    with torch._inductor.config.patch(fallback_random=True):
        for seed in range(2):
            made = run_afresh(step, seed, own=False)
            for one, other in zip(made, run_afresh(plain, seed, own=False), strict=True):
                if other is not None:
                    torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-3)
    torch._dynamo.reset()
