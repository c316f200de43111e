"""A few anchors against themselves: one kernel for the forward, and one for the backward."""

import pytest
import torch
from drawn import BOUND, draw, each_denominator, errors
from problems import IGNORE, loss_and_gradients, worst_error

from pixcontrast._info_nce.fused import small
from pixcontrast.functional import info_nce


@pytest.fixture(autouse=True, params=[True, False], ids=["few", "many"])
def few(request, monkeypatch):
    """Also by the passes of large problems, which other tests do not run on anchors alone."""
    if not request.param:
        monkeypatch.setattr(small, "MAX_ANCHORS", 0)
    return request.param


@each_denominator
@pytest.mark.parametrize("num_anchors", [1, 16, 33, 70])
def test_any_number_of_anchors(num_anchors, denominator):
    fused, _ = errors(draw("itself", num_anchors=num_anchors), denominator=denominator)
    assert fused < BOUND


@each_denominator
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_sixteen_bits(dtype, denominator):
    fused, dense = errors(draw("itself", dtype=dtype), denominator=denominator)
    assert fused < 2 * dense + torch.finfo(dtype).eps


@each_denominator
def test_what_is_ignored_may_hold_anything(denominator):
    anchors, anchor_labels, *_ = draw("itself")
    plain = loss_and_gradients("triton", anchors, anchor_labels, denominator=denominator)
    anchors[anchor_labels == IGNORE] = float("nan")
    spoiled = loss_and_gradients("triton", anchors, anchor_labels, denominator=denominator)
    assert all(torch.equal(made, expected) for made, expected in zip(spoiled, plain, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_weights(reduction):
    arguments = draw("itself")
    upstream = torch.rand(36 if reduction == "none" else ())
    options = {"reduction": reduction, "weight": torch.linspace(0, 2, 36)}
    results = [
        loss_and_gradients(form, *arguments, upstream, **options) for form in ("triton", "dense")
    ]
    assert worst_error(*results) < BOUND


@pytest.mark.parametrize("lie", ["transposed", "every second column"])
def test_any_strides(lie):
    anchors, anchor_labels, *_ = draw("itself")
    spread = torch.stack([anchors, anchors], dim=2)
    strided = anchors.T.contiguous().T if lie == "transposed" else spread[:, :, 0]
    made, expected = (
        loss_and_gradients("triton", given, anchor_labels) for given in (strided, anchors)
    )
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


def test_kernels_launched(few, monkeypatch):
    from triton.runtime.interpreter import InterpretedFunction

    run, launched = InterpretedFunction.run, []

    def noted(kernel, *arguments, **options):
        launched.append(kernel.fn.__name__)
        return run(kernel, *arguments, **options)

    monkeypatch.setattr(InterpretedFunction, "run", noted)
    anchors, anchor_labels, *_ = draw("itself", dtype=torch.bfloat16)
    info_nce(anchors.requires_grad_(), anchor_labels, backend="triton").backward()
    assert len(launched) == (2 if few else 7)
