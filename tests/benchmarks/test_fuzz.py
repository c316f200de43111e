"""A short run of the random calls, and the judge of them judged."""

import pytest
import torch

from benchmarks.reliability.calls import Call, make_call
from benchmarks.reliability.fuzz import run
from benchmarks.reliability.judge import defect_of
from benchmarks.reliability.perform import limited_memory
from pixcontrast.functional import info_nce

LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.plain_empty  # what is allocated is compared byte for byte
@pytest.mark.parametrize(
    "numbers", [range(1000), pytest.param(range(1000, 2500), marks=pytest.mark.slow)], ids=str
)
def test_random_calls(numbers):
    with limited_memory():
        found = run(numbers)
    assert found["defects"] == {}
    assert min(found["ended"]["value"], found["ended"]["refused"]) > len(numbers) / 5


def test_a_number_is_a_call():
    first, second = (make_call(12) for _ in range(2))
    assert (first.target, first.spoiled, sorted(first.given["call"])) == (
        second.target, second.spoiled, sorted(second.given["call"]),
    )  # fmt: skip


def judged(function, **given):
    arguments = {
        "anchors": torch.eye(4), "anchor_labels": LABELS, "contrast": None,
        "contrast_labels": None, "temperature": 0.5, "denominator": "negatives", "weight": None,
        "negative_sampler": None, "generator": None, "reduction": "mean", "ignore_index": 255,
        "backend": "tiled",
    }  # fmt: skip
    call = Call("info_nce", function, {"call": {**arguments, **given}}, spoiled=tuple(given))
    return defect_of(call)[1]


def test_the_judge_sees_what_is_wrong():
    def changes_its_argument(**given):
        given["anchors"].mul_(1)
        return info_nce(**given)

    def raises_what_is_not_ours(**given):
        return [][given["anchor_labels"]]

    def says_what_is_not_named(**given):
        raise ValueError("no")

    def warns(**given):
        return torch.empty(2, requires_grad=True).sum().item()

    assert judged(info_nce) is None
    assert "version" in judged(changes_its_argument)
    assert "TypeError" in judged(raises_what_is_not_ours)
    assert "ValueError" in judged(says_what_is_not_named)
    assert "NaN" in judged(lambda **given: info_nce(**given) * torch.nan)
    assert "off by" in judged(lambda **given: info_nce(**given) * 1.0001)
    assert "shape" in judged(lambda **given: info_nce(**given)[None])
    assert judged(info_nce, temperature=0) is None
    assert "is refused" in judged(lambda **given: info_nce(**{**given, "temperature": 0}))


def test_the_judge_sees_a_wrong_gradient():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, upstream):
            return 1.001 * upstream

    anchors = torch.nn.functional.normalize(torch.randn(4, 3), dim=1).requires_grad_()
    assert judged(info_nce, anchors=anchors) is None
    assert "gradient" in judged(lambda **given: Doubled.apply(info_nce(**given)), anchors=anchors)
