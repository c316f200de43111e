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
}


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def run(case, compiler, dynamic, sizes=SIZES):
    form, options = CASES[case]
    options = {**options, "backend": "tiled"}
    if "bank" in options:
        options["bank"] = MemoryBank(CLASSES, DIM, pixel_slots=9, region_slots=5, **options["bank"])
    projected = options.pop("projection", False)
    if projected:
        options["projection"] = ProjectionHead(CHANNELS, DIM)
    loss = torch.compile(form(**options), fullgraph=True, backend=compiler, dynamic=dynamic)
    for images, size in sizes:
        shape = (images, CHANNELS if projected else DIM, size, size)
        emb = torch.randn(shape, requires_grad=True)
        value = loss(emb, torch.randint(CLASSES, (images, 2 * size, 2 * size)))
        value.backward()
        assert torch.isfinite(value)
        assert emb.grad.abs().max() > 0
    assert counters["stats"]["unique_graphs"] <= len(sizes)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.long if "head" in case else ()) for case in CASES]
)
def test_sizes_that_change(case):
    run(case, "aot_eager", None)


def test_sizes_that_change_with_symbolic_sizes_from_the_start():
    run("pixels", "eager", True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # of the compiler's own imports
@pytest.mark.plain_empty
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.slow
def test_sizes_that_change_under_the_default_compiler():
    run("pixels", "inductor", None, SIZES[:2])
