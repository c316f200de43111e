"""Segmentation data without a download: scikit-learn's digits painted over its photographs.

Each scene is a darkened crop of a photograph with handwritten digits in light colors. The label of
a pixel is the digit whose ink covers it, or background. Ink is easy to find; the digits are told
apart by their whole shape.

Training and held-out scenes share no digits and no columns of the photographs. scikit-learn keeps
the digits in collection order, so most held-out digits are also from other writers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from benchmarks._training.data import Bytes, SegmentationData, Split, stacked

CLASSES = ("background", *(f"digit {number}" for number in range(10)))
TRAIN_SCENES, HELDOUT_SCENES = 600, 150
DIGITS_PER_SCENE = 3
PLACEMENT_TRIES = 20
"""A digit without a free position after this many tries is left out."""
DIMMING = 0.6
"""Factor on the photographs' brightness, so that light ink is visible."""
LIGHTEST, DARKEST = 255, 160
INK_THRESHOLD = 128
"""Ink below this value is the soft edge of a stroke: painted, but labelled background."""

Colors = npt.NDArray[np.float32]


def load_scenes(size: tuple[int, int], holdout: bool = False) -> SegmentationData:
    """Compose the scenes; the same size always gives the same scenes.

    With `holdout`, both splits come from the training source. Options are chosen there, so that
    the held-out scenes stay unseen until the final result.
    """
    # Bounds of the digits and of the photographs' columns, as fractions of all of them.
    cuts = (0.5, 0.7) if holdout else (0.7, 1.0)
    return SegmentationData(
        train=_compose_split((0.0, cuts[0]), TRAIN_SCENES, size, seed=1),
        heldout=_compose_split(cuts, HELDOUT_SCENES, size, seed=2),
        classes=CLASSES,
    )


def _compose_split(
    source: tuple[float, float], count: int, size: tuple[int, int], seed: int
) -> Split:
    def part(length: int) -> slice:
        return slice(*(round(length * bound) for bound in source))

    random, digits = np.random.default_rng(seed), load_digits()
    selected = part(len(digits.target))
    inks = np.rint(digits.images[selected] * (255 / 16)).astype(np.uint8)
    kinds = digits.target[selected]
    photographs = [found[:, part(found.shape[1])] for found in load_sample_images().images]
    images: list[Bytes] = []
    labels: list[Bytes] = []
    for _ in range(count):
        scene = _crop(photographs[random.integers(len(photographs))], size, random)
        label = np.zeros(size, np.uint8)
        for index in random.integers(len(kinds), size=DIGITS_PER_SCENE):
            _paint(scene, label, inks[index], int(kinds[index]) + 1, random)
        images.append(scene.astype(np.uint8))
        labels.append(label)
    return stacked(images, labels)


def _crop(photograph: Bytes, size: tuple[int, int], random: np.random.Generator) -> Colors:
    """Cut out a random window, mirror it half of the time, and darken it."""
    if any(wanted > available for wanted, available in zip(size, photograph.shape, strict=False)):
        available = "x".join(map(str, photograph.shape[:2]))
        raise ValueError(f"size: expected at most {available}; got {size[0]}x{size[1]}")
    window = photograph[_random_window(photograph.shape[:2], size, random)]
    turned = window[:, ::-1] if random.random() < 0.5 else window
    dimmed: Colors = turned.astype(np.float32) * np.float32(DIMMING)
    return dimmed


def _paint(scene: Colors, label: Bytes, ink: Bytes, kind: int, random: np.random.Generator) -> None:
    """Paint one digit into the scene and its label, where it covers no other digit."""
    shortest = min(label.shape)
    side = int(random.integers(round(shortest * 0.38), round(shortest * 0.5) + 1))
    resized = np.asarray(Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC))
    drawn = resized >= INK_THRESHOLD
    for _ in range(PLACEMENT_TRIES):
        window = _random_window(label.shape, drawn.shape, random)
        if not label[window][drawn].any():
            break
    else:
        return
    color = random.integers(DARKEST, LIGHTEST + 1, size=3).astype(np.float32)
    cover = (random.uniform(0.8, 1.0) / 255) * resized[..., None].astype(np.float32)
    scene[window] += cover * (color - scene[window])
    label[window][drawn] = kind


def _random_window(
    outer: tuple[int, ...], inner: tuple[int, ...], random: np.random.Generator
) -> tuple[slice, ...]:
    starts = [random.integers(most - size + 1) for most, size in zip(outer, inner, strict=True)]
    return tuple(slice(s, s + size) for s, size in zip(starts, inner, strict=True))
