"""How the fused form behaves: what it may be given, and what it must not do."""

from dataclasses import replace

import pytest
import torch
from drawn import BOUND, cast, draw, each_denominator, errors
from problems import IGNORE, MININGS, loss_and_gradients, worst_error

from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss, RegionContrastLoss
from pixcontrast._info_nce.fused import passes
from pixcontrast._info_nce.operators import entries_gradient_operator, losses_operator
from pixcontrast._info_nce.problem import Problem
from pixcontrast.functional import info_nce


@each_denominator
def test_what_is_ignored_may_hold_anything(denominator):
    anchors, anchor_labels, pieces, piece_labels = draw("several")
    plain = loss_and_gradients(
        "triton", anchors, anchor_labels, pieces, piece_labels, denominator=denominator
    )
    for vectors_, names in zip((anchors, *pieces), (anchor_labels, *piece_labels), strict=True):
        if vectors_ is not None:
            vectors_[(names < 0) | (names == IGNORE)] = float("nan")
    spoiled = loss_and_gradients(
        "triton", anchors, anchor_labels, pieces, piece_labels, denominator=denominator
    )
    for made, expected in zip(spoiled, plain, strict=True):
        assert torch.equal(made, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_reductions_and_weights(reduction, weighted):
    arguments = draw("several")
    weight = torch.rand(36, dtype=torch.float64) if weighted else None
    upstream = torch.rand(36 if reduction == "none" else (), dtype=torch.float64)
    results = [
        loss_and_gradients(
            backend,
            *cast(arguments, dtype),
            upstream.to(dtype),
            reduction=reduction,
            weight=None if weight is None else weight.to(dtype),
        )
        for backend, dtype in (("triton", torch.float32), ("dense", torch.float64))
    ]
    assert worst_error(*results) < BOUND


@pytest.mark.parametrize("backend", ["dense", "tiled", "triton"])
@pytest.mark.parametrize("mining", MININGS)
@pytest.mark.parametrize("kind", ["bank", "self", "float16"])
@each_denominator
def test_nan_of_an_anchor_or_of_a_hard_entry_reaches_the_loss(kind, mining, backend, denominator):
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    options = {"negative_sampler": MININGS[mining], "denominator": denominator, "backend": backend}
    contrast = (None, None) if kind == "self" else (bank, bank_labels)
    options["reduction"] = "none"
    first = int((anchor_labels == 0).nonzero()[0])

    def losses():
        with torch.autocast("cpu", dtype=torch.float16, enabled=kind == "float16"):
            return info_nce(anchors, anchor_labels, *contrast, **options)

    if kind != "self" and mining in ("everything", "hardest"):  # the others draw at random
        kept, bank[0, 1] = bank[0, 1].clone(), float("nan")
        found = losses()
        assert bank_labels[0] == 0
        assert found[first].isnan()  # its positive
        assert found[anchor_labels == 1].isnan().any()  # a negative
        bank[0, 1] = kept
    assert losses().isfinite().all()
    anchors[first, 1] = float("nan")
    assert losses()[first].isnan()


def test_the_backward_sees_the_dtypes_of_the_forward(monkeypatch):
    """The tiles of the kernels follow from them, and mining repeats bits only in equal tiles."""
    seen, lay_out = [], passes.lay_out

    def noted(problem, **options):
        seen.append([entries.dtype for entries in problem.entries])
        return lay_out(problem, **options)

    monkeypatch.setattr(passes, "lay_out", noted)
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    contrast = [None, bank.to(torch.bfloat16)], [None, bank_labels]
    sampler = MININGS["hardest"]
    loss = info_nce(
        anchors.requires_grad_(), anchor_labels, *contrast, negative_sampler=sampler,
        backend="triton",
    )  # fmt: skip
    first = torch.autograd.grad(loss, anchors, retain_graph=True)
    again = torch.autograd.grad(loss, anchors)
    assert seen == [[torch.bfloat16], [torch.bfloat16]]
    assert torch.equal(*first, *again)


def strided(tensor):
    """The same values in every way that memory can hold them."""
    wide = torch.stack([tensor, torch.full_like(tensor, float("nan"))], dim=2)
    yield wide[:, :, 0]
    yield tensor.T.contiguous().T
    yield torch.cat([tensor, tensor], dim=1)[:, tensor.shape[1] :]


@pytest.mark.parametrize("way", range(3))
def test_any_strides(way):
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    plain = loss_and_gradients("triton", anchors, anchor_labels, bank, bank_labels)
    anchors, bank = list(strided(anchors))[way], list(strided(bank))[way]
    anchors, bank = anchors.requires_grad_(), bank.requires_grad_()
    loss = info_nce(anchors, anchor_labels, bank, bank_labels, backend="triton")
    made = [loss, *torch.autograd.grad(loss, (anchors, bank))]
    for one, expected in zip(made, plain, strict=True):
        assert torch.equal(one, expected)


def test_an_expanded_entry_and_an_expanded_upstream_gradient():
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    bank = bank[:1].expand(140, 5)
    loss = info_nce(
        anchors.requires_grad_(),
        anchor_labels,
        bank,
        bank_labels,
        backend="triton",
        reduction="none",
    )
    loss.sum().backward()
    expected = loss_and_gradients("triton", anchors, anchor_labels, bank.clone(), bank_labels)
    there = (loss > 0).sum()
    torch.testing.assert_close(anchors.grad / there, expected[1])


@each_denominator
@pytest.mark.parametrize("num_anchors", [0, 1])
@pytest.mark.parametrize("num_entries", [0, 1])
def test_next_to_nothing(num_anchors, num_entries, denominator):
    anchors, entries = torch.rand(num_anchors, 3), torch.rand(num_entries, 3)
    arguments = (
        anchors,
        torch.zeros(num_anchors, dtype=torch.int64),
        [entries, None],
        [torch.zeros(num_entries, dtype=torch.int64), None],
    )
    fused, _ = errors(arguments, denominator=denominator)
    assert fused < BOUND


@each_denominator
@pytest.mark.parametrize("what", ["no negative", "no positive", "no anchor"])
def test_rows_without(what, denominator):
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    if what == "no negative":
        anchor_labels, bank_labels = torch.ones_like(anchor_labels), torch.ones_like(bank_labels)
    elif what == "no positive":
        bank_labels = torch.full_like(bank_labels, 9)
    else:
        anchor_labels = torch.full_like(anchor_labels, IGNORE)
    arguments = (anchors, anchor_labels, bank, bank_labels)
    made = loss_and_gradients("triton", *arguments, denominator=denominator)
    expected = loss_and_gradients("dense", *arguments, denominator=denominator)
    if what == "no negative" and denominator == "all":
        assert worst_error(made, expected) < BOUND
    else:
        assert all((one == 0).all() for one in (*made, *expected))


@each_denominator
def test_entries_of_classes_that_no_anchor_has(denominator):
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    anchor_labels[(anchor_labels == 1) | (anchor_labels == 3)] = 2
    fused, _ = errors((anchors, anchor_labels, bank, bank_labels), denominator=denominator)
    assert fused < BOUND


def test_labels_beyond_thirty_two_bits():
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    plain = loss_and_gradients("triton", anchors, anchor_labels, bank, bank_labels)
    moved = [
        torch.where((names >= 0) & (names != IGNORE), names << 40, names)
        for names in (anchor_labels, bank_labels)
    ]
    made = loss_and_gradients("triton", anchors, moved[0], bank, moved[1])
    assert all(torch.equal(one, other) for one, other in zip(made, plain, strict=True))


@each_denominator
@pytest.mark.parametrize("mining", [None, MININGS["semi-hard"]], ids=["everything", "semi-hard"])
def test_the_same_bits_every_time(denominator, mining):
    first, second = (
        loss_and_gradients(
            "triton",
            *draw("several"),
            denominator=denominator,
            negative_sampler=mining,
            generator=torch.Generator().manual_seed(1),
        )
        for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_no_gradient_is_made_where_none_is_wanted(monkeypatch):
    seen = []
    for name in ("denominator_pass", "entries_gradient_pass"):
        original = getattr(passes, name)

        def noted(*arguments, _original=original, _name=name, **options):
            seen.append((_name, arguments[0].problem.want_gradient))
            return _original(*arguments, **options)

        monkeypatch.setattr(passes, name, noted)
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    anchors.requires_grad_()
    arguments = (anchors, anchor_labels, bank, bank_labels)
    with torch.no_grad():
        assert not info_nce(*arguments, backend="triton").requires_grad
    loss = info_nce(*arguments, backend="triton")
    bank.fill_(float("nan"))  # as an update between forward and backward might
    loss.backward()
    assert seen == [("denominator_pass", False), ("denominator_pass", True)]
    assert torch.isfinite(anchors.grad).all()


def test_autocast_multiplies_in_its_own_dtype():
    anchors, anchor_labels, bank, bank_labels = draw("bank")
    anchors.requires_grad_()
    results = []
    for backend in ("triton", "tiled"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = info_nce(anchors, anchor_labels, bank, bank_labels, backend=backend)
        assert loss.dtype == torch.float32
        results.append([loss.detach(), *torch.autograd.grad(loss, anchors)])
        assert results[-1][1].dtype == torch.float32
    assert worst_error(*results) < 4 * torch.finfo(torch.bfloat16).eps
    plain = info_nce(anchors, anchor_labels, bank, bank_labels, backend="triton")
    assert plain != results[0][0]


def test_overflow_of_a_scaled_loss_is_infinite():
    anchors, anchor_labels, bank, bank_labels = draw("bank", dtype=torch.float16)
    anchors.requires_grad_()
    loss = info_nce(anchors, anchor_labels, bank, bank_labels, temperature=0.01, backend="triton")
    (loss * 2.0**30).backward()
    assert anchors.grad.isinf().any()
    assert not anchors.grad.isnan().any()


@pytest.mark.parametrize("form", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize("with_bank", [False, True], ids=["batch", "bank"])
def test_modules(form, with_bank):
    generator = torch.Generator().manual_seed(5)
    maps = torch.randn(2, 6, 9, 9, generator=generator)
    classes = torch.randint(0, 3, (2, 9, 9), generator=generator)
    results = []
    for backend in ("triton", "tiled"):
        bank = MemoryBank(3, 6, pixel_slots=20, region_slots=4) if with_bank else None
        loss = form(bank=bank, backend=backend)
        emb = maps.clone().requires_grad_()
        for step in range(2):
            value = loss(emb, classes, generator=torch.Generator().manual_seed(step))
        results.append([value.detach(), *torch.autograd.grad(value, emb)])
    assert worst_error(*results) < BOUND


def test_compiled():
    def loss(anchors, anchor_labels, bank, bank_labels):
        contrast, names = [None, bank], [None, bank_labels]
        return info_nce(anchors, anchor_labels, contrast, names, backend="triton")

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    anchors, *rest = draw("bank")
    anchors.requires_grad_()
    results = []
    for form in (compiled, loss):
        value = form(anchors, *rest)
        results.append([value, *torch.autograd.grad(value, anchors)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


# PyTorch 2.14 looks at a gradient of its own that warns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("strategy", [None, "hardest", "semi-hard"])
def test_opcheck(strategy):
    anchors, anchor_labels, bank, bank_labels = draw("bank", num_anchors=20)
    anchors.requires_grad_()
    anchor_labels, bank_labels = (
        names.masked_fill(names == IGNORE, -1) for names in (anchor_labels, bank_labels)
    )
    sampler = None
    if strategy is not None:
        sampler = HardNegativeSampler(
            strategy=strategy, ratio=0.5, num_negatives=4, num_positives=3
        )
    problem = Problem.of(
        anchors,
        anchor_labels,
        [(None, None), (bank, bank_labels)],
        form="triton",
        negative_sampler=sampler,
        seed=torch.tensor(11) if strategy == "semi-hard" else None,
    )
    torch.library.opcheck(losses_operator, problem.arguments())
    inputs = replace(problem, anchors=anchors.detach()).arguments()
    _, _, _, *computed, _ = losses_operator(*inputs)
    arguments = (torch.rand(20), [True, True], computed[:3], computed[3:], *inputs)
    torch.library.opcheck(entries_gradient_operator, arguments)
