"""How many launches a training step makes where kernels run, and of what."""

import pytest
import torch
from launch_counts import Counts
from waits import HostAsks

from pixcontrast import HardAnchorSampler, HardNegativeSampler, MemoryBank, PixelContrastLoss

QUEUES = ("pixels", "regions")
CASES = {
    # Case: sources, negative sampler, and the most launches of a step, and of it around the loss.
    "batch": (("batch",), None, 27, 16),
    "bank": (QUEUES, None, 50, 30),
    "batch and bank": (("batch", *QUEUES), None, 57, 30),
    "mining": (QUEUES, HardNegativeSampler(), 157, 31),
    "mining, all similarities stored": (QUEUES, HardNegativeSampler(), 107, 31),
}
OF_THE_LOSS = ("_info_nce", "autograd")


@pytest.mark.plain_empty
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_few_launches(case, dtype, monkeypatch):
    """As `benchmarks.step` on Cityscapes: 19 classes, logits of another size, and autocast."""
    sources, sampler, limit, limit_around = CASES[case]
    bank = None
    if case != "batch":
        # In the case "mining" there are more than 2,048 entries, as at usual sizes.
        slots = 80 if case == "mining" else 50
        bank = MemoryBank(19, 16, pixel_slots=slots, region_slots=40, dtype=torch.bfloat16)
    loss = PixelContrastLoss(
        bank=bank,
        base_temperature=0.07,
        contrast_with=sources,
        negative_sampler=sampler,
        anchor_sampler=HardAnchorSampler(max_anchors=64, max_views=8),
    )
    emb = torch.randn(2, 16, 12, 20).to(dtype).requires_grad_()
    labels, logits = torch.randint(0, 19, (2, 48, 80)), torch.randn(2, 19, 33, 20)
    steps = []
    for values in (labels, torch.full_like(labels, 3)):
        with (
            Counts(monkeypatch) as counts,
            HostAsks(),
            torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
        ):
            torch.autograd.grad(loss(emb, values, logits), emb)
        steps.append(counts.launches)
    assert steps[0] == steps[1]  # whatever the labels: what a CUDA graph can hold
    around = [launch for launch in steps[0] if launch.file.parts[0] not in OF_THE_LOSS]
    assert len(steps[0]) <= limit + (dtype == torch.bfloat16)
    assert len(around) <= limit_around + (dtype == torch.bfloat16)  # one conversion
    kernels = {launch.name for launch in around if launch.name.endswith("_kernel")}
    assert len(kernels) >= (7 if bank is None else 12)
