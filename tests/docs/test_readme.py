"""The commands, pictures and figures of the README; test_docs.py checks its Python and links."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README, INDEX = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/index.md")
)
MEASURED = "".join(
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("experiments", "experiment-tables", "embedding")
)


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_two_commands_do_all_the_set_up():
    commands = blocks("bash")[0].strip().splitlines()
    assert len(commands) == 2
    for command in commands:
        assert command.startswith("python -m pip install -e '.[")
    assert commands[0].endswith("&& python -m benchmarks.segmentation")
    assert commands[1].endswith("&& python -m pytest")


def test_continuous_integration_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "readme_commands | sed -n 2p" in script


def record(name):
    return json.loads((ROOT / "benchmarks" / "results" / name).read_text(encoding="utf-8"))


def headlines():
    """The results in the rows of "What was measured", computed from the records."""
    size = (975, 95_000, 256)
    (hot_path,) = (
        row["measured"]
        for row in record("hot_path.json")["rows"]
        if (row["anchors"], row["entries"], row["dim"]) == size
    )
    tiled = hot_path["tiled"]
    memory = f"{tiled['extra_mb']:.0f} MB"
    for way in ("authors", "compiled"):
        ratio = hot_path[way]["seconds"] / tiled["seconds"]
        other = hot_path[way]["extra_mb"]
        yield f"{ratio:.1f} times as fast; {memory} instead of {other:,.0f} MB"
    yield f"{tiled['to_floor']:.2f} times the time"
    for case in ("batch", "bank"):
        (step,) = (
            row["measured"]
            for row in record("step.json")["steps"]
            if (row["name"], row["case"]) == ("cityscapes", case)
        )
        yield f"{step['authors']['to_step']:.0f} times as fast"
    yield f"{hot_path['mined']['seconds'] / tiled['seconds']:.1f} times the time"
    networks = [row["measured"] for row in record("price.json")["rows"]]
    assert len(networks) == 4
    for way in ("the batch", "both banks"):
        ratios = [ways[way]["seconds"] / ways["cross entropy"]["seconds"] for ways in networks]
        yield f"{min(ratios):.2f} to {max(ratios):.2f} times the time"


def test_headlines_are_those_of_the_records():
    assert results(README, "## Speed and memory") == list(headlines())


def results(text, heading):
    """The third column of the table below a heading."""
    section = text.split(heading)[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][2:]
    return [line.split(" | ")[2].removesuffix(" |") for line in lines]


GAIN = re.compile(r"[+−]\d+\.\d+ ± \d+\.\d+")


def test_the_sites_first_page_has_figures_of_the_readme():
    found = results(INDEX, "## What to expect")
    speeds = [one for one in found if not GAIN.search(one)]
    assert speeds
    assert set(speeds) < set(headlines())


def test_gains_are_those_of_the_experiments():
    for text in (README, INDEX):
        found = set(GAIN.findall(text))
        assert found
        assert found <= set(GAIN.findall(MEASURED))


def test_pictures_are_there_and_small():
    named = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert named
    assert all((ROOT / name).stat().st_size < 300_000 for name in named)


def test_the_picture_of_the_sphere_says_what_its_record_says():
    found = record("sphere.json")
    assert len(found["steps"]) == len(found["within"]) == len(found["between"])
    apart = [a - b for a, b in zip(found["within"], found["between"], strict=True)]
    assert apart == sorted(apart)
