"""torch.compile: whole graphs, the same values, nothing compiled again for new values."""

import shutil
from dataclasses import replace

import pytest
import torch
from problems import error_of_loss, labels, vectors

from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss, RegionContrastLoss
from pixcontrast._info_nce.operators import entries_gradient_operator, losses_operator
from pixcontrast._info_nce.problem import Problem
from pixcontrast.functional import info_nce
from pixcontrast.samplers import HardAnchorSampler

MININGS = {
    "everything": None,
    "hardest": HardNegativeSampler(strategy="hardest", num_negatives=5, num_positives=3),
    "semi-hard": HardNegativeSampler(ratio=0.5, num_negatives=5, num_positives=3),
}
each_mining = pytest.mark.parametrize("mining", MININGS.values(), ids=MININGS)


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


not_by_the_compiler_of_2_7 = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8),
    reason="2.7's default compiler draws otherwise, and fails on the sampler where nothing is "
    "resized",
)


def draw(seed, rows=20, wants_gradient=True):
    generator = torch.Generator().manual_seed(seed)
    made = vectors(rows, 8, generator, torch.float32).requires_grad_(wants_gradient)
    return made, labels(rows, 3, generator)


def as_inputs(mining, anchors, anchor_labels, others, is_anchors, wants_gradient):
    """What the operators take."""
    other = iter(others)
    problem = Problem.of(
        anchors,
        anchor_labels,
        [(None, None) if own else next(other) for own in is_anchors],
        form="tiled",
        negative_sampler=mining,
        seed=None if mining is None else torch.tensor(11),
    )
    return replace(problem, want_gradient=wants_gradient).arguments()


# PyTorch 2.14 looks at a gradient of its own that warns.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@each_mining
@pytest.mark.parametrize("wants_gradient", [True, False])
def test_opcheck_of_the_losses(mining, wants_gradient):
    anchors, anchor_labels = draw(0, wants_gradient=wants_gradient)
    others = [draw(1, 30, wants_gradient), draw(2, 40, wants_gradient=False)]
    given = anchors, anchor_labels, others, [False, True, False]
    torch.library.opcheck(losses_operator, as_inputs(mining, *given, wants_gradient))


@each_mining
def test_opcheck_of_the_gradient(mining):
    anchors, anchor_labels = draw(0, wants_gradient=False)
    given = anchors, anchor_labels, [draw(1, 30, wants_gradient=False)], [True, False]
    inputs = as_inputs(mining, *given, True)
    _, _, _, *computed, _ = losses_operator(*inputs)
    arguments = (torch.rand(20), [True, True], computed[:3], computed[3:], *inputs)
    torch.library.opcheck(entries_gradient_operator, arguments)


@pytest.mark.usefixtures("sorted_tiles")  # the form that the operators run, in eager mode too
@each_mining
def test_info_nce(mining):
    def loss(anchors, anchor_labels, other, other_labels, bank, bank_labels):
        return info_nce(
            anchors,
            anchor_labels,
            [None, other, bank],
            [None, other_labels, bank_labels],
            negative_sampler=mining,
            backend="tiled",
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in range(3):
        arguments = (*draw(seed), *draw(seed + 10, 30), *draw(seed + 20, 40, False))
        results = []
        for form in (compiled, loss):
            torch.manual_seed(seed)
            value = form(*arguments)
            results.append((value, *torch.autograd.grad(value, (arguments[0], arguments[2]))))
        for actual, expected in zip(*results, strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("form", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize("with_bank", [False, True], ids=["batch", "bank"])
@pytest.mark.parametrize("mining", [None, MININGS["semi-hard"]], ids=["everything", "mined"])
def test_modules(form, with_bank, mining):
    compare_modules(form, with_bank, mining, "aot_eager")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of the compiler's own imports
@pytest.mark.plain_empty
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@not_by_the_compiler_of_2_7
@pytest.mark.slow
def test_a_module_under_the_default_compiler():
    # Its random numbers are its own unless told otherwise.
    with torch._inductor.config.patch(fallback_random=True):
        compare_modules(PixelContrastLoss, True, None, "inductor")


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of the compiler's own imports
@pytest.mark.plain_empty
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@not_by_the_compiler_of_2_7
@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((2, 8, 6, 6), marks=pytest.mark.long, id="2d"),
        pytest.param((2, 8, 3, 4, 5), marks=pytest.mark.slow, id="3d"),
    ],
)
def test_a_small_map_under_the_default_compiler(shape):
    """All pixels are anchors, so that no draw matters, and the gradient of an index is full."""
    loss = PixelContrastLoss(backend="tiled")
    emb = torch.randn(shape, requires_grad=True)
    labels = torch.randint(3, (shape[0], *shape[2:]))
    (expected,) = torch.autograd.grad(loss(emb, labels), emb)
    compiled = torch.compile(loss, fullgraph=True, backend="inductor")
    (actual,) = torch.autograd.grad(compiled(emb, labels), emb)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def compare_modules(form, with_bank, mining, compiler):
    """Equal but for rounding: compiled code takes the path that looks at no value."""
    losses, banks = [], []
    for _ in range(2):
        banks.append(MemoryBank(3, 8, pixel_slots=20, region_slots=20) if with_bank else None)
        sampler = HardAnchorSampler(max_anchors=32, max_views=8)
        losses.append(
            form(anchor_sampler=sampler, bank=banks[-1], negative_sampler=mining, backend="tiled")
        )
    losses[0] = torch.compile(losses[0], fullgraph=True, backend=compiler)
    for seed in range(4):
        results = []
        for loss in losses:
            torch.manual_seed(seed)
            emb = torch.randn(2, 8, 6, 6, requires_grad=True)
            value = loss(emb, torch.randint(4, (2, 12, 12)) - 1, torch.randn(2, 3, 6, 6))
            value.backward()
            results.append((value, emb.grad, *loss.stats))
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    if with_bank:
        assert banks[0].pixel_count.min() == 20
        for name, buffer in banks[0].state_dict().items():
            expected = banks[1].state_dict()[name]
            torch.testing.assert_close(buffer, expected, rtol=1e-5, atol=1e-6)


def test_without_gradient():
    loss = PixelContrastLoss(backend="tiled")
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    emb, pixel_labels = torch.randn(1, 4, 5, 5), torch.randint(2, (1, 5, 5))
    with torch.no_grad():
        torch.manual_seed(1)
        actual = compiled(emb, pixel_labels)
        torch.manual_seed(1)
        expected = loss(emb, pixel_labels)
    # The compiler takes pixels in another layout, and so their lengths may be summed otherwise.
    bound = error_of_loss(torch.float32, 4, 1 / 0.1, 25)
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
