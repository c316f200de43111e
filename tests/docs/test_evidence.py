"""No figure of the docs is typed: each one stands in a committed JSON."""

import json
import re

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
    found, pairs = [], []
    for name in ("best", "best-again", "best-val"):
        table = TABLES[name]
        contrast = lines_of(table, load_runs(COMMITTED.with_name(table.file)))[1]
        found.append(signed(contrast.compared.difference, contrast.compared.standard_error))
        positive = sum(one > 0 for one in contrast.differences)
        pairs.append(f"{positive} of {len(contrast.differences)} pairs")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for expected in (
        f"all 20 seeds, those that suggested the effect included, give {found[0]} ({pairs[0]})",
        f"A replication with eight seeds gives {found[1]} ({pairs[1]})",
        f"On the validation set there is no gain, {found[2]}",
    ):
        assert readme.count(expected) == 1


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
