"""The pictures: made from a real run, of what they say they show."""

import json

import numpy as np
import pytest
import torch

from benchmarks import figures
from benchmarks._plots import sphere
from benchmarks._plots.classes import Occupancy, balanced
from benchmarks._training.measures import class_similarity, measure
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.scenes import load_scenes

NAMES = ("maps", "anchors", "scatter", "similarity", "bank")


def test_pictures_of_a_real_run(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks._plots.classes.PIXELS_OF_CLASS", 12)
    figures.main(["--steps", "3", "--out", str(tmp_path)])
    for name in NAMES:
        assert (tmp_path / f"digits-{name}.png").stat().st_size > 5_000
    record = json.loads((tmp_path / "digits-figures.json").read_text())
    assert set(record["mean_iou"]) == {"plain", "contrast"}
    assert np.shape(record["class_similarity"]["contrast"]) == (11, 11)
    occupancy = record["occupancy"]
    assert occupancy["steps"] == [1, 2, 3]
    assert np.shape(occupancy["pixels"]) == (3, 11)
    assert np.diff(occupancy["pixels"], axis=0).min() >= 0
    assert np.max(occupancy["pixels"]) <= occupancy["slots"]["pixels"] == 100
    # The background is in each of the 8 images of a step: 2 of its pixels, and 1 region.
    assert [step[0] for step in occupancy["pixels"]] == [16, 32, 48]
    assert [step[0] for step in occupancy["regions"]] == [8, 16, 24]


def test_the_matrix_of_classes_has_the_measured_means():
    data = load_scenes((48, 48), holdout=True)
    network = SegmentationNetwork(figures.BASES["digits"], data.num_classes).eval()
    matrix = class_similarity(network, data)
    expected = measure(network, data)["trunk"]
    assert matrix.diagonal().mean().item() == pytest.approx(expected["within"])
    off = matrix[~torch.eye(11, dtype=torch.bool)]
    assert off.mean().item() == pytest.approx(expected["between"])
    torch.testing.assert_close(matrix, matrix.T)


def test_a_scatter_takes_as_many_pixels_of_every_class(monkeypatch):
    monkeypatch.setattr("benchmarks._plots.classes.PIXELS_OF_CLASS", 5)
    labels = torch.tensor([0] * 50 + [1] * 3 + [255] * 10 + [2] * 20)
    chosen = balanced(labels, 4, seed=0)
    assert torch.bincount(labels[chosen], minlength=4).tolist() == [5, 3, 5, 0]
    assert chosen.unique().numel() == 13


def test_a_loss_without_a_bank_has_nothing_to_show():
    occupancy = Occupancy()

    class WithoutBank:
        bank = None

    occupancy.observe(0, WithoutBank())
    assert vars(occupancy) == vars(Occupancy())


def test_pictures_of_the_method_are_of_real_calls(tmp_path):
    figures.main(["method", "--steps", "2", "--out", str(tmp_path)])
    for name in ("anchor", "negatives", "bank"):
        assert (tmp_path / f"method-{name}.png").stat().st_size > 5_000


def test_the_sphere_shows_classes_that_part(tmp_path, monkeypatch):
    monkeypatch.setattr(sphere, "SHOWN", (0, 30))
    figures.main(["sphere", "--out", str(tmp_path)])
    assert (tmp_path / "sphere.png").stat().st_size > 5_000
    record = json.loads((tmp_path / "sphere.json").read_text())
    before, after = (a - b for a, b in zip(record["within"], record["between"], strict=True))
    assert after > before + 0.3
