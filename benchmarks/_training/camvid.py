"""CamVid from a folder in its usual layout: train/, trainannot/, val/, valannot/."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks._training.data import IGNORE_INDEX, Bytes, SegmentationData, Split, stacked

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car"),
    *("pedestrian", "bicyclist"),
)
VOID = 11
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
TUNING_FRACTION = 0.25

Files = list[tuple[Path, Path]]
"""Image files, each with its label file."""


def load_camvid(
    root: Path, size: tuple[int, int], holdout: bool = False, without: str = ""
) -> SegmentationData:
    """Load the data set, resized to `size` (height, width).

    With `holdout`, val/ is not read: the last quarter of each training sequence (the file name
    before its last `_`) is held out instead. Neighboring frames are almost the same picture, so a
    random part would leak. `without` is a training sequence that becomes `other`.
    """
    train = _list_files(root, "train")
    heldout = [] if holdout else _list_files(root, "val")
    sequences: dict[str, Files] = {}
    for pair in train:
        sequences.setdefault(pair[0].stem.rpartition("_")[0], []).append(pair)
    if without and without not in sequences:
        raise ValueError(f"without: expected one of {', '.join(sequences)}; got {without}")
    other = sequences.pop(without) if without else []
    train = [pair for pair in train if pair not in other]
    if holdout:
        train = []
        for sequence in sequences.values():
            cut = len(sequence) - round(len(sequence) * TUNING_FRACTION)
            train += sequence[:cut]
            heldout += sequence[cut:]
        if not heldout:
            raise ValueError("train/: expected more images, so that some can be held out")
    return SegmentationData(
        train=_read(train, size),
        heldout=_read(heldout, size),
        classes=CLASSES,
        other=_read(other, size) if other else None,
    )


def _list_files(root: Path, split: str) -> Files:
    """List every image of a split with its label file, sorted by name."""
    images, labels = root / split, root / f"{split}annot"
    for folder in (images, labels):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: expected CamVid's folder with train/, trainannot/, val/, valannot/"
            )
    found = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{images}: expected PNG or JPEG images; got none")
    files = [(path, labels / f"{path.stem}.png") for path in found]
    for _, label in files:
        if not label.is_file():
            raise FileNotFoundError(f"{label}: expected a label file for every image; got none")
    return files


def _read(files: Files, size: tuple[int, int]) -> Split:
    images: list[Bytes] = []
    labels: list[Bytes] = []
    for image_path, label_path in files:
        with Image.open(image_path) as image:
            # Pillow's bilinear filter averages over all pixels when it shrinks an image.
            resized = image.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
        images.append(np.asarray(resized))
        with Image.open(label_path) as image:
            if image.mode not in ("L", "P"):
                expected = "expected an 8-bit PNG of class ids"
                raise ValueError(f"{label_path}: {expected}; got mode {image.mode}")
            label = np.array(image.resize(size[::-1], Image.Resampling.NEAREST))
        if label.max() > VOID:
            expected = f"expected labels 0 to {VOID - 1}, or {VOID} for void"
            raise ValueError(f"{label_path}: {expected}; got {label.max()}")
        label[label == VOID] = IGNORE_INDEX
        labels.append(label)
    return stacked(images, labels)
