"""The examples of docs/scale.md run as they stand, alone and on four ranks."""

import re
from pathlib import Path

import message_jobs
import pytest
from pool import Pool

TEXT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_examples_run_alone(number: int) -> None:
    message_jobs.run_text(None, 0, BLOCKS[number])


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_examples_run_on_four_ranks(pool: Pool, number: int) -> None:
    pool.run("message_jobs.run_text", 4, BLOCKS[number])


def test_there_are_examples() -> None:
    assert len(BLOCKS) == 7
