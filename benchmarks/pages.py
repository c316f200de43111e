"""The tables of the docs, made from the committed JSON; a test holds the docs to it.

    python -m benchmarks.pages

A table stands between `<!-- table: KIND NAME -->` and `<!-- end -->`. What stands between them is
written anew, so that no figure of a table is ever typed.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._tables.ablation import markdown_lines
from benchmarks._tables.readings import markdown_readings
from benchmarks._tables.scale import scale_table
from benchmarks._tables.text import markdown_table, signed
from benchmarks._training.protocol import TABLES
from benchmarks._training.runs import load_runs
from benchmarks.ablation import COMMITTED

ROOT = Path(__file__).parents[1]
PAGES = tuple(ROOT / "docs" / name for name in ("experiments.md", "reading.md", "scale.md"))
RESULTS = COMMITTED.parent
TABLE = re.compile(r"(<!-- table: (\w+) ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the tables of every page."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{page.relative_to(ROOT)} written")


def filled(text: str) -> str:
    """A page with its tables as the JSON has them."""
    return TABLE.sub(lambda found: f"{found[1]}\n{KINDS[found[2]](found[3])}\n\n{found[4]}", text)


def _ablation(name: str) -> str:
    return markdown_lines(TABLES[name], load_runs(COMMITTED))


def _reading(name: str) -> str:
    return markdown_readings(TABLES[name], load_runs(COMMITTED))


def _pairs(name: str) -> str:
    """What `benchmarks.segmentation` wrote: the classes, and how the embeddings lie."""
    record = _record(name)
    summary, names = record["summary"], record["data"]["class_names"]
    rows = [_compared(f"mean IoU, {len(record['pairs'])} pairs", summary["mean_iou"], 100, 2)]
    for of_class, compared in zip(names, summary["class_iou"], strict=True):
        rows.append(_compared(of_class, compared, 100, 2))
    for part in ("trunk", "projection"):
        for pairs_of, words in (("within", "within a class"), ("between", "between classes")):
            label = f"similarity, {part}, {words}"
            rows.append(_compared(label, summary[f"{part}_{pairs_of}"], 1, 3))
    ratios = [f"{summary[f'ratio_{which}']:.2f}" for which in ("lowest", "median", "highest")]
    rows.append(["gradient ratio at the trunk: lowest, median, highest", "", ", ".join(ratios), ""])
    return markdown_table(("", "cross entropy", "with contrast", "difference"), rows)


def _scores(name: str) -> str:
    """One line for each file of `benchmarks.segmentation` on a data set."""
    rows: list[list[str]] = []
    for path in sorted(RESULTS.glob(f"segmentation-{name}*.json")):
        record = _record(path.stem)
        pairs = record["pairs"]
        by_seed = [
            signed(100 * (pair["contrast"]["measured"]["mean_iou"] - _plain(pair)))
            for pair in pairs
        ]
        compared = _compared(f"`{path.name}`", record["summary"]["mean_iou"], 100, 2)
        rows.append([*compared, ", ".join(by_seed)])
    return markdown_table(("", "cross entropy", "with contrast", "difference", "by seed"), rows)


def _price(name: str) -> str:
    """What `benchmarks.price` wrote."""
    rows: list[list[str]] = []
    for row in _record(name)["rows"]:
        height, width = row["recipe"]["size"]
        title = (
            f"{row['parameters'] / 1e6:.1f} M parameters, "
            f"{row['recipe']['batch_size']} images of {height}×{width}"
        )
        measured = row["measured"]
        first = next(iter(measured.values()))
        for way, one in measured.items():
            memory, ratio = one["extra_mb"], one["seconds"] / first["seconds"]
            weighed = ["", ""]
            if memory is not None:
                weighed = [f"{memory:.0f}", f"{memory / first['extra_mb']:.2f}"]
            rows.append([title, way, f"{1000 * one['seconds']:.0f}", f"{ratio:.2f}", *weighed])
            title = ""
    return markdown_table(("", "way", "ms a step", "ratio", "extra MB", "ratio"), rows)


def _scale(name: str) -> str:
    return scale_table(name, _record("ranks"))


KINDS: dict[str, Callable[[str], str]] = {
    "ablation": _ablation,
    "reading": _reading,
    "pairs": _pairs,
    "scores": _scores,
    "price": _price,
    "scale": _scale,
}


def _plain(pair: dict[str, Any]) -> float:
    mean_iou: float = pair["plain"]["measured"]["mean_iou"]
    return mean_iou


def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def _compared(label: str, compared: dict[str, float], scale: float, digits: int) -> list[str]:
    plain, contrast = (f"{scale * compared[arm]:.{digits}f}" for arm in ("plain", "contrast"))
    error = scale * compared["standard_error"]
    difference = signed(scale * compared["difference"], error, digits)
    return [label, plain, contrast, difference]


if __name__ == "__main__":
    main()
