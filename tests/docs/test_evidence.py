"""No figure of the docs is typed: each one stands in a committed JSON."""

import json
import re
from dataclasses import replace

import pytest

from benchmarks._tables.pairs import lines_of
from benchmarks._tables.text import signed
from benchmarks._training.protocol import TABLES
from benchmarks._training.runs import load_runs
from benchmarks.ablation import COMMITTED
from benchmarks.pages import PAGES, ROOT, TABLE, filled

NOT_MEASURED = {"2.0", "4.0"}  # of the names of licences
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}


def decimals(text):
    return set(re.findall(r"\d+\.\d+", text))


def prose(text):
    """A page without its tables, commands, comments and links' targets."""
    text = re.sub(r"```.*?```|<!--.*?-->|\]\([^)]*\)", "", text, flags=re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def options():
    """Every number that a recipe of a committed run has, as Python writes it."""
    records = [json.loads(line) for line in COMMITTED.read_text().splitlines()]
    recipes = [record["recipe"] for record in records]
    return {str(value) for recipe in recipes for value in recipe.values()}


@pytest.mark.parametrize("page", TEXTS)
def test_tables_are_those_of_the_json(page):
    assert TABLE.search(TEXTS[page])
    assert TEXTS[page] == filled(TEXTS[page]), "python -m benchmarks.pages writes them anew"


@pytest.mark.parametrize("page", TEXTS)
def test_no_table_of_figures_is_typed(page):
    outside = TABLE.sub("", TEXTS[page])
    typed = [line for line in outside.splitlines() if line.startswith("|") and decimals(line)]
    assert not typed


@pytest.mark.parametrize("page", TEXTS)
def test_figures_in_sentences_stand_in_a_table_or_are_options(page):
    tables = " ".join(found.group() for text in TEXTS.values() for found in TABLE.finditer(text))
    unknown = decimals(prose(TEXTS[page])) - decimals(tables) - options() - NOT_MEASURED
    assert not unknown


def test_the_readme_says_what_was_confirmed():
    def gain(name, row=1, scored="other"):
        table = replace(TABLES[name], scored=scored)
        line = lines_of(table, load_runs(COMMITTED.with_name(table.file)))[row]
        positive = sum(one > 0 for one in line.differences)
        difference = signed(line.compared.difference, line.compared.standard_error)
        return difference, f"({positive} of {len(line.differences)} pairs)"

    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    shorter = [gain("best-shorter", row=2, scored=scored)[0] for scored in ("other", "heldout")]
    for expected in (
        f"contrast gains {' '.join(gain('best'))}, in a replication",
        f"with eight of the seeds {' '.join(gain('best-again'))}.",
        f"a third fewer steps without contrast gain {gain('best', row=3)[0]} there",
        f"contrast gains {shorter[0]} on the new sequence and {shorter[1]} on the validation set",
        f"{shorter[0]} points with 30% wrong labels on a new sequence",
    ):
        assert readme.count(expected) == 1, expected


def test_committed_runs_are_of_one_set_of_images_a_split():
    found = {}
    for path in {COMMITTED, *(COMMITTED.with_name(table.file) for table in TABLES.values())}:
        for key, run in load_runs(path).items():
            prints = (run["train_fingerprint"], run["heldout_fingerprint"])
            images = (key.data, key.split, key.recipe.size, key.recipe.without)
            found.setdefault(images, set()).add(prints)
    assert len(found) > 5
    assert all(len(prints) == 1 for prints in found.values())


def test_pictures_of_the_docs_are_there_and_small():
    named = {name for text in TEXTS.values() for name in re.findall(r"\]\((figures/[^)]+)\)", text)}
    assert named
    sizes = [(ROOT / "docs" / name).stat().st_size for name in named]
    assert sum(sizes) < 1_000_000
