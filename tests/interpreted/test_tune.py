"""The search for tiles, with the interpreter in the place of a card."""

import pytest
import torch

from benchmarks import tune
from benchmarks._ways.problem import Case
from pixcontrast._info_nce.fused.configurations import (
    INTERPRETED,
    Configuration,
    configurations_for,
    using,
)

CPU = torch.device("cpu")


@pytest.fixture
def _few_tiles(monkeypatch):
    for name, values in (("ROWS", (16,)), ("COLUMNS", (16, 32)), ("WARPS", (4,)), ("STAGES", (1,))):
        monkeypatch.setattr(tune, name, values)


def test_tiles_are_replaced_inside_and_nowhere_else():
    before = configurations_for(90, "16", 64)
    with using(INTERPRETED):
        assert configurations_for(90, "16", 64) == INTERPRETED
    assert configurations_for(90, "16", 64) == before


@pytest.mark.usefixtures("_few_tiles")
def test_a_search_takes_the_fastest_that_is_right(monkeypatch):
    fast = Configuration(16, 16, 4, 1)
    seen = []

    def seconds(trial, *_, **__):
        chosen = configurations_for(90, "16", 64)
        seen.append(chosen)
        return 0.5 if chosen.denominator == fast else 1.0

    monkeypatch.setattr(tune, "seconds_of", seconds)
    found = tune.search(INTERPRETED, Case("float32", 20, 60, 8), 1, CPU)
    assert found.denominator == fast
    assert all(one.denominator.columns % one.positives.columns == 0 for one in seen)
    assert tune.as_row((90, "16", 64), found).startswith("(90, '16', 64): C(K(16, 16, 4, 1), K(")


def test_a_wrong_result_has_no_time():
    right = (torch.tensor(1.0), torch.tensor([2.0]))
    for wrong in (torch.tensor(float("nan")), torch.tensor(1.2)):
        for found in ((wrong, right[1]), (right[0], wrong[None])):
            with pytest.raises(ValueError, match="another result"):
                tune.timed(lambda found=found: found, right, 0.1, 1, CPU)
    assert tune.timed(lambda: right, right, 0.1, 1, CPU) >= 0


def test_without_a_device(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2
    assert "no CUDA device here" in capsys.readouterr().out
