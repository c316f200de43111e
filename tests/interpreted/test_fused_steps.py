"""Whole steps by the fused form, in the interpreter: nothing waits, and the result is tiled's."""

import pytest
import torch
from steps import OPTIONS, Step
from waits import Launches

from pixcontrast import _triton

each_option = pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))


def step_with(options, backend):
    torch.manual_seed(3)
    return Step(backend=backend, **options)


@each_option
def test_a_fused_step_waits_for_nothing(options, monkeypatch):
    """The operations around the kernels, which are launched and not executed."""
    from triton.runtime.interpreter import InterpretedFunction

    from pixcontrast import _check

    launched = []
    monkeypatch.setattr(InterpretedFunction, "run", lambda *_, **__: launched.append(1))
    # What kernels would have written is 0, so that indices among it are valid.
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    monkeypatch.setattr(torch.Tensor, "new_empty", torch.Tensor.new_zeros)

    monkeypatch.setattr(_check, "values_can_be_seen", lambda tensor: False)
    step = step_with(options, "triton")
    called = []
    for all_labels in (None, 1):
        if all_labels is not None:
            step.labels.fill_(all_labels)
        with Launches() as launches:
            step(step.generator)
        called.append(launches.names)
    assert called[0] == called[1]
    assert called[0]
    assert launched


@each_option
@pytest.mark.parametrize("around", ["operations", "kernels"])
def test_a_fused_step_is_a_tiled_step(options, around, monkeypatch):
    """Whether kernels or operations are around the loss, random numbers are the same."""
    expected = step_with(options, "tiled")()
    monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_: around == "kernels")
    results = step_with(options, "triton")(), expected
    bound = 1e-2 if options.get("dtype") == torch.bfloat16 else 1e-5
    for actual, expected in zip(*results, strict=True):
        largest = expected.abs().max().clamp(min=1e-3)
        assert (actual - expected).abs().max() <= bound * largest
