"""Running experiments: one training run with its measurements, or several side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks._measure.environment import describe_environment
from benchmarks._training import camvid, scenes
from benchmarks._training.data import CORRUPTIONS, SegmentationData, corrupted
from benchmarks._training.embedding import embedding_scores
from benchmarks._training.measures import measure
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.runs import Key, Run, append_run
from benchmarks._training.training import train_arm

CLASSES = {"camvid": camvid.CLASSES, "digits": scenes.CLASSES}
_DRAWING = threading.Lock()
"""Initial weights are drawn from the global generator, which all threads share."""


def load_data(
    data: str, split: str, size: tuple[int, int], root: Path | None, without: str = ""
) -> SegmentationData:
    """Load the images that a run trains on and is scored on."""
    if data == "digits":
        return scenes.load_scenes(size, holdout=split == "tuning")
    if root is None:
        raise ValueError("--root FOLDER: expected CamVid's folder, which holds train/; got none")
    return camvid.load_camvid(root, size, split == "tuning", without)


def prepare(key: Key, data: SegmentationData) -> tuple[SegmentationData, SegmentationNetwork]:
    """Return the data that a run sees, and its network with the initial weights."""
    recipe, seed = key.recipe, key.seed
    seen = data.without_classes(recipe.left_out)
    if recipe.labelled:
        seen = seen.with_few_labels(recipe.labelled, seed)
    if recipe.wrong:
        seen = seen.with_wrong_labels(recipe.wrong, seed)
    if recipe.dilated:
        seen = seen.with_dilated_labels(recipe.dilated, seed)
    with _DRAWING:
        torch.manual_seed(seed)
        network = SegmentationNetwork(recipe, seen.num_classes)
    return seen, network.to(data.train.images.device)


def run_experiment(
    key: Key,
    data: SegmentationData,
    environment: dict[str, object],
    advance: Callable[[], object] = lambda: None,
) -> Run:
    """Train a network and measure it, on the device of the data."""
    recipe, seed = key.recipe, key.seed
    seen, network = prepare(key, data)
    start = time.perf_counter()
    ratios, stats = train_arm(network, seen, recipe, seed, advance)
    seconds = time.perf_counter() - start
    measured = measure(network, seen.heldout, seen.num_classes)
    if seen.other is not None:
        scored = {"other": seen.other}
        scored |= {name: corrupted(seen.heldout, name) for name in CORRUPTIONS}
        for name, split in scored.items():
            measured[name] = measure(network, split, seen.num_classes)
    if recipe.left_out:
        measured["embedding"] = embedding_scores(network, seen, data)
    return {
        "train_fingerprint": data.train.fingerprint(),
        "heldout_fingerprint": data.heldout.fingerprint(),
        "seconds": seconds,  # of the training alone
        "measured": measured,
        # Gradient ratios at the trunk and `loss.stats`, at some steps; empty without contrast.
        "ratio_steps": list(ratios),
        "ratios": list(ratios.values()),
        "stats": stats,
        "environment": environment,
    }


def run_side_by_side(
    keys: Iterable[Key],
    data: SegmentationData,
    path: Path,
    workers: int,
    name_of: Callable[[Key], str],
) -> None:
    """Run experiments in threads, append each to a file when it is finished, and print a line.

    Set PyTorch to one thread first: a network this small gains nothing from a second one, and its
    sums would depend on the number of threads.
    """
    environment, device = describe_environment(), data.train.images.device
    if device.type == "cuda":
        environment["device"] = torch.cuda.get_device_name(device)
    keys, stopped = list(keys), threading.Event()
    total = sum(key.recipe.steps for key in keys)
    # disable=None: no bar where standard error is not a terminal.
    bar = tqdm(total=total, unit="step", leave=False, disable=None)

    def advance() -> None:
        if stopped.is_set():
            raise RuntimeError("stopped")
        bar.update()

    with bar, ThreadPoolExecutor(workers) as executor:
        futures = {
            executor.submit(run_experiment, key, data, environment, advance): key for key in keys
        }
        try:
            for finished in as_completed(futures):
                key, run = futures[finished], finished.result()
                append_run(path, key, run)
                score, seconds = 100 * run["measured"]["mean_iou"], run["seconds"]
                bar.write(f"seed {key.seed}  {name_of(key)}  mean IoU {score:.2f}  {seconds:.0f} s")
        except BaseException:
            # Stop the other runs too: their results would not be used.
            stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
