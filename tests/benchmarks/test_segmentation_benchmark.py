"""The main job: it runs, repeats itself, and its two arms differ in the loss alone."""

import json

import numpy as np
import pytest
import torch

from benchmarks._tables.text import signed
from benchmarks._training import measures
from benchmarks.segmentation import main

QUICK = ["--seeds", "2", "--steps", "3", "--batch-size", "2", "--size", "24x24"]


def run(folder, *options):
    main([*QUICK, *options, "--out", str(folder)])
    return json.loads((folder / "result.json").read_text())


def test_embedded_data(tmp_path, capsys):
    result = run(tmp_path / "out")
    printed = capsys.readouterr().out
    assert "mean IoU" in printed
    assert "gradient ratio at the trunk" in printed
    assert (tmp_path / "out" / "figure.png").stat().st_size > 10_000
    assert len(result["pairs"]) == 2
    summary = result["summary"]
    for pair in result["pairs"]:
        assert pair["contrast"]["ratios"]
        assert not pair["plain"]["ratios"]
    differences = [
        pair["contrast"]["measured"]["mean_iou"] - pair["plain"]["measured"]["mean_iou"]
        for pair in result["pairs"]
    ]
    assert summary["mean_iou"]["difference"] == pytest.approx(np.mean(differences))
    error = np.std(differences, ddof=1) / 2**0.5
    assert summary["mean_iou"]["standard_error"] == pytest.approx(error)
    assert signed(100 * np.mean(differences)) in printed


def test_a_run_repeats_itself_and_the_arms_are_paired(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert [measured(pair, "contrast") for pair in first["pairs"]] == [
        measured(pair, "contrast") for pair in second["pairs"]
    ]
    # With next to no weight on the contrast, the arms are one run.
    alike = run(tmp_path / "c", "--weight", "1e-30")
    for pair in alike["pairs"]:
        assert measured(pair, "plain")["class_iou"] == measured(pair, "contrast")["class_iou"]
    for pair in first["pairs"]:
        assert measured(pair, "plain") != measured(pair, "contrast")


def measured(pair, arm):
    return pair[arm]["measured"]


@pytest.mark.parametrize("holdout", [[], ["--holdout"]])
def test_camvid_with_a_bank(camvid, tmp_path, holdout):
    options = ["--data", "camvid", "--root", str(camvid), "--bank", "5", *holdout]
    result = run(tmp_path / "out", *options)
    assert result["data"]["heldout_images"] == (
        3 if not holdout else result["data"]["heldout_images"]
    )
    ious = measured(result["pairs"][0], "plain")["class_iou"]
    assert len(ious) == 11
    assert ious[10] is None  # no label shows it


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


def test_similarity_of_all_pairs():
    vectors = torch.nn.functional.normalize(torch.randn(2, 5, 3, 3, dtype=torch.float64), dim=1)
    labels = torch.randint(0, 3, (2, 3, 3))
    sums = measures.ClassSums(3, 5)
    sums.add(vectors, labels)
    rows, names = vectors.movedim(1, -1).reshape(-1, 5), labels.flatten()
    products = rows @ rows.T
    within, between = [], []
    for a in range(3):
        for b in range(3):
            block = products[names == a][:, names == b]
            if a == b:
                count = len(block)
                within.append((block.sum() - count) / (count * (count - 1)))
            else:
                between.append(block.mean())
    actual = sums.similarity()
    assert actual["within"] == pytest.approx(float(sum(within) / 3))
    assert actual["between"] == pytest.approx(float(sum(between) / 6))
