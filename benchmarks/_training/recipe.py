"""The options of a training run, their defaults for each data set, and the contrast they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from benchmarks._training.data import IGNORE_INDEX
from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    RandomAnchorSampler,
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All options of a run but its seed; both arms of a pair differ only in the contrast.

    Attributes:
        size: height and width of the images.
        weight: of the contrast, relative to the cross entropy.
        max_anchors, max_views, max_per_class: of the anchor sampler.
        flip: whether to mirror half of the training images.
        seeds: number of paired runs of `benchmarks.segmentation`.
        bank: slots of each class in each queue that `sources` names; 0 for no bank.
        sources: what to contrast with, as `PixelContrastLoss` takes it. None for everything
            available, `()` for cross entropy alone.
        anchors: `"hard"` or `"random"`.
        negatives: `"all"`, or a strategy of `HardNegativeSampler`, which then takes
            `num_negatives` and `num_positives`.
        warmup: fraction of the run over which the weight of the contrast rises from 0.
        fade: fraction of the run, at its end, over which that weight falls to 0.
        schedule: of the learning rate, `"polynomial"` or `"cosine"`.
        projection: a kind of `ProjectionHead`, or `"mlp without norm"`.
        projected: what the head projects, `"map"` (every pixel) or `"samples"` (the sampled ones).
        pixels_per_region: of the bank; None for the mean of all pixels.
        network: `"small"`, `"large"`, `"wide"`, or `"lite0"`, which is pretrained on ImageNet,
            or `"lite0 from scratch"`.
        dim: size of the embedding.
        label_smoothing: of the cross entropy.
        generalized: q of the generalized cross entropy, which takes its place; 0 for none.
        left_out: names of classes whose training labels are void; the embedding is scored on them.
        without: name of the training sequence that is left out, and scored in addition; `""` for
            none.
        labelled: number of training images, drawn by the seed; 0 for all.
        wrong: fraction of the classes of an image whose pixels get the label of another class.
        dilated: pixels by which the masks of training labels grow over their neighbors.
        crops: whether training images are cropped, resized and recolored at random.
        class_weights: whether the cross entropy weights classes by median frequency balancing.
        layer: what the contrast is applied to, `"decoder"` or the encoder's map at `"1/16"`.
        pretraining: fraction of the run, at its beginning, with the contrast as the only loss; the
            rest of the run has the cross entropy alone.
        confidence: softmax from which a teacher labels a pixel of the images without labels; 0 for
            no self-training.
    """

    size: tuple[int, int]
    steps: int
    batch_size: int = 8
    optimizer: str
    learning_rate: float
    weight: float
    temperature: float = 0.1
    max_anchors: int = 512
    max_views: int = 6
    max_per_class: int | None = None
    flip: bool
    seeds: int
    bank: int = 0
    pixels_per_image: int = 2
    base_temperature: float = 0.07
    momentum: float = 0.9
    weight_decay: float = 5e-4
    decay_power: float = 0.9
    schedule: str = "polynomial"
    sources: tuple[str, ...] | None = None
    anchors: str = "hard"
    negatives: str = "all"
    num_negatives: int = 128
    num_positives: int = 64
    denominator: str = "negatives"
    projection: str = "mlp"
    projected: str = "map"
    pixels_per_region: int | None = None
    warmup: float = 0.0
    fade: float = 0.0
    network: str = "small"
    dim: int = 64
    label_smoothing: float = 0.0
    left_out: tuple[str, ...] = ()
    without: str = ""
    labelled: int = 0
    wrong: float = 0.0
    dilated: int = 0
    crops: bool = False
    class_weights: bool = False
    layer: str = "decoder"
    pretraining: float = 0.0
    confidence: float = 0.0
    generalized: float = 0.0

    @property
    def has_contrast(self) -> bool:
        """Whether the run trains with contrast."""
        return self.sources != ()

    def is_pretraining(self, step: int) -> bool:
        """Return whether a step belongs to the part with the contrast as the only loss."""
        return step < round(self.pretraining * self.steps)

    def progress(self, step: int) -> float:
        """Return the finished fraction of the run, or of the current part of its two."""
        first = round(self.pretraining * self.steps)
        return step / first if step < first else (step - first) / (self.steps - first)

    def contrast_weight(self, step: int) -> float:
        """Compute the weight of the contrast at a step, with warm-up and fade."""
        if self.pretraining:
            return self.weight if self.is_pretraining(step) else 0.0
        done = step / self.steps
        rising = min(1.0, done / self.warmup) if self.warmup > 0 else 1.0
        falling = min(1.0, (1 - done) / self.fade) if self.fade > 0 else 1.0
        return self.weight * min(rising, falling)

    def make_criterion(
        self, num_classes: int, projection: nn.Module | None = None
    ) -> PixelContrastLoss:
        """Make the contrast loss, with a bank of the queues that are read.

        `projection` is the head, which the loss calls if it projects the sampled pixels.
        """
        sampler = RandomAnchorSampler if self.anchors == "random" else HardAnchorSampler
        options: dict[str, Any] = {"denominator": self.denominator, "contrast_with": self.sources}
        if self.negatives != "all":
            mining: dict[str, Any] = {"strategy": self.negatives}
            options["negative_sampler"] = HardNegativeSampler(
                **mining, num_negatives=self.num_negatives, num_positives=self.num_positives
            )
        if self.bank:
            read = ("pixels", "regions") if self.sources is None else self.sources
            options["bank"] = MemoryBank(
                num_classes,
                self.dim,
                pixel_slots=self.bank if "pixels" in read else 0,
                region_slots=self.bank if "regions" in read else 0,
                pixels_per_image=self.pixels_per_image,
                pixels_per_region=self.pixels_per_region,
                ignore_index=IGNORE_INDEX,
            )
        return PixelContrastLoss(
            temperature=self.temperature,
            base_temperature=self.base_temperature,
            ignore_index=IGNORE_INDEX,
            anchor_sampler=sampler(
                max_anchors=self.max_anchors,
                max_views=self.max_views,
                max_per_class=self.max_per_class,
            ),
            projection=projection if self.projected == "samples" else None,
            **options,
        )


RECIPES = {
    "digits": Recipe(
        size=(48, 48),
        steps=300,
        optimizer="adamw",
        learning_rate=0.003,
        weight=0.003,
        # A mirrored digit has another shape.
        flip=False,
        seeds=3,
    ),
    # The paper's optimizer, decay, temperature and weight, on small images.
    "camvid": Recipe(
        size=(72, 96),
        steps=700,
        optimizer="sgd",
        learning_rate=0.3,
        weight=0.1,
        flip=True,
        seeds=5,
    ),
}
SGD = replace(RECIPES["camvid"], steps=500)
BANK: dict[str, Any] = {"bank": 100, "pixels_per_image": 2}
ADAMW = replace(SGD, optimizer="adamw", learning_rate=0.002, weight_decay=0.01, schedule="cosine")
EMBEDDING = replace(
    ADAMW,
    size=(96, 128),
    steps=300,
    network="lite0",
    learning_rate=0.001,
    weight=0.5,
    projected="samples",
)
