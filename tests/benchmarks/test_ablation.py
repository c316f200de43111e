"""The ablation: what is done stays done, rows are paired, and the options reach the loss."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import ablation, pages, price
from benchmarks._measure.device import measured_peak
from benchmarks._tables.pairs import ablation_table, lines_of, readings_table
from benchmarks._training import experiment, training
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.protocol import TABLES
from benchmarks._training.recipe import SGD
from benchmarks._training.regimes import SCENARIOS
from benchmarks._training.runs import append_run, load_runs
from benchmarks._training.scenes import load_scenes
from benchmarks._training.table import ALONE, Table
from benchmarks._training.training import is_sampled, make_optimizer, set_learning_rate
from pixcontrast import HardAnchorSampler, HardNegativeSampler, RandomAnchorSampler

QUICK = ["--seeds", "2", "--steps", "3", "--batch-size", "2", "--size", "24x24"]


def run(folder, camvid, *options):
    ablation.main([*QUICK, "--root", str(camvid), "--out", str(folder), *options])
    return (folder / "ablation.jsonl").read_text().splitlines()


def drawn_run(seed, mean_iou, ratios=(), stats=()):
    alike = {"within": 0.5, "between": math.nan}
    return {
        "train_fingerprint": "a",
        "heldout_fingerprint": "b",
        "seconds": 10.0 + seed,
        "measured": {
            "mean_iou": mean_iou,
            "class_iou": [mean_iou, math.nan],
            "trunk": alike,
            "projection": alike,
        },
        "ratio_steps": list(range(len(ratios))),
        "ratios": list(ratios),
        "stats": list(stats),
        "environment": {"torch": "2"},
    }


CONFIRMED = (
    *(
        "camvid",
        "digits",
        "embedding",
        "embedding-larger-val",
        "embedding-larger-lower",
        "embedding-lower",
        "gpu",
        "gpu-pretrained",
        "recipe",
        "best",
        "best-again",
        "options-val",
        "wrong-30-losses",
        "best-val",
        "best-shorter",
        "wrong-30-smoothing-both",
        "wrong-30-smoothing-again",
        "wrong-30-both",
        "wrong-30-again",
    ),
    *(f"{name}-val" for name in SCENARIOS if f"{name}-val" in TABLES),
)
WITH_BASELINES = ("best", "best-again", "best-val", "wrong-30-losses")
"""Tables with the baselines that reviews asked for: nothing is chosen among them."""
SMALL = Table("Two rows", SGD, {**ALONE, "with it": {}}, seeds=(0, 1, 2))


def test_a_table_is_resumed_and_its_runs_are_those_of_an_undisturbed_one(tmp_path, camvid, capsys):
    whole = run(tmp_path / "whole", camvid, "--table", "small", "--workers", "2")
    assert len(whole) == 2 * len(TABLES["small"].rows)
    printed = capsys.readouterr().out
    for row in TABLES["small"].rows:
        assert row in printed

    # Killed in the middle of a line, and gone on with by a single worker.
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "ablation.jsonl").write_text("\n".join(whole[:4]) + "\n" + whole[4][:200])
    resumed = run(cut, camvid, "--table", "small", "--workers", "1")
    assert resumed[:4] == whole[:4]
    again = run(cut, camvid, "--table", "small")
    assert again == resumed
    results = [load_runs(folder / "ablation.jsonl") for folder in (tmp_path / "whole", cut)]
    assert results[0].keys() == results[1].keys()
    for key, one in results[0].items():
        other = results[1][key]
        assert one["measured"]["mean_iou"] == other["measured"]["mean_iou"]
        np.testing.assert_equal(one["ratios"], other["ratios"])
        assert bool(one["ratios"]) == key.recipe.has_contrast
        assert len(one["stats"]) == len(one["ratios"])
        assert one["train_fingerprint"] == other["train_fingerprint"]


def test_tables_share_the_runs_without_contrast(tmp_path, camvid):
    lines = run(tmp_path, camvid, "--table", "denominator", "temperature")
    records = [json.loads(line) for line in lines]
    # One of the temperatures is the recipe's own, and so is one of the denominators.
    assert len(records) == 2 * (1 + 2 + 5)
    assert sum(record["recipe"]["sources"] == [] for record in records) == 2
    assert {record["split"] for record in records} == {"tuning"}
    # Whatever a table fixes for its contrast.
    other = replace(SMALL, base=replace(SMALL.base, weight=0.7, bank=9, fade=0.5))
    alone, with_it = SMALL.rows
    assert other.key(alone, 0) == SMALL.key(alone, 0)
    assert other.key(with_it, 0) != SMALL.key(with_it, 0)
    # What there is to contrast with, said and not said.
    for sources, bank in ((("batch",), 0), (("batch", "pixels", "regions"), 5)):
        rows = {"unsaid": {"bank": bank}, "said": {"bank": bank, "sources": sources}}
        table = replace(SMALL, rows=rows)
        assert table.key("unsaid", 0) == table.key("said", 0)
        assert table.key("unsaid", 0).recipe.sources == sources


def test_val_is_for_what_has_been_chosen():
    for name, table in TABLES.items():
        assert (table.split == "val") == (name in CONFIRMED)
        if name not in ("camvid", "digits") and name in CONFIRMED:
            assert not set(table.seeds) & set(ablation.TABLES["small"].seeds)
            assert len(table.rows) <= (6 if name in WITH_BASELINES else 3)


def test_the_gpu_table_at_a_tiny_size(tmp_path, camvid):
    lines = run(tmp_path, camvid, "--table", "gpu", "--device", "cpu", "--seeds", "1")
    assert [json.loads(line)["recipe"]["dim"] for line in lines] == [256] * 3
    recipe = TABLES["gpu"].base
    assert recipe.size == (360, 480)
    network = SegmentationNetwork(recipe, 11)
    assert 5e6 < sum(weight.numel() for weight in network.parameters()) < 10e6
    with torch.no_grad():
        outputs = network.eval()(torch.randn(1, 3, 40, 48))
    assert outputs.projection(outputs.features).shape == (1, 256, 10, 12)
    assert outputs.logits.shape == (1, 11, 10, 12)


def test_help_lists_the_tables(capsys):
    with pytest.raises(SystemExit):
        ablation.main(["--help"])
    printed = capsys.readouterr().out
    for name, table in TABLES.items():
        line = next(line for line in printed.splitlines() if line.startswith(f"  {name} "))
        assert f"{len(set(table.keys()))} runs" in line


def test_a_missing_folder_is_told_of(tmp_path, capsys):
    for options in (["--root", str(tmp_path)], []):
        with pytest.raises(SystemExit):
            ablation.main(["--out", str(tmp_path), *options])
    assert "--root FOLDER" in capsys.readouterr().err


def test_differences_are_of_pairs_alone():
    alone, with_it = SMALL.rows
    runs = {SMALL.key(alone, seed): drawn_run(seed, iou) for seed, iou in ((0, 0.30), (1, 0.40))}
    for seed in (0, 1, 2):
        runs[SMALL.key(with_it, seed)] = drawn_run(seed, 0.33 + 0.12 * seed, [1.0, 3.0])
    first, second = lines_of(SMALL, runs)
    assert first.differences == [0, 0]
    assert second.differences == pytest.approx([3.0, 5.0])
    assert second.compared.plain == pytest.approx(35.0)
    assert second.compared.difference == pytest.approx(4.0)
    assert second.compared.standard_error == pytest.approx(1.0)
    assert second.ratio == 2.0
    assert second.seconds == 11.0
    made = ablation_table(SMALL, runs)
    for text in (made.aligned(), made.markdown()):
        assert "+4.00 ± 1.00" in text
        assert "2 of 2" in text
    assert "not run" in ablation_table(SMALL, {}).markdown()


def test_readings_are_means_over_the_seeds_at_three_moments():
    alone, with_it = SMALL.rows
    stats = [{"positive_similarity": moment / 10, "hard_share": 0.0} for moment in range(10)]
    runs = {SMALL.key(alone, seed): drawn_run(seed, 0.3) for seed in (0, 1)}
    for seed in (0, 1):
        ratios = [seed + moment for moment in range(10)]
        runs[SMALL.key(with_it, seed)] = drawn_run(seed, 0.32, ratios, stats)
    text = readings_table(SMALL, runs).markdown()
    (row,) = text.splitlines()[2:]
    assert row == "| with it | +2.00 ± 0.00 | 0.50, 4.50, 9.50 | 0.00, 0.40, 0.90 |  |  |  |"


def test_a_run_comes_back_from_its_line_as_it_was(tmp_path):
    path = tmp_path / "runs.jsonl"
    for seed in (0, 1):
        run = drawn_run(seed, 0.25, [1.5], [{"anchors": 3.0}])
        append_run(path, SMALL.key("with it", seed), run)
    # A key written before the recipe had some option is the key with that option's default.
    older = path.read_text().replace('"fade": 0.0, ', "")
    assert "fade" not in older
    path.write_text(older)
    runs = load_runs(path)
    assert set(runs) == {SMALL.key("with it", 0), SMALL.key("with it", 1)}
    one = runs[SMALL.key("with it", 0)]
    assert one["measured"]["mean_iou"] == 0.25
    assert math.isnan(one["measured"]["class_iou"][1])
    assert math.isnan(one["measured"]["trunk"]["between"])
    assert one["stats"] == [{"anchors": 3.0}]


def test_what_a_loss_says_of_itself_is_noted():
    criterion = replace(SGD, bank=4).make_criterion(3)
    labels = torch.arange(3).repeat_interleave(12).view(1, 6, 6)
    criterion(torch.randn(1, SGD.dim, 6, 6), labels)
    noted = training.stats_of(criterion)
    assert noted["groups"] == 3
    assert noted["anchors"] > 0
    # Of 4 slots in 2 queues each class has 2 pixels and 1 region.
    assert noted["bank_occupancy"] == pytest.approx(3 / 8)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"warmup": 0.5}, [0, 0.5, 1, 1]),
        ({"fade": 1.0}, [1, 0.75, 0.5, 0.25]),
        ({"warmup": 0.5, "fade": 0.5}, [0, 0.5, 1, 0.5]),
    ],
)
def test_the_weight_rises_and_falls(changes, expected):
    recipe = replace(SGD, steps=4, weight=1.0, **changes)
    assert [recipe.contrast_weight(step) for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "expected"), [("polynomial", [1, 0.5**0.9]), ("cosine", [1, 0.5])]
)
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_learning_rates(schedule, expected, name):
    recipe = replace(SGD, steps=2, optimizer=name, schedule=schedule)
    optimizer = make_optimizer(torch.nn.Linear(1, 1), recipe)
    assert type(optimizer).__name__.lower() == name
    rates = []
    for step in range(2):
        set_learning_rate(optimizer, recipe, step)
        rates.append(optimizer.param_groups[0]["lr"] / recipe.learning_rate)
    assert rates == pytest.approx(expected)


def test_options_reach_the_loss():
    criterion = replace(SGD, denominator="all", temperature=0.3).make_criterion(11)
    assert (criterion.denominator, criterion.temperature) == ("all", 0.3)
    assert criterion.contrast_with == ("batch",)
    assert isinstance(criterion.anchor_sampler, HardAnchorSampler)
    assert criterion.negative_sampler is None
    recipe = replace(SGD, anchors="random", negatives="semi-hard", bank=7, sources=("regions",))
    criterion = recipe.make_criterion(11)
    assert isinstance(criterion.anchor_sampler, RandomAnchorSampler)
    assert criterion.negative_sampler == HardNegativeSampler(num_negatives=128, num_positives=64)
    assert (criterion.bank.pixel_slots, criterion.bank.region_slots) == (0, 7)


def test_ratios_are_taken_at_ten_points():
    assert [step for step in range(40) if is_sampled(step, 40)] == list(range(3, 40, 4))


def test_the_price_of_a_step(tmp_path, capsys):
    options = ["--networks", "small", "wide", "--size", "32x32", "--batch-size", "2"]
    price.main([*options, "--repeats", "2", "--no-memory", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "price.json").read_text())
    assert [row["network"] for row in record["rows"]] == ["small", "wide"]
    for row in record["rows"]:
        assert list(row["measured"]) == list(price.WAYS)
        first = row["measured"]["cross entropy"]["seconds"]
        for one in row["measured"].values():
            assert one["to_cross entropy"] == pytest.approx(one["seconds"] / first)
    assert "both banks" in capsys.readouterr().out
    recipe = replace(price.BASES["small"], **price.WAYS["both banks"], size=(24, 24), batch_size=2)
    _, step = price.runs_to_weigh(recipe)
    assert measured_peak(step) >= 0


def test_a_step_that_is_priced_learns_and_finds_its_bank_full():
    step = price.Step(replace(price.BASES["small"], size=(24, 24), batch_size=2))
    bank = step.arm.criterion.bank
    before = step.arm.network.projection.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    step()
    assert int(bank.pixel_count.min()) == bank.pixel_slots
    assert int(bank.region_count.min()) == bank.region_slots
    changed = step.arm.network.projection.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in changed.items())


def test_a_head_without_norm_starts_from_the_same_weights():
    heads = []
    for projection in ("mlp", "mlp without norm"):
        torch.manual_seed(0)
        heads.append(SegmentationNetwork(replace(SGD, projection=projection), 11).projection)
    normed, plain = (dict(head.named_parameters()) for head in heads)
    assert set(normed) - set(plain) == {"layers.1.weight", "layers.1.bias"}
    assert all(torch.equal(normed[name], value) for name, value in plain.items())
    features = torch.randn(2, heads[0].in_channels, 4, 4)
    assert not torch.allclose(heads[0](features), heads[1](features), atol=0.01)


def test_pages_fill_their_tables_from_the_json():
    text = "a\n<!-- table: ablation camvid -->\nold\n<!-- end -->\nb"
    filled = pages.filled(text)
    assert "old" not in filled
    assert "| with contrast | 41.28 | +1.36 ± 0.17 |" in filled
    assert pages.filled(filled) == filled
    assert filled.endswith("<!-- end -->\nb")


def test_data_of_both_kinds(camvid):
    assert experiment.load_data("camvid", "val", (24, 24), camvid).classes[0] == "sky"
    digits = experiment.load_data("digits", "tuning", (48, 48), None)
    expected = load_scenes((48, 48), holdout=True)
    assert digits.heldout.fingerprint() == expected.heldout.fingerprint()
    moved = digits.to(torch.device("cpu"))
    assert moved.train.fingerprint() == digits.train.fingerprint()
