"""The bounds for TF32 on the CPU: they hold for products of cut operands, and say something."""

import pytest
import torch
from problems import labels, loss_and_gradients, vectors
from tf32 import coefficients, representable, rounded, tf32_bounds, truncated

TEMPERATURE = 0.1
KINDS = ("entries", "itself")


def problem(kind, rows=132, columns=333, dim=64):
    generator = torch.Generator().manual_seed(0)
    anchors = vectors(rows, dim, generator, torch.float32), labels(rows, 5, generator)
    if kind == "itself":
        return (*anchors, None, None)
    return (
        *anchors,
        vectors(columns, dim, generator, torch.float32),
        labels(columns, 5, generator),
    )


def upstream_of(arguments):
    return torch.rand(len(arguments[0]), generator=torch.Generator().manual_seed(9))


def truth_of(arguments, upstream, denominator):
    anchors, labels, entries, entry_labels = arguments
    wide = (anchors.double(), labels, None if entries is None else entries.double(), entry_labels)
    options = {"denominator": denominator, "reduction": "none"}
    return loss_and_gradients("dense", *wide, upstream.double(), **options)


def by_cut_operands(arguments, upstream, denominator, cut):
    """Loss and gradients by products whose operands are cut; all else is exact.

    The parts of a coefficient are multiplied one by one, as the passes of the kernels do.
    """
    anchors, labels, entries, entry_labels = arguments
    is_self = torch.zeros(len(anchors), len(anchors if entries is None else entries)).bool()
    if entries is None:
        entries, entry_labels, is_self = anchors, labels, torch.eye(len(anchors)).bool()
    logits = cut(anchors).double() @ cut(entries).double().T / TEMPERATURE
    given = logits, labels, entry_labels, is_self, denominator
    losses = losses_of(*given)
    weight = upstream.double()[:, None] / TEMPERATURE
    by_anchor, by_entry = 0.0, 0.0
    for sign, part in zip((1, -1), coefficients(*given), strict=True):
        by_anchor = by_anchor + sign * weight * (cut(part.float()).double() @ cut(entries).double())
        weighted = (part * weight).float()
        by_entry = by_entry + sign * cut(weighted).double().T @ cut(anchors).double()
    if arguments[2] is None:
        return [losses, by_anchor + by_entry]
    return [losses, by_anchor, by_entry]


def losses_of(logits, labels, entry_labels, is_self, denominator):
    valid = (labels >= 0) & (labels != 255), (entry_labels >= 0) & (entry_labels != 255)
    present = valid[0][:, None] & valid[1][None, :]
    same = labels[:, None] == entry_labels[None, :]
    positive, negative = present & same & ~is_self, present & ~same
    among = negative if denominator == "negatives" else positive | negative
    z = logits.masked_fill(~among, -torch.inf).logsumexp(dim=1, keepdim=True)
    terms = z - logits
    if denominator == "negatives":
        terms = torch.nn.functional.softplus(terms)
    count = positive.sum(dim=1)
    return torch.where(positive, terms, 0.0).sum(dim=1) / count.clamp(min=1)


@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_products_of_whole_operands_are_exact(kind, denominator):
    """So the coefficients of the bounds are the derivative."""
    arguments = problem(kind)
    upstream = upstream_of(arguments)
    made = by_cut_operands(arguments, upstream, denominator, lambda values: values)
    for actual, expected in zip(made, truth_of(arguments, upstream, denominator), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cut", [truncated, rounded])
@pytest.mark.parametrize("exact_vectors", [True, False], ids=["exact", "any"])
@pytest.mark.parametrize("denominator", ["negatives", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_cut_operands_stay_within_the_bounds(kind, denominator, exact_vectors, cut):
    arguments = representable(problem(kind)) if exact_vectors else problem(kind)
    upstream = upstream_of(arguments)
    truth = truth_of(arguments, upstream, denominator)
    made = by_cut_operands(arguments, upstream, denominator, cut)
    options = {"denominator": denominator, "exact_vectors": exact_vectors}
    bounds = tf32_bounds(arguments, upstream, **options)
    for actual, expected, bound in zip(made, truth, bounds, strict=True):
        assert ((actual - expected).abs() <= bound + 1e-6).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_label_is_above_the_bounds(kind):
    """Where TF32 represents the vectors, an entry in the wrong class is seen in every anchor
    of either class.
    """
    arguments = representable(problem(kind))
    upstream = upstream_of(arguments)
    truth = truth_of(arguments, upstream, "negatives")
    bounds = tf32_bounds(arguments, upstream, exact_vectors=True)
    wrong = [None if part is None else part.clone() for part in arguments]
    changed = wrong[1] if wrong[3] is None else wrong[3]
    first = int((changed == 1).nonzero()[0])
    changed[first] = 2
    made = truth_of(wrong, upstream, "negatives")
    concerned = (arguments[1] == 1) | (arguments[1] == 2)
    for actual, expected, bound in zip(made[:2], truth, bounds, strict=False):
        excess = (actual - expected).abs() - bound
        assert (excess.view(len(concerned), -1).amax(dim=1)[concerned] > 0).all()
