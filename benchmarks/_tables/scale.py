"""The tables of docs/scale.md, computed by `_ranks.costs` or measured by `benchmarks.ranks`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from benchmarks._ranks import costs
from benchmarks._ranks.costs import Step
from benchmarks._tables.text import TextTable

Record = dict[str, Any]

COCO_IMAGES = 118_287
COCO_CLASSES_OF_IMAGE = 14
"""The middle of the range that the benchmarks draw from; not counted in the data set."""

CITYSCAPES = Step(
    ranks=4,
    images=2,
    anchors=1024,
    dim=256,
    num_classes=19,
    pixels_per_image=10,
    pixel_slots=5000,
    region_slots=5000,
    bank_bytes=2,
)
COCO = replace(CITYSCAPES, images=4, num_classes=171, pixel_slots=500, region_slots=500)
EVERY_IMAGE = replace(
    COCO,
    ranks=8,
    pixel_slots=-(-COCO_IMAGES * 10 // 8),
    region_slots=-(-COCO_IMAGES // 8),
    sharded=True,
    written=COCO_IMAGES * COCO_CLASSES_OF_IMAGE * 11,
)
"""A bank with slots for every image in every class; absent classes are not written."""
BILLION = replace(
    COCO, ranks=64, images=2, pixel_slots=91_376, region_slots=0, sharded=True
)  # 64 · 171 · 91,376 = 1,000,018,944
CASES = {
    "Cityscapes": CITYSCAPES,
    "Cityscapes, sharded": replace(CITYSCAPES, pixel_slots=1250, region_slots=1250, sharded=True),
    "COCO-Stuff, 500 slots": COCO,
    "COCO-Stuff, every image": EVERY_IMAGE,
    "10⁹ entries": BILLION,
    "10⁹ entries, 128 anchors of D = 64": replace(BILLION, dim=64, anchors=128),
}
COMPUTED: dict[str, Callable[[Step], str]] = {
    "W": lambda step: str(step.ranks),
    "entries N": lambda step: f"{costs.entries(step):,}",
    "bank a rank": lambda step: scaled(costs.bank_bytes(step), "B"),
    "against the bank": lambda step: scaled(costs.bank_flops(step), "flop"),
    "new entries sent": lambda step: scaled(costs.new_entries_bytes(step), "B"),
    "received in all": lambda step: scaled(costs.received_bytes(step), "B"),
}
"""Headings of the table with a row for each case, and the functions that format their cells."""


def scale_table(name: str, record: Record) -> TextTable:
    """Make a table by name: the estimates, or the losses of the record of `benchmarks.ranks`."""
    if name == "estimates":
        cells = [
            [case, *(cell(step) for cell in COMPUTED.values())] for case, step in CASES.items()
        ]
        return TextTable(("", *COMPUTED), cells)
    rows = [
        [
            str(row["ranks"]),
            "sharded" if row["sharded"] else "whole",
            f"{row['slots']:,}",
            f"{row['extra_mb']:.1f}",
        ]
        for row in record["losses"]
    ]
    return TextTable(("W", "bank", "slots a rank", "extra MB a rank"), rows)


def scaled(value: float, unit: str) -> str:
    """Format a number with three digits and an SI prefix: 97.3 MB."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while value >= 999.5:
        value /= 1000
        prefix = next(prefixes)
    digits = 0 if prefix == "" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f} {prefix}{unit}".rstrip()
