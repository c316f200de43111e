"""Embedded data that needs no download: scikit-learn's digits composed over its photographs.

Every scene is a crop of a photograph, darkened, with handwritten digits painted on it in light
colours; the label of a pixel is the digit whose ink covers it, or background. Finding ink is easy,
telling the digits apart takes their whole shape.

Training and held-out scenes share nothing: their digits are disjoint (and, as scikit-learn keeps
them in the order they were collected, mostly by other writers), and their photographs are cropped
from disjoint columns.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from benchmarks._training.data import Bytes, SegmentationData, Split

CLASS_NAMES = ("background", *(f"digit {digit}" for digit in range(10)))
CLASS_COLOURS = (
    (40, 40, 40),
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (140, 86, 75),
    (227, 119, 194),
    (188, 189, 34),
    (23, 190, 207),
    (245, 245, 245),
)
TRAIN_SCENES = 600
HELDOUT_SCENES = 150
DIGITS_PER_SCENE = 3
PLACEMENT_TRIES = 20
"""A digit that finds no free place after so many tries is left out."""
DIMMING = 0.6
"""What is left of the photographs' brightness, so that light ink can be told from them."""
LIGHTEST, DARKEST = 255, 160
INK_THRESHOLD = 128
"""Ink below this is the soft edge of a stroke: painted, but labelled background."""


@dataclass(frozen=True)
class Source:
    """The part of the digits and of the photographs' columns that one split may use."""

    digits: tuple[float, float]
    columns: tuple[float, float]


TRAIN = Source(digits=(0.0, 0.7), columns=(0.0, 0.7))
HELDOUT = Source(digits=(0.7, 1.0), columns=(0.7, 1.0))
# The hold-out for choosing options lies wholly inside the training source.
TUNING_TRAIN = Source(digits=(0.0, 0.5), columns=(0.0, 0.5))
TUNING_HELDOUT = Source(digits=(0.5, 0.7), columns=(0.5, 0.7))


def load_scenes(size: tuple[int, int], holdout: bool = False) -> SegmentationData:
    """Compose the scenes, always the same ones for the same size.

    With `holdout`, both splits come out of the training source: that is where options are chosen,
    so that the held-out scenes stay unseen until the result.
    """
    train, heldout = (TUNING_TRAIN, TUNING_HELDOUT) if holdout else (TRAIN, HELDOUT)
    return SegmentationData(
        name="digits",
        train=_compose_split(train, TRAIN_SCENES, size, seed=1),
        heldout=_compose_split(heldout, HELDOUT_SCENES, size, seed=2),
        heldout_is="a part of the training source" if holdout else "digits and photographs unseen",
        class_names=CLASS_NAMES,
        class_colours=CLASS_COLOURS,
    )


def _compose_split(source: Source, count: int, size: tuple[int, int], seed: int) -> Split:
    random = np.random.default_rng(seed)
    digits = load_digits()
    chosen = _part(len(digits.target), source.digits)
    inks = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    kinds = digits.target[chosen]
    photographs = [
        photograph[:, _part(photograph.shape[1], source.columns)]
        for photograph in load_sample_images().images
    ]
    images: list[Bytes] = []
    labels: list[Bytes] = []
    for _ in range(count):
        scene = _crop(photographs[random.integers(len(photographs))], size, random)
        label = np.zeros(size, np.uint8)
        for index in random.integers(len(kinds), size=DIGITS_PER_SCENE):
            _paint(scene, label, inks[index], int(kinds[index]) + 1, random)
        images.append(scene.astype(np.uint8))
        labels.append(label)
    return Split.from_arrays(images, labels)


def _part(count: int, bounds: tuple[float, float]) -> slice:
    return slice(round(count * bounds[0]), round(count * bounds[1]))


def _crop(
    photograph: Bytes, size: tuple[int, int], random: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Cut a random window out of the photograph, mirrored half of the time and darkened."""
    height, width = size
    if height > photograph.shape[0] or width > photograph.shape[1]:
        raise ValueError(
            f"size {height}x{width} is larger than the photographs' "
            f"{photograph.shape[0]}x{photograph.shape[1]} pixels of this split"
        )
    top = random.integers(photograph.shape[0] - height + 1)
    left = random.integers(photograph.shape[1] - width + 1)
    window = photograph[top : top + height, left : left + width]
    turned = window[:, ::-1] if random.random() < 0.5 else window
    dimmed: npt.NDArray[np.float32] = turned.astype(np.float32) * np.float32(DIMMING)
    return dimmed


def _paint(
    scene: npt.NDArray[np.float32],
    label: Bytes,
    ink: Bytes,
    kind: int,
    random: np.random.Generator,
) -> None:
    """Paint one digit somewhere into the scene and into its label, beside those already there."""
    shortest = min(label.shape)
    side = int(random.integers(round(shortest * 0.38), round(shortest * 0.5) + 1))
    resized = np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC))
    drawn = resized >= INK_THRESHOLD
    window = _free_window(label, drawn, random)
    if window is None:
        return
    colour = random.integers(DARKEST, LIGHTEST + 1, size=3).astype(np.float32)
    cover = (random.uniform(0.8, 1.0) / 255) * resized[..., None].astype(np.float32)
    scene[window] += cover * (colour - scene[window])
    label[window][drawn] = kind


def _free_window(
    label: Bytes, drawn: npt.NDArray[np.bool_], random: np.random.Generator
) -> tuple[slice, slice] | None:
    """Find a place where the digit covers no other one."""
    height, width = drawn.shape
    for _ in range(PLACEMENT_TRIES):
        top = random.integers(label.shape[0] - height + 1)
        left = random.integers(label.shape[1] - width + 1)
        window = (slice(top, top + height), slice(left, left + width))
        if not label[window][drawn].any():
            return window
    return None
