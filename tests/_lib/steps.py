"""Training steps with every option, for tests of what a step does to its device."""

import itertools

import torch

from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RandomAnchorSampler,
    RegionContrastLoss,
)

CLASSES = 3
SAMPLERS = [
    HardAnchorSampler(max_anchors=24, max_views=4, hard_fraction=0.3, min_pixels=2),
    RandomAnchorSampler(max_anchors=24, max_views=4),
]
MININGS = [
    None,
    HardNegativeSampler(strategy="hardest", num_negatives=5, num_positives=2),
    HardNegativeSampler(strategy="semi-hard", ratio=0.3, num_negatives=5, num_positives=2),
    HardNegativeSampler(strategy="random", num_negatives=5, num_positives=None),
]
# Every value of every option at least once, and every form with every way to mine.
OPTIONS = [
    {"form": form, "with_bank": with_bank, "negative_sampler": mining, **more}
    for (form, with_bank, mining), more in zip(
        itertools.product((PixelContrastLoss, RegionContrastLoss), (True, False), MININGS),
        itertools.cycle(
            [
                {"anchor_sampler": SAMPLERS[0], "preds": "logits"},
                {
                    "anchor_sampler": SAMPLERS[1],
                    "denominator": "all",
                    "weighted": True,
                    "pixels_per_region": 3,
                },
                {"anchor_sampler": SAMPLERS[0], "preds": "classes", "reduction": "none"},
                {"anchor_sampler": SAMPLERS[1], "normalize": False, "reduction": "sum"},
                {
                    "anchor_sampler": SAMPLERS[0],
                    "base_temperature": 0.07,
                    "spatial": (4, 3, 5),
                    "dtype": torch.bfloat16,
                },
                {
                    "anchor_sampler": SAMPLERS[0],
                    "spatial": None,
                    "preds": "logits",
                    "weighted": True,
                    "update_bank": False,
                },
            ]
        ),
        strict=False,
    )
] + [
    {
        "form": form,
        "with_bank": with_bank,
        "negative_sampler": mining,
        "anchor_sampler": SAMPLERS[0],
        **more,
    }
    for form, with_bank, mining, more in (
        (PixelContrastLoss, True, None, {"projected": True, "pixels_per_region": 3}),
        (PixelContrastLoss, True, MININGS[2], {"projected": True, "spatial": None}),
        (RegionContrastLoss, True, None, {"projected": True}),
        (RegionContrastLoss, True, None, {"projected": True, "pixels_per_region": 3}),
        (RegionContrastLoss, False, None, {"projected": True, "spatial": (4, 3, 5)}),
        (PixelContrastLoss, False, None, {"projected": True, "contrast_with": ("image",)}),
        (PixelContrastLoss, True, MININGS[1], {"contrast_with": ("image", "pixels", "regions")}),
    )
]


class Step:
    """One training step: resizing, sampling, loss, bank, backward. Inputs are made before it."""

    def __init__(
        self,
        form,
        with_bank,
        spatial=(6, 5),
        dtype=torch.float32,
        preds=None,
        weighted=False,
        pixels_per_region=None,
        projected=False,
        device="cpu",
        **options,
    ):
        bank = MemoryBank(
            CLASSES,
            16,
            pixel_slots=9,
            region_slots=7,
            pixels_per_image=4,
            pixels_per_region=pixels_per_region,
        )
        self.bank = bank.to(device) if with_bank else None
        projection = None
        if projected:
            with torch.device(device):
                projection = ProjectionHead(12, 16)
        self.loss = form(bank=self.bank, projection=projection, **options)
        channels = 12 if projected else 16
        if spatial is None:  # points
            emb, images, labelled = torch.randn(40, channels), (40,), (40,)
        else:
            images, labelled = (2,), (2, *(2 * size for size in spatial))
            emb = torch.randn(2, channels, *spatial)
        self.emb = emb.to(device, dtype).requires_grad_()
        self.labels = torch.randint(-1, CLASSES, labelled).to(device)
        self.preds = None
        if preds == "classes":
            self.preds = torch.randint(CLASSES, labelled).to(device)
        elif preds == "logits":
            self.preds = torch.randn(*images, CLASSES, *labelled[1:]).to(device)
        self.weight = torch.rand(labelled).to(device) if weighted else None
        self.generator = torch.Generator(device)

    def __call__(self, generator=None):
        """The loss, the gradient of the embeddings, and the statistics."""
        loss = self.loss(self.emb, self.labels, self.preds, weight=self.weight, generator=generator)
        (gradient,) = torch.autograd.grad(loss.sum(), self.emb)
        return loss.detach(), gradient, *self.loss.stats
