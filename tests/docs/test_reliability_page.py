"""The counts of docs/reliability.md are those of the committed results."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = " ".join((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split())
MUTANTS = json.loads((RESULTS / "mutants.json").read_text(encoding="utf-8"))
FILES, EXPLAINED = MUTANTS["files"], MUTANTS["explained"]
RUNS = json.loads((RESULTS / "fuzz.json").read_text())["runs"]
SOAK = json.loads((RESULTS / "soak.json").read_text())


def test_every_mutation_that_no_test_detects_is_explained():
    explained = Counter(place.split(":")[0] for places in EXPLAINED.values() for place in places)
    assert explained == {n: c["explained"] for n, c in FILES.items() if c["explained"]}
    assert all(EXPLAINED)


def test_the_counts_of_mutations():
    detected, explained = (
        sum(counts[how] for counts in FILES.values()) for how in ("detected", "explained")
    )
    assert f"{detected + explained:,} faults in {len(FILES)} files" in PAGE
    assert f"{detected:,} seen, {explained} explained" in PAGE


def test_the_most_frequent_explanations_are_on_the_page():
    reasons: Counter[str] = Counter()
    for why, places in EXPLAINED.items():
        reasons[why.split(":")[0]] += len(places)
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
