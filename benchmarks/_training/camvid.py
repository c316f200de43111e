"""CamVid from a folder in its usual layout: train/, trainannot/, val/, valannot/."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._training.data import IGNORE_INDEX, Bytes, SegmentationData, Split

CLASS_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CLASS_COLOURS = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
VOID = 11
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
TUNING_FRACTION = 0.25


def load_camvid(root: Path, size: tuple[int, int], holdout: bool = False) -> SegmentationData:
    """Read the folder once, resized to `size` (height, width).

    With `holdout`, val/ is not touched: the last quarter of each training sequence is held out
    instead. Neighbouring frames are nearly the same picture, so a random part would leak.
    """
    train = _pairs(root, "train")
    heldout = train if holdout else _pairs(root, "val")
    if holdout:
        train, heldout = _split_sequences(train)
    return SegmentationData(
        name="camvid",
        train=_read(train, size),
        heldout=_read(heldout, size),
        heldout_is="the last quarter of each training sequence" if holdout else "val/",
        class_names=CLASS_NAMES,
        class_colours=CLASS_COLOURS,
    )


Pair = tuple[Path, Path]


def _pairs(root: Path, split: str) -> list[Pair]:
    """Every image of a split with its label file, in the order of their names."""
    images, labels = root / split, root / f"{split}annot"
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} is not there: CamVid's folder holds train/, trainannot/, val/, valannot/"
            )
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{images} holds no PNG or JPEG image")
    pairs = [(path, labels / f"{path.stem}.png") for path in found]
    for _, label in pairs:
        if not label.is_file():
            raise FileNotFoundError(f"{label} is missing: every image needs a label of its name")
    return pairs


def _split_sequences(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Cut each sequence (what a file name has before its last `_`) into its start and its end."""
    sequences: dict[str, list[Pair]] = {}
    for pair in pairs:
        sequences.setdefault(pair[0].stem.rpartition("_")[0], []).append(pair)
    start: list[Pair] = []
    end: list[Pair] = []
    for sequence in sequences.values():
        cut = len(sequence) - round(len(sequence) * TUNING_FRACTION)
        start += sequence[:cut]
        end += sequence[cut:]
    if not end:
        raise ValueError("there are too few training images to hold some of them out")
    return start, end


def _read(pairs: list[Pair], size: tuple[int, int]) -> Split:
    images = [_read_image(image, size) for image, _ in pairs]
    labels = [_read_label(label, size) for _, label in pairs]
    return Split.from_arrays(images, labels)


def _read_image(path: Path, size: tuple[int, int]) -> Bytes:
    with Image.open(path) as image:
        # Pillow's bilinear filter widens with the shrinking: it averages, it does not skip pixels.
        resized = image.convert("RGB").resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _read_label(path: Path, size: tuple[int, int]) -> Bytes:
    with Image.open(path) as image:
        if image.mode not in ("L", "P"):
            raise ValueError(f"{path} must be an 8-bit PNG of class numbers, not {image.mode}")
        label = np.array(image.resize((size[1], size[0]), Image.Resampling.NEAREST))
    if label.max() > VOID:
        raise ValueError(f"{path} holds label {label.max()}: expected 0 to 10, or 11 for void")
    label[label == VOID] = IGNORE_INDEX
    return label
