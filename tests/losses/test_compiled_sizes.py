"""torch.compile with sizes that change: a smaller last batch, crops at several scales."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RandomAnchorSampler,
    RegionContrastLoss,
)

CLASSES, CHANNELS, DIM = 3, 6, 8
SIZES = [(4, 8), (3, 8), (1, 10)]
CASES = {
    "pixels": (PixelContrastLoss, {"anchor_sampler": HardAnchorSampler(max_anchors=32)}),
    "pixels, bank, head": (
        PixelContrastLoss,
        {
            "anchor_sampler": RandomAnchorSampler(max_anchors=32, max_per_class=9),
            "bank": {"pixels_per_region": 3},
            "projection": True,
        },
    ),
    "pixels, mined": (
        PixelContrastLoss,
        {"negative_sampler": HardNegativeSampler(num_negatives=4, num_positives=2), "bank": {}},
    ),
    "regions, bank": (RegionContrastLoss, {"bank": {}}),
    "regions": (RegionContrastLoss, {}),
    "image": (PixelContrastLoss, {"contrast_with": ("image",), "backend": "dense"}),
}


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def run(case, compiler, dynamic, sizes=SIZES, dims=2, training=True):
    form, options = CASES[case]
    options = {"backend": "tiled", **options}
    if "bank" in options:
        options["bank"] = MemoryBank(CLASSES, DIM, pixel_slots=9, region_slots=5, **options["bank"])
    projected = options.pop("projection", False)
    if projected:
        options["projection"] = ProjectionHead(CHANNELS, DIM)
    loss = form(**options).train(training)
    loss = torch.compile(loss, fullgraph=True, backend=compiler, dynamic=dynamic)
    for images, size in sizes:
        spatial, images = dims * (size,), images if dims else 9 * images
        emb = torch.randn(images, CHANNELS if projected else DIM, *spatial, requires_grad=True)
        labels = torch.randint(CLASSES, (images, *(2 * length for length in spatial)))
        preds = weight = None
        if not training:
            preds, weight = torch.randn(images, CLASSES, *spatial), torch.rand(labels.shape)
        value = loss(emb, labels, preds, weight=weight)
        value.backward()
        assert torch.isfinite(value)
        assert emb.grad.abs().max() > 0
    assert counters["stats"]["unique_graphs"] <= len(sizes)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long if "bank" in case else ()) for case in CASES]
)
def test_sizes_that_change(case):
    run(case, "aot_eager", None)


@pytest.mark.parametrize("case", ["pixels", "regions"])
@pytest.mark.parametrize(("dims", "training"), [(0, True), (3, True), (2, False)])
def test_points_volumes_and_evaluation(case, dims, training):
    run(case, "eager", None, SIZES, dims, training)


def test_sizes_that_change_with_symbolic_sizes_from_the_start():
    run("pixels", "eager", True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of the compiler's own imports
@pytest.mark.plain_empty
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.slow
def test_sizes_that_change_under_the_default_compiler():
    run("pixels", "inductor", None, SIZES[:2])
