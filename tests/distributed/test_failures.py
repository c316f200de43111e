"""A rank that dies, and a run that goes on from its checkpoint."""

from pathlib import Path
from typing import Any

import dying
from pool import Pool
from test_data_parallel import assert_same_bits


def assert_told_in_time(left: dict[int, Any]) -> None:
    assert list(left) == [0]
    assert "onnection" in left[0]["told"]  # gloo's own words
    assert left[0]["seconds"] < dying.TIME_LIMIT


def test_a_run_goes_on_bit_for_bit_where_a_rank_has_died(pool: Pool, tmp_path: Path) -> None:
    assert_told_in_time(dying.start(dying.until_one_dies, tmp_path, "loss"))
    expected = pool.run("dying.uninterrupted", 2)
    answers = dying.start(dying.resumed, tmp_path)
    assert list(answers) == [0, 1]
    for rank, answer in answers.items():
        assert len(answer["losses"]) == 3
        assert_same_bits(answer, expected[rank])


def test_a_rank_that_dies_before_its_backward(tmp_path: Path) -> None:
    assert_told_in_time(dying.start(dying.until_one_dies, tmp_path, "backward"))
