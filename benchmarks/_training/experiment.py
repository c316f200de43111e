"""One run of the ablation: a network trained by a recipe and measured, on any device."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks._training.camvid import load_camvid
from benchmarks._training.data import SegmentationData
from benchmarks._training.measures import measure
from benchmarks._training.runs import Key, Run
from benchmarks._training.scenes import load_scenes
from benchmarks._training.training import initial_network, is_sampled, train_arm
from pixcontrast import PixelContrastLoss

_DRAWING = threading.Lock()
"""Initial weights come from the global generator, of which there is one for all workers."""


def load_data(data: str, split: str, size: tuple[int, int], root: Path | None) -> SegmentationData:
    """The images of a run: what it trains on, and what it is scored on."""
    if data == "digits":
        return load_scenes(size, holdout=split == "tuning")
    if root is None:
        raise ValueError("--root FOLDER is missing: CamVid's folder, the one that holds train/")
    return load_camvid(root, size, holdout=split == "tuning")


def run_experiment(
    key: Key,
    data: SegmentationData,
    environment: dict[str, object],
    advance: Callable[[], object] = lambda: None,
) -> Run:
    """Train and measure, where the data are."""
    recipe, seed = key.recipe, key.seed
    with _DRAWING:
        network = initial_network(data, recipe, seed)
    network = network.to(data.train.images.device)
    stats: list[dict[str, float]] = []

    def observe(step: int, criterion: PixelContrastLoss) -> None:
        if is_sampled(step, recipe.steps):
            stats.append(stats_of(criterion))

    start = time.perf_counter()
    ratios = train_arm(network, data, recipe, seed, recipe.has_contrast, advance, observe)
    seconds = time.perf_counter() - start
    return Run(
        key=key,
        train_fingerprint=data.train.fingerprint(),
        heldout_fingerprint=data.heldout.fingerprint(),
        seconds=seconds,
        measured=measure(network, data),
        ratio_steps=ratios.steps,
        ratios=ratios.values,
        stats=stats,
        environment=environment,
    )


def stats_of(criterion: PixelContrastLoss) -> dict[str, float]:
    """What a loss says of its last call, as numbers."""
    if criterion.stats is None:
        return {}
    said = criterion.stats._asdict()
    return {name: float(value) for name, value in said.items() if value is not None}
