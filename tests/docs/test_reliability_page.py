"""Every count of docs/reliability.md stands in a committed result; every fault is accounted for."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = " ".join((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split())
FAULTS = [json.loads(line) for line in (RESULTS / "mutants.jsonl").read_text().splitlines()]
RUNS = json.loads((RESULTS / "fuzz.json").read_text())["runs"]
SOAK = json.loads((RESULTS / "soak.json").read_text())


def test_every_fault_that_no_test_sees_is_explained():
    seen = {"killed", "timed out"}
    assert {fault["status"] for fault in FAULTS} <= seen | {"survived", "not executed"}
    unexplained = [f for f in FAULTS if f["status"] not in seen and not f.get("why")]
    assert not unexplained
    assert not [fault for fault in FAULTS if fault["status"] in seen and "why" in fault]
    assert len({(f["file"], f["line"], f["what"]) for f in FAULTS}) == len(FAULTS)


def test_the_counts_of_faults():
    unseen = sum("why" in fault for fault in FAULTS)
    assert f"{len(FAULTS):,} faults in {len({f['file'] for f in FAULTS})} files" in PAGE
    assert f"{len(FAULTS) - unseen:,} seen, {unseen} explained" in PAGE


def test_every_reason_is_on_the_page():
    reasons = Counter(fault["why"].split(":")[0] for fault in FAULTS if "why" in fault)
    for reason, count in reasons.most_common(5):
        assert f"| {reason} | {count} |" in PAGE, (reason, count)


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run["name"])
def test_the_counts_of_random_calls(run):
    ended = run["ended"]
    assert f"{ended['calls']:,}" in PAGE
    assert sum(count for how, count in ended.items() if how != "calls") == ended["calls"]
    assert run["command"].split(" --out")[0] in PAGE
    assert run["found_again_at_the_end"] == {}


def test_the_long_run():
    first, last = SOAK["parts"][0], SOAK["parts"][-1]
    assert f"{SOAK['steps']:,}" in PAGE
    for part in (first, last):
        assert f"{part['resident_bytes'] / 1e6:.1f} MB" in PAGE
        assert re.search(rf"\b{1000 * part['median_seconds']:.1f}\b", PAGE)
    assert SOAK["warnings"] == {}
