"""Paired runs: for every seed both arms, trained and measured alike."""

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tqdm import tqdm

from benchmarks._training.data import SegmentationData
from benchmarks._training.measures import Measured, measure
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.recipe import Recipe
from benchmarks._training.training import initial_network, train_arm


@dataclass(frozen=True)
class ArmResult:
    """One arm of one seed. The gradient ratios are empty in the arm without contrast."""

    seconds: float
    measured: Measured
    ratio_steps: list[int]
    ratios: list[float]


@dataclass(frozen=True)
class Pair:
    """Both arms of one seed."""

    seed: int
    plain: ArmResult
    contrast: ArmResult


@dataclass(frozen=True)
class Networks:
    """The two trained networks of one seed, for the figure."""

    plain: SegmentationNetwork
    contrast: SegmentationNetwork


def run_pairs(data: SegmentationData, recipe: Recipe) -> Iterator[tuple[Pair, Networks]]:
    """Train and measure seed after seed, under a progress bar where there is a terminal.

    A line per arm is printed in any case, so that a log shows life too. The two arms run side by
    side, a thread each: one network this small on two threads comes nearly to a halt as soon as
    something else wants a processor, and its sums would depend on the number of threads.
    """
    total = 2 * recipe.seeds * recipe.steps
    # disable=None: no bar where standard error is no terminal.
    with tqdm(total=total, unit="step", leave=False, disable=None) as bar:
        for seed in range(recipe.seeds):
            bar.set_description(f"seed {seed}")
            plain = initial_network(data, recipe, seed)
            contrast = copy.deepcopy(plain)
            with ThreadPoolExecutor(2) as side_by_side:
                plain_run = side_by_side.submit(_run_arm, plain, data, recipe, seed, False, bar)
                contrast_run = side_by_side.submit(
                    _run_arm, contrast, data, recipe, seed, True, bar
                )
            pair = Pair(seed, plain_run.result(), contrast_run.result())
            yield pair, Networks(plain, contrast)


def _run_arm(
    network: SegmentationNetwork,
    data: SegmentationData,
    recipe: Recipe,
    seed: int,
    contrast: bool,
    bar: tqdm,
) -> ArmResult:
    start = time.perf_counter()
    ratios = train_arm(network, data, recipe, seed, contrast, bar.update)
    seconds = time.perf_counter() - start
    measured = measure(network, data)
    bar.write(
        f"seed {seed}  {'with contrast' if contrast else 'cross entropy'}"
        f"  mean IoU {100 * measured.mean_iou:6.2f}"
        f"  {seconds:6.1f} s, {1000 * seconds / recipe.steps:.0f} ms a step"
    )
    return ArmResult(seconds, measured, ratios.steps, ratios.values)
