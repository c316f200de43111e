"""The main job: it runs, repeats itself, and its two arms differ in the loss alone."""

import math

import numpy as np
import pytest
import torch

from benchmarks._tables.text import signed
from benchmarks._training import measures
from benchmarks._training.runs import load_runs
from benchmarks.segmentation import main

QUICK = ["--seeds", "2", "--steps", "3", "--batch-size", "2", "--size", "24x24"]


def run(folder, *options):
    """Run the benchmark; returns the runs without and with contrast of each seed."""
    main([*QUICK, *options, "--out", str(folder)])
    arms = ({}, {})
    for key, one in load_runs(folder / "runs.jsonl").items():
        arms[key.recipe.has_contrast][key.seed] = one
    # Pairs run in parallel and are recorded in the order in which they end.
    assert sorted(arms[0]) == sorted(arms[1]) == [0, 1]
    return [(arms[0][seed], arms[1][seed]) for seed in (0, 1)]


def test_embedded_data(tmp_path, capsys):
    pairs = run(tmp_path / "out")
    printed = capsys.readouterr().out
    assert "gradient ratio" in printed
    assert "digit 9" in printed
    for plain, contrast in pairs:
        assert contrast["ratios"]
        assert not plain["ratios"]
    differences = [
        100 * (contrast["measured"]["mean_iou"] - plain["measured"]["mean_iou"])
        for plain, contrast in pairs
    ]
    error = np.std(differences, ddof=1) / 2**0.5
    assert signed(np.mean(differences), error) in printed


def test_a_run_repeats_itself_and_the_arms_are_paired(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "a")
    for (plain, contrast), (_, again) in zip(first, second, strict=True):
        np.testing.assert_equal(contrast["measured"], again["measured"])
        assert plain["measured"]["class_iou"] != contrast["measured"]["class_iou"]
    # With next to no weight on the contrast, the arms are one run.
    for plain, contrast in run(tmp_path / "c", "--weight", "1e-30"):
        np.testing.assert_equal(plain["measured"]["class_iou"], contrast["measured"]["class_iou"])


@pytest.mark.parametrize("holdout", [[], ["--holdout"]])
def test_camvid_with_a_bank(camvid, tmp_path, capsys, holdout):
    options = ["--data", "camvid", "--root", str(camvid), "--bank", "5", *holdout]
    (plain, _), _ = run(tmp_path / "out", *options)
    assert ("held out (val)" in capsys.readouterr().out) == (not holdout)
    ious = plain["measured"]["class_iou"]
    assert len(ious) == 11
    assert math.isnan(ious[10])  # no label shows it


def test_a_folder_of_another_layout_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--data", "camvid", "--root", str(tmp_path)])
    assert str(tmp_path) in capsys.readouterr().err


def test_intersection_over_union():
    labels = torch.tensor([[0, 0, 0, 1, 1, 11]])
    predicted = torch.tensor([[0, 0, 1, 1, 0, 2]])
    confusion = measures.confusion_matrix(labels.masked_fill(labels == 11, 255), predicted, 3)
    iou = measures.intersection_over_union(confusion)
    torch.testing.assert_close(
        iou, torch.tensor([2 / 4, 1 / 3, float("nan")], dtype=torch.float64), equal_nan=True
    )


def test_calibration_places_and_similarities():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (2, 8, 9), generator=generator)
    labels[labels == 3] = 255
    labels[:, :, :6] = 1  # so that some pixels are far from other labels
    predicted = torch.randint(0, 3, labels.shape, generator=generator)
    confidence = torch.rand(labels.shape, generator=generator)
    bins, places = torch.zeros(3, measures.BINS, dtype=torch.float64), torch.zeros(2, 2)
    for image, row, column in np.ndindex(*labels.shape):
        label, hit = labels[image, row, column], predicted[image, row, column]
        if label == 255:
            continue
        index = min(int(confidence[image, row, column] * measures.BINS), measures.BINS - 1)
        bins[:, index] += torch.tensor([1, confidence[image, row, column], hit == label])
        window = labels[image, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        places[int((window == label).all())] += torch.tensor([hit == label, 1])
    assert places[1, 1] > 0
    torch.testing.assert_close(measures.calibration_bins(confidence, predicted, labels), bins)
    torch.testing.assert_close(measures.hits_by_place(predicted, labels).float(), places)

    features = torch.randn(2, 5, 8, 9, generator=generator)
    sums, counts = measures.class_sums(features, labels, 4)
    assert counts[3] == 0
    unit = torch.nn.functional.normalize(features, dim=1).movedim(1, -1)
    cosines = {one: unit[labels == one] @ unit[labels == one].T for one in range(3)}
    within = [
        (values.sum() - len(values)) / (len(values) * (len(values) - 1))
        for values in cosines.values()
    ]
    between = [
        (unit[labels == one] @ unit[labels == other].T).mean()
        for one in range(3)
        for other in range(3)
        if one != other
    ]
    expected = (float(np.mean(within)), float(np.mean(between)))
    assert measures.similarities(sums, counts) == pytest.approx(expected, abs=1e-5)
