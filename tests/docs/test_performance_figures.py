"""The tables of docs/performance.md say what the committed records say."""

import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "performance.md").read_text()


def record(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text())


def megabytes(found):
    return "–" if found is None else f"{found:,.0f}"


def hot_path_lines():
    for row in record("hot_path.json")["rows"]:
        title = f"{row['anchors']:,} × {row['entries']:,} × {row['dim']}"
        for way, one in row["measured"].items():
            yield (
                f"| {title} | {way} | {1000 * one['seconds']:,.0f} | {one['to_floor']:.2f} | "
                f"{one['spread']:.2f} | {megabytes(one['extra_mb'])} |"
            )
            title = ""


def step_lines():
    for row in record("step.json")["steps"]:
        title = f"{row['name']}, {row['case']}"
        for way, one in row["measured"].items():
            yield (
                f"| {title} | {way} | {1000 * one['seconds']:,.0f} | {one['to_step']:.2f} | "
                f"{one['to_loss']:.2f} | {one['spread']:.2f} | {megabytes(one['extra_mb'])} |"
            )
            title = ""


def small_lines():
    for row in record("small.json")["rows"]:
        dense, tiled = (1000 * row["measured"][way]["seconds"] for way in ("dense", "tiled"))
        size = f"{row['anchors']:,} × {row['dim']}"
        yield f"| {size} | {dense:.2f} | {tiled:.2f} | {tiled / dense:.2f} |"


def head_lines():
    found = record("head.json")
    slow, fast = (found[way] for way in ("every pixel", "sampled pixels"))
    seconds = [sorted(one["seconds"])[len(one["seconds"]) // 2] for one in (slow, fast)]
    yield f"| every pixel | – | {seconds[0]:.1f} | {slow['extra_mb']:,} |"
    faster = f"1/{seconds[0] / seconds[1]:.0f}"
    yield (
        f"| the sampled pixels | 1/25 of the time | {seconds[1]:.2f} ({faster}) | "
        f"{fast['extra_mb']:,} |"
    )


def before_after_lines():
    for row in record("before-after.json")["rows"]:
        seconds = (sorted(row[when]) for when in ("before", "after"))
        before, after = (1000 * of_commit[len(of_commit) // 2] for of_commit in seconds)
        yield f"| {row['case']} | {before:,.0f} | {after:,.0f} | {row['ratio_of_medians']:.2f} |"


@pytest.mark.parametrize("lines", [hot_path_lines, step_lines, small_lines, before_after_lines])
def test_tables_are_those_of_the_records(lines):
    expected = [line.replace("|  |", "| |") for line in lines()]
    assert len(expected) > 3
    text = TEXT.replace("|  |", "| |")
    assert "\n".join(expected) in text, "\n".join(expected)


def test_the_host_time_is_that_of_the_record():
    found = record("host.json")
    cells = []
    for row in found["rows"]:
        before, after = (statistics.median(row[when]) for when in ("before", "after"))
        cells.append(
            f"{before:.2f} → {after:.2f} ms against {row['case']} ({row['ratio_of_medians']:.2f})"
        )
    assert found["before"] == "ea039f8"
    assert f"in `host.json`: {', '.join(cells)}, with" in TEXT


def test_the_head_is_that_of_the_record():
    assert "\n".join(head_lines()) in TEXT
