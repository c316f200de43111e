"""The table and the JSON of paired runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median

import numpy as np

from benchmarks._training.data import SegmentationData
from benchmarks._training.measures import Measured
from benchmarks._training.pairs import Pair
from benchmarks._training.recipe import Recipe


@dataclass(frozen=True)
class Compared:
    """One figure in both arms, averaged over seeds, and the difference of the pairs."""

    plain: float
    contrast: float
    difference: float
    standard_error: float


@dataclass(frozen=True)
class Summary:
    """What the pairs say together; NaN where there is nothing to say."""

    mean_iou: Compared
    class_iou: list[Compared]
    trunk_within: Compared
    trunk_between: Compared
    projection_within: Compared
    projection_between: Compared
    ratio_median: float
    ratio_lowest: float
    ratio_highest: float


def summarise(pairs: Sequence[Pair], num_classes: int) -> Summary:
    """Average over seeds; a pair shares its luck, so it is the differences that count."""
    ratios = [ratio for pair in pairs for ratio in pair.contrast.ratios if math.isfinite(ratio)]
    return Summary(
        mean_iou=_compare(pairs, lambda measured: measured.mean_iou),
        class_iou=[_compare(pairs, _class_iou(index)) for index in range(num_classes)],
        trunk_within=_compare(pairs, lambda measured: measured.trunk.within),
        trunk_between=_compare(pairs, lambda measured: measured.trunk.between),
        projection_within=_compare(pairs, lambda measured: measured.projection.within),
        projection_between=_compare(pairs, lambda measured: measured.projection.between),
        ratio_median=median(ratios) if ratios else math.nan,
        ratio_lowest=min(ratios, default=math.nan),
        ratio_highest=max(ratios, default=math.nan),
    )


def format_table(data: SegmentationData, recipe: Recipe, pairs: Sequence[Pair]) -> str:
    """The result for a reader: what was measured, whichever way it points."""
    summary = summarise(pairs, data.num_classes)
    lines = [
        f"{data.name} at {recipe.size[0]}x{recipe.size[1]}: {len(data.train)} training images, "
        f"{len(data.heldout)} held out ({data.heldout_is}), {len(pairs)} paired seeds",
        "",
        f"{'':<34}{'cross entropy':>14}{'with contrast':>14}{'difference':>12}{'':>9}",
        _row("mean IoU", summary.mean_iou, scale=100, digits=2),
    ]
    for name, compared in zip(data.class_names, summary.class_iou, strict=True):
        lines.append(_row(f"  {name}", compared, scale=100, digits=2))
    lines += [
        "cosine similarity of pixels",
        _row("  trunk, within a class", summary.trunk_within, scale=1, digits=3),
        _row("  trunk, between classes", summary.trunk_between, scale=1, digits=3),
        _row("  projection, within a class", summary.projection_within, scale=1, digits=3),
        _row("  projection, between classes", summary.projection_between, scale=1, digits=3),
        "",
        f"gradient at the trunk, {recipe.weight:g} x contrast / cross entropy: "
        f"median {summary.ratio_median:.2f}, "
        f"range {summary.ratio_lowest:.2f} to {summary.ratio_highest:.2f}",
        "(+- is the standard error of the paired differences over the seeds; the projection of the "
        "arm without contrast is never trained)",
    ]
    return "\n".join(lines)


def as_record(
    data: SegmentationData,
    recipe: Recipe,
    pairs: Sequence[Pair],
    environment: dict[str, object],
    seconds: float,
) -> dict[str, object]:
    """Everything measured, ready for JSON: NaN, which JSON does not know, becomes null."""
    record = {
        "data": {
            "name": data.name,
            "train_images": len(data.train),
            "train_fingerprint": data.train.fingerprint(),
            "heldout_images": len(data.heldout),
            "heldout_fingerprint": data.heldout.fingerprint(),
            "heldout_is": data.heldout_is,
            "class_names": data.class_names,
        },
        "recipe": asdict(recipe),
        "environment": environment,
        "seconds": seconds,
        "summary": asdict(summarise(pairs, data.num_classes)),
        "pairs": [asdict(pair) for pair in pairs],
    }
    return {key: without_nan(value) for key, value in record.items()}


def _class_iou(index: int) -> Callable[[Measured], float]:
    return lambda measured: measured.class_iou[index]


def _compare(pairs: Sequence[Pair], figure: Callable[[Measured], float]) -> Compared:
    return compare(
        [figure(pair.plain.measured) for pair in pairs],
        [figure(pair.contrast.measured) for pair in pairs],
    )


def compare(plain: Sequence[float], contrast: Sequence[float]) -> Compared:
    """One figure of both arms, a pair at each place."""
    differences = [with_it - without for with_it, without in zip(contrast, plain, strict=True)]
    # statistics.stdev fails on NaN, which is what a class without held-out pixels has.
    error = math.nan
    if len(differences) > 1:
        error = float(np.std(differences, ddof=1)) / math.sqrt(len(differences))
    return Compared(fmean(plain), fmean(contrast), fmean(differences), error)


def _row(name: str, compared: Compared, scale: float, digits: int) -> str:
    if math.isnan(compared.plain):
        return f"{name:<34}{'-':>14}{'-':>14}"
    error = f" +- {scale * compared.standard_error:.{digits}f}"
    return (
        f"{name:<34}{scale * compared.plain:>14.{digits}f}{scale * compared.contrast:>14.{digits}f}"
        f"{scale * compared.difference:>+12.{digits}f}"
        f"{'' if math.isnan(compared.standard_error) else error:<9}"
    ).rstrip()


def without_nan(value: object) -> object:
    """The same with null for what is no number, which JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return value
