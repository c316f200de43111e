"""The tables of docs/performance.md say what the committed records say."""

import json
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


@pytest.mark.parametrize("lines", [hot_path_lines, step_lines])
def test_tables_are_those_of_the_records(lines):
    expected = [line.replace("|  |", "| |") for line in lines()]
    assert len(expected) > 3
    text = TEXT.replace("|  |", "| |")
    assert "\n".join(expected) in text, "\n".join(expected)
