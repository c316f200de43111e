"""Every error names the argument, what was expected and what came."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from pixcontrast import (
    AnchorSample,
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RandomAnchorSampler,
    RegionContrastLoss,
)
from pixcontrast.functional import info_nce

EMB = torch.randn(2, 4, 6, 5)
LABELS = torch.zeros(2, 6, 5, dtype=torch.int64)
ANCHORS = torch.randn(3, 4)
THREE = torch.zeros(3, dtype=torch.int64)
ONE_HOT = torch.nn.functional.one_hot(LABELS, 3).movedim(-1, 1)
META = torch.device("meta")


def every_pixel(labels, preds, *, ignore_index, generator):
    return AnchorSample(torch.arange(labels.numel()), labels.flatten())


def sampler_of(indices):
    sample = AnchorSample(indices, torch.zeros(3, dtype=torch.int64))
    return PixelContrastLoss(anchor_sampler=lambda *_, **__: sample)


def bank(**options):
    return MemoryBank(**{"num_classes": 3, "dim": 4, **options})


def nested(tensor):
    return torch.nested.nested_tensor([tensor, tensor], layout=torch.jagged)


def call(*arguments, loss=None, **options):
    return (loss or PixelContrastLoss())(*arguments, **options)


def vectors(*arguments, **options):
    return lambda: info_nce(*arguments, **options)


CASES = {
    # info_nce
    "anchors are a list": (vectors([[1.0]], THREE), TypeError, ["anchors", "tensor", "list"]),
    "anchors of integers": (vectors(THREE[:, None], THREE), TypeError, ["anchors", "float32", "int64"]),
    "anchors are a map": (vectors(EMB, THREE), ValueError, ["anchors", "2 dim", "(2, 4, 6, 5)"]),
    "anchors without width": (vectors(ANCHORS[:, :0], THREE), ValueError, ["anchors", "at least 1", "(3, 0)"]),
    "anchor labels of floats": (vectors(ANCHORS, ANCHORS[:, 0]), TypeError, ["anchor_labels", "int64", "float32"]),
    "anchor labels of bools": (vectors(ANCHORS, THREE > 0), TypeError, ["anchor_labels", "int64", "bool"]),
    "too few anchor labels": (vectors(ANCHORS, THREE[:2]), ValueError, ["anchor_labels", "(3,)", "(2,)"]),
    "contrast of another width": (vectors(ANCHORS, THREE, ANCHORS[:, :3], THREE), ValueError, ["contrast", "D = 4", "D = 3"]),
    "contrast without labels": (vectors(ANCHORS, THREE, ANCHORS), TypeError, ["contrast_labels", "tensor", "None"]),
    "labels without contrast": (vectors(ANCHORS, THREE, None, THREE), ValueError, ["contrast_labels", "None", "labels"]),
    "labels of the anchors again": (vectors(ANCHORS, THREE, [None], [THREE]), ValueError, ["contrast_labels[0]", "None"]),
    "a piece of another width": (vectors(ANCHORS, THREE, [None, ANCHORS[:, :3]], [None, THREE]), ValueError, ["contrast[1]", "D = 4", "D = 3"]),
    "too few piece labels": (vectors(ANCHORS, THREE, [None, ANCHORS], [None, THREE[:2]]), ValueError, ["contrast_labels[1]", "(3,)", "(2,)"]),
    "fewer labels than pieces": (vectors(ANCHORS, THREE, [None, ANCHORS], [THREE]), ValueError, ["contrast_labels", "2", "1"]),
    "one label tensor for pieces": (vectors(ANCHORS, THREE, [ANCHORS], THREE), TypeError, ["contrast_labels", "sequence of 1", "Tensor"]),
    "no labels for pieces": (vectors(ANCHORS, THREE, [None, ANCHORS]), TypeError, ["contrast_labels", "sequence of 2", "None"]),
    "a number of labels for pieces": (vectors(ANCHORS, THREE, [ANCHORS], 3), TypeError, ["contrast_labels", "sequence of 1", "int"]),
    "a list of labels for one tensor": (vectors(ANCHORS, THREE, ANCHORS, [THREE]), TypeError, ["contrast_labels", "one tensor", "list"]),
    "contrast is a number": (vectors(ANCHORS, THREE, 3, THREE), TypeError, ["contrast", "tensor", "int"]),
    "contrast is text": (vectors(ANCHORS, THREE, "abc", THREE), TypeError, ["contrast", "sequence of tensors", "str"]),
    "temperature 0": (vectors(ANCHORS, THREE, temperature=0), ValueError, ["temperature", "above 0", "0"]),
    "temperature below 0": (vectors(ANCHORS, THREE, temperature=-0.1), ValueError, ["temperature", "above 0", "-0.1"]),
    "temperature infinite": (vectors(ANCHORS, THREE, temperature=float("inf")), ValueError, ["temperature", "finite", "inf"]),
    "temperature not a number": (vectors(ANCHORS, THREE, temperature=float("nan")), ValueError, ["temperature", "finite", "nan"]),
    "temperature is text": (vectors(ANCHORS, THREE, temperature="0.1"), TypeError, ["temperature", "number", "str"]),
    "unknown denominator": (vectors(ANCHORS, THREE, denominator="positives"), ValueError, ["denominator", "'negatives'", "'positives'"]),
    "unknown reduction": (vectors(ANCHORS, THREE, reduction="avg"), ValueError, ["reduction", "'mean'", "'avg'"]),
    "unknown backend": (vectors(ANCHORS, THREE, backend="cuda"), ValueError, ["backend", "'tiled'", "'cuda'"]),
    "triton elsewhere": (vectors(ANCHORS.to(META), THREE.to(META), backend="triton"), RuntimeError, ["backend", "triton", '"auto"']),
    "triton in float64": (vectors(ANCHORS.double(), THREE, backend="triton"), ValueError, ["backend", "float32, bfloat16, float16", "float64", '"auto"']),
    "triton of a great width": (vectors(torch.ones(3, 513), THREE, backend="triton"), ValueError, ["backend", "D up to 512", "D = 513", '"tiled"']),
    "negative_sampler is a string": (vectors(ANCHORS, THREE, negative_sampler="hardest"), TypeError, ["negative_sampler", "HardNegativeSampler", "str"]),
    "weight of another length": (vectors(ANCHORS, THREE, weight=torch.ones(4)), ValueError, ["weight", "(3,)", "(4,)"]),
    "weight below 0": (vectors(ANCHORS, THREE, weight=-torch.ones(3)), ValueError, ["weight", "at least 0", "-1.0"]),
    "weight infinite": (vectors(ANCHORS, THREE, weight=torch.ones(3) / 0), ValueError, ["weight", "finite", "inf"]),
    "weight is a number": (vectors(ANCHORS, THREE, weight=1.0), TypeError, ["weight", "tensor", "float"]),
    "ignore_index is a float": (vectors(ANCHORS, THREE, ignore_index=1.5), TypeError, ["ignore_index", "int", "1.5"]),
    "generator is a seed": (vectors(ANCHORS, THREE, generator=3), TypeError, ["generator", "Generator", "int"]),
    "contrast elsewhere": (vectors(ANCHORS, THREE, ANCHORS.to(META), THREE.to(META)), ValueError, ["contrast", "cpu", "meta"]),
    "labels elsewhere": (vectors(ANCHORS, THREE.to(META)), ValueError, ["anchor_labels", "cpu", "meta"]),
    "generator elsewhere": (lambda: info_nce(ANCHORS.to(META), THREE.to(META), generator=torch.Generator()), ValueError, ["generator", "meta", "cpu"]),
    "temperature beyond a float": (vectors(ANCHORS, THREE, temperature=10**400), ValueError, ["temperature", "float can hold", "10000"]),
    "temperature beyond text": (vectors(ANCHORS, THREE, temperature=10**5000), ValueError, ["temperature", "float can hold", "type int"]),
    "a denominator of arrays": (vectors(ANCHORS, THREE, denominator=np.zeros(2)), ValueError, ["denominator", "'negatives'", "array"]),
    "sparse anchors": (vectors(ANCHORS.to_sparse(), THREE), TypeError, ["anchors", "dense", "sparse_coo"]),
    "sparse labels": (vectors(ANCHORS, THREE.to_sparse()), TypeError, ["anchor_labels", "dense", "sparse_coo"]),
    "nested contrast": (vectors(ANCHORS, THREE, nested(ANCHORS), THREE), TypeError, ["contrast", "dense", "jagged"]),
    "a graph of weights below 0": (vectors(ANCHORS, THREE, weight=-torch.ones(3, requires_grad=True)), ValueError, ["weight", "at least 0", "-1.0"]),
    # calls of a loss
    "sparse predictions": (lambda: call(EMB, LABELS, LABELS.to_sparse()), TypeError, ["preds", "dense", "sparse_coo"]),
    "sparse logits": (lambda: call(EMB, LABELS, EMB.to_sparse()), TypeError, ["preds", "dense", "sparse_coo"]),
    "sparse weights": (lambda: call(EMB, LABELS, weight=LABELS.to_sparse()), TypeError, ["weight", "dense", "sparse_coo"]),
    "a tensor for a flag": (lambda: call(EMB, LABELS, return_anchors=ANCHORS), TypeError, ["return_anchors", "True or False", "tensor"]),
    "emb is an array": (lambda: call(EMB.numpy(), LABELS), TypeError, ["emb", "tensor", "ndarray"]),
    "emb of integers": (lambda: call(LABELS[:, None], LABELS), TypeError, ["emb", "float32", "int64"]),
    "emb of one dimension": (lambda: call(EMB[0, 0, 0], LABELS), ValueError, ["emb", "(B, D, *S)", "(5,)"]),
    "emb of six dimensions": (lambda: call(EMB[..., None, None], LABELS), ValueError, ["emb", "1 to 3", "(2, 4, 6, 5, 1, 1)"]),
    "emb without width": (lambda: call(EMB[:, :0], LABELS), ValueError, ["emb", "at least 1", "(2, 0, 6, 5)"]),
    "labels of floats": (lambda: call(EMB, LABELS.float()), TypeError, ["labels", "int64", "float32"]),
    "labels of too few dimensions": (lambda: call(EMB, LABELS[0]), ValueError, ["labels", "(B, H, W)", "(6, 5)"]),
    "labels of one-hot": (lambda: call(EMB, LABELS[:, None].repeat(1, 3, 1, 1)), ValueError, ["labels", "(B, H, W)", "(2, 3, 6, 5)"]),
    "labels of fewer images": (lambda: call(EMB, LABELS[:1]), ValueError, ["labels", "2", "1"]),
    "labels of no pixels": (lambda: call(EMB, LABELS[..., :0]), ValueError, ["labels", "at least one pixel", "(2, 6, 0)"]),
    "labels of fewer points": (lambda: call(ANCHORS, THREE[:2]), ValueError, ["labels", "points", "3", "2"]),
    "labels on another device": (lambda: call(EMB, LABELS.to(META)), ValueError, ["labels", "cpu", "meta"]),
    "logits of one class": (lambda: call(EMB, LABELS, EMB[:, :1]), ValueError, ["preds", "2 classes", "(2, 1, 6, 5)", "(logit > 0).long()"]),
    "logits of eight bits": (lambda: call(EMB, LABELS, EMB.to(torch.float8_e4m3fn)), TypeError, ["preds", "float32", "float8_e4m3fn"]),
    "logits of one class of points": (lambda: call(ANCHORS, THREE, ANCHORS[:, :1]), ValueError, ["preds", "(3, 1)"]),
    "classes as floats": (lambda: call(EMB, LABELS, LABELS.float()), TypeError, ["preds", "integer classes", "float32"]),
    "predictions of fewer images": (lambda: call(EMB, LABELS, EMB[:1]), ValueError, ["preds", "2", "1"]),
    "predictions are a list": (lambda: call(EMB, LABELS, [1]), TypeError, ["preds", "tensor", "list"]),
    "predictions on another device": (lambda: call(EMB, LABELS, EMB.to(META)), ValueError, ["preds", "cpu", "meta"]),
    "weights of anchors": (lambda: call(EMB, LABELS, weight=torch.ones(7)), ValueError, ["weight", "(B, H, W)", "(7,)"]),
    "weights below 0": (lambda: call(EMB, LABELS, weight=LABELS - 1.0), ValueError, ["weight", "at least 0", "-1.0"]),
    "generator of the loss": (lambda: call(EMB, LABELS, generator=1), TypeError, ["generator", "int"]),
    "generator beside a sampler of one's own": (lambda: call(EMB, LABELS, generator=1, loss=PixelContrastLoss(anchor_sampler=every_pixel)), TypeError, ["generator", "int"]),
    "emb of another width": (lambda: call(EMB, LABELS, loss=PixelContrastLoss(bank=bank(dim=5))), ValueError, ["emb", "D = 5", "D = 4"]),
    "bank on another device": (lambda: call(EMB, LABELS, loss=PixelContrastLoss(bank=bank().to(META))), ValueError, ["bank", "cpu", "meta"]),
    "labels beyond the bank": (lambda: call(EMB, LABELS + 3, loss=PixelContrastLoss(bank=bank())), ValueError, ["labels", "num_classes = 3", "3"]),
    "labels beyond the bank, regions": (lambda: call(EMB, LABELS + 9, loss=RegionContrastLoss(bank=bank())), ValueError, ["labels", "num_classes = 3", "9"]),
    "labels beyond the sort": (lambda: call(EMB, LABELS + 2**24), ValueError, ["labels", "16777215", "16777216"]),
    # formats that loaders give: the fix, and never the contents
    "float labels": (lambda: call(EMB, LABELS.float()), TypeError, ["labels", "float32", "labels.long()"]),
    "float labels of anchors": (vectors(ANCHORS, THREE.float()), TypeError, ["anchor_labels", "float32", "anchor_labels.long()"]),
    "float labels of a sampler": (lambda: HardAnchorSampler()(LABELS.flatten(1).float()), TypeError, ["labels", "labels.long()"]),
    "float labels with a channel": (lambda: call(EMB, LABELS[:, None].float()), TypeError, ["labels", "labels.long()"]),
    "one-hot of integers": (lambda: call(EMB, ONE_HOT), ValueError, ["labels", "(2, 3, 6, 5)", "labels.argmax(1)"]),
    "one-hot of floats": (lambda: call(EMB, ONE_HOT.float()), TypeError, ["labels", "float32", "labels.argmax(1)"]),
    "one-hot classes": (lambda: call(EMB, LABELS, ONE_HOT), ValueError, ["preds", "preds.argmax(1)"]),
    "labels in an array": (lambda: call(EMB, LABELS.numpy()), TypeError, ["labels", "ndarray of shape (2, 6, 5)", "torch.as_tensor(labels)"]),
    "labels in a list": (lambda: call(EMB, LABELS.tolist()), TypeError, ["labels", "list of length 2", "torch.as_tensor(labels)"]),
    "a probability a pixel": (lambda: call(EMB, LABELS, torch.rand(2, 6, 5)), TypeError, ["preds", "integer classes", "preds > 0.5"]),
    "predictions in a dict": (lambda: call(EMB, LABELS, {"out": EMB}), TypeError, ["preds", "dict of length 1", "preds['out']"]),
    "maps in a list": (lambda: call([EMB, EMB], LABELS), TypeError, ["emb", "list of length 2", "a call for each"]),
    "weights in an array": (lambda: call(EMB, LABELS, weight=np.ones((2, 6, 5))), TypeError, ["weight", "torch.as_tensor(weight)"]),
    "nothing ignored": (lambda: PixelContrastLoss(ignore_index=None), TypeError, ["ignore_index", "NoneType", "-1"]),
    "channels last": (lambda: call(EMB.movedim(1, -1), LABELS), ValueError, ["emb", "channels first", "(2, 6, 5, 4)", "emb.movedim(-1, 1)"]),
    "channels last of tokens": (lambda: call(torch.randn(2, 30, 4), LABELS.flatten(1)), ValueError, ["emb", "(2, 30, 4)", "emb.movedim(-1, 1)"]),
    "channels last, with a channel": (lambda: call(EMB.movedim(1, -1), LABELS[:, None]), ValueError, ["emb", "emb.movedim(-1, 1)"]),
    "update, channels last": (lambda: bank(dim=6).update(EMB.movedim(1, -1), LABELS), ValueError, ["emb", "emb.movedim(-1, 1)"]),
    "two channels of weights": (lambda: call(EMB, LABELS, weight=torch.ones(2, 2, 6, 5)), ValueError, ["weight", "(2, 2, 6, 5)"]),
    # updates of a bank
    "update of another width": (lambda: bank(dim=5).update(EMB, LABELS), ValueError, ["emb", "D = 5", "D = 4"]),
    "update of other labels": (lambda: bank().update(EMB, LABELS + 4), ValueError, ["labels", "num_classes = 3", "4"]),
    "update of integers": (lambda: bank().update(LABELS[:, None], LABELS), TypeError, ["emb", "int64"]),
    "update of float labels": (lambda: bank().update(EMB, LABELS.float()), TypeError, ["labels", "labels.long()"]),
    "update of one-hot": (lambda: bank().update(EMB, ONE_HOT), ValueError, ["labels", "labels.argmax(1)"]),
    "update by arrays": (lambda: bank().update(EMB, LABELS.numpy()), TypeError, ["labels", "torch.as_tensor(labels)"]),
    "update of a list": (lambda: bank().update([EMB], LABELS), TypeError, ["emb", "list of length 1", "a call for each"]),
    "update by a seed": (lambda: bank().update(EMB, LABELS, generator=1), TypeError, ["generator", "int"]),
    # questions to a bank
    "entries of no queue": (lambda: bank().entries("batch"), ValueError, ["queue", "'pixels'", "'batch'"]),
    "slots of no queue": (lambda: bank().slots("region"), ValueError, ["queue", "'regions'", "'region'"]),
    "count of no queue": (lambda: bank().count(None), ValueError, ["queue", "'pixels'", "None"]),
    # options
    "a factor beyond float32": (lambda: PixelContrastLoss(temperature=1e30, base_temperature=1e-30), ValueError, ["base_temperature", "float32", "1e+30"]),
    "sources in an array": (lambda: PixelContrastLoss(contrast_with=np.zeros(2)), TypeError, ["contrast_with", "'batch'", "array"]),
    "dtype in an array": (lambda: bank(dtype=np.zeros(2)), TypeError, ["dtype", "float32", "array"]),
    "slots beyond 64 bits": (lambda: bank(pixel_slots=2**63), ValueError, ["pixel_slots", "64-bit", str(2**63)]),
    "a bank beyond 64 bits": (lambda: bank(region_slots=2**60), ValueError, ["num_classes, region_slots, dim", "2**63 bytes", str(2**60)]),
    "a head beyond 64 bits": (lambda: ProjectionHead(2**31, 2**31), ValueError, ["in_channels, hidden", "2**63 bytes", str(2**31)]),
    "views beyond 64 bits": (lambda: HardAnchorSampler(max_views=2**63), ValueError, ["max_views", "64-bit", str(2**63)]),
    "temperature of a loss": (lambda: PixelContrastLoss(temperature=0), ValueError, ["temperature", "above 0", "0"]),
    "base temperature": (lambda: PixelContrastLoss(base_temperature=-1), ValueError, ["base_temperature", "above 0", "-1"]),
    "a sampler returns a tuple": (lambda: call(EMB, LABELS, loss=PixelContrastLoss(anchor_sampler=lambda *_, **__: (THREE, THREE))), TypeError, ["anchor_sampler", "AnchorSample", "tuple"]),
    "a sampler returns a mask": (lambda: call(EMB, LABELS, loss=sampler_of(THREE > 0)), TypeError, ["indices of the anchor_sampler", "int64", "bool"]),
    "a sampler returns bytes": (lambda: call(EMB, LABELS, loss=sampler_of(THREE.byte())), TypeError, ["indices of the anchor_sampler", "int64", "uint8"]),
    "a sampler returns a map": (lambda: call(EMB, LABELS, loss=sampler_of(THREE[None])), ValueError, ["indices of the anchor_sampler", "(K,)", "(1, 3)"]),
    "a sampler goes too far": (lambda: call(EMB, LABELS, loss=sampler_of(THREE + 60)), ValueError, ["indices of the anchor_sampler", "0 to 59", "60 to 60"]),
    "a sampler goes below": (lambda: call(EMB, LABELS, loss=sampler_of(THREE - 1)), ValueError, ["indices of the anchor_sampler", "0 to 59", "-1"]),
    "a sampler with few labels": (lambda: call(EMB, LABELS, loss=sampler_of(THREE[:2])), ValueError, ["labels of the anchor_sampler", "(2,)", "(3,)"]),
    "sampler is a class": (lambda: PixelContrastLoss(anchor_sampler=HardAnchorSampler), TypeError, ["anchor_sampler", "HardAnchorSampler(...)"]),
    "sampler is a name": (lambda: PixelContrastLoss(anchor_sampler="hard"), TypeError, ["anchor_sampler", "callable", "'hard'"]),
    "negatives are a name": (lambda: PixelContrastLoss(negative_sampler="hard"), TypeError, ["negative_sampler", "HardNegativeSampler", "'hard'"]),
    "bank is a tensor": (lambda: PixelContrastLoss(bank=EMB), TypeError, ["bank", "MemoryBank", "tensor"]),
    "a bank not given": (lambda: PixelContrastLoss(contrast_with=("batch", "pixels")), ValueError, ["contrast_with", "'pixels'", "bank=MemoryBank"]),
    "a queue not there": (lambda: PixelContrastLoss(bank=bank(region_slots=0), contrast_with=("regions",)), ValueError, ["contrast_with", "'regions'", "without that queue"]),
    "an unknown source": (lambda: PixelContrastLoss(contrast_with=("images",)), ValueError, ["contrast_with", "'batch'", "'images'"]),
    "pixels for regions": (lambda: RegionContrastLoss(bank=bank(), contrast_with=("pixels",)), ValueError, ["contrast_with", "'regions'", "'pixels'"]),
    "a source twice": (lambda: PixelContrastLoss(contrast_with=("batch", "batch")), ValueError, ["contrast_with", "once"]),
    "no source": (lambda: PixelContrastLoss(contrast_with=()), ValueError, ["contrast_with", "()"]),
    "a source in a list": (lambda: PixelContrastLoss(contrast_with=[["batch"]]), TypeError, ["contrast_with", "'batch'"]),
    "ignored beyond 64 bits": (lambda: PixelContrastLoss(ignore_index=2**70), ValueError, ["ignore_index", "64-bit"]),
    "a bare source": (lambda: PixelContrastLoss(contrast_with="batch"), TypeError, ["contrast_with", "('batch',)"]),
    "denominator of a loss": (lambda: PixelContrastLoss(denominator="none"), ValueError, ["denominator", "'none'"]),
    "reduction of a loss": (lambda: PixelContrastLoss(reduction="avg"), ValueError, ["reduction", "'avg'"]),
    "backend of a loss": (lambda: PixelContrastLoss(backend="gpu"), ValueError, ["backend", "'gpu'"]),
    "gather without reduction": (lambda: PixelContrastLoss(gather=True, reduction="none"), ValueError, ["reduction", "gather=True", '"none"']),
    "process_group of a loss": (lambda: PixelContrastLoss(process_group=3), TypeError, ["process_group", "None for the whole world", "int 3"]),
    "a flag that is none": (lambda: PixelContrastLoss(normalize=1), TypeError, ["normalize", "True or False", "1"]),
    "ignored of loss and bank": (lambda: PixelContrastLoss(bank=bank(ignore_index=-1)), ValueError, ["ignore_index", "-1", "255"]),
    "ignored by a bank": (lambda: bank(ignore_index=1.5), TypeError, ["ignore_index", "int", "1.5"]),
    "no class": (lambda: bank(num_classes=0), ValueError, ["num_classes", "at least 1", "0"]),
    "no width": (lambda: bank(dim=0), ValueError, ["dim", "at least 1", "0"]),
    "slots below 0": (lambda: bank(pixel_slots=-1), ValueError, ["pixel_slots", "at least 0", "-1"]),
    "regions below 0": (lambda: bank(region_slots=-1), ValueError, ["region_slots", "at least 0", "-1"]),
    "pixels an image": (lambda: bank(pixels_per_image=1.5), TypeError, ["pixels_per_image", "int", "1.5"]),
    "dtype of the bank": (lambda: bank(dtype=torch.int8), TypeError, ["dtype", "float32", "int8"]),
    "sharded": (lambda: bank(sharded=1), TypeError, ["sharded", "True or False", "int 1"]),
    "process_group of a bank": (lambda: bank(process_group="world"), TypeError, ["process_group", "None for the whole world", "str 'world'"]),
    "no anchors": (lambda: HardAnchorSampler(max_anchors=0), ValueError, ["max_anchors", "at least 1", "0"]),
    "no views": (lambda: RandomAnchorSampler(max_views=0), ValueError, ["max_views", "at least 1", "0"]),
    "hard fraction": (lambda: HardAnchorSampler(hard_fraction=1.5), ValueError, ["hard_fraction", "[0, 1]", "1.5"]),
    "no pixels": (lambda: HardAnchorSampler(min_pixels=0), ValueError, ["min_pixels", "at least 1", "0"]),
    "anchors are a float": (lambda: HardAnchorSampler(max_anchors=10.0), TypeError, ["max_anchors", "int", "10.0"]),
    "sampler on a map": (lambda: HardAnchorSampler()(LABELS), ValueError, ["labels", "(B, P)", "labels.flatten(1)"]),
    "sampler on logits": (lambda: HardAnchorSampler()(LABELS.flatten(1), EMB[:, 0].flatten(1)), TypeError, ["preds", "float32"]),
    "sampler on other sizes": (lambda: HardAnchorSampler()(LABELS.flatten(1), LABELS[..., 0]), ValueError, ["preds", "(2, 30)", "(2, 6)"]),
    "sampler elsewhere": (lambda: HardAnchorSampler()(LABELS.flatten(1), LABELS.flatten(1).to(META)), ValueError, ["preds", "cpu", "meta"]),
    "ignored by a sampler": (lambda: RandomAnchorSampler()(LABELS.flatten(1), ignore_index=1.5), TypeError, ["ignore_index", "int", "1.5"]),
    "seed of a sampler": (lambda: RandomAnchorSampler()(LABELS.flatten(1), generator=1), TypeError, ["generator", "int"]),
    "strategy": (lambda: HardNegativeSampler(strategy="easy"), ValueError, ["strategy", "'semi-hard'", "'easy'"]),
    "ratio 0": (lambda: HardNegativeSampler(ratio=0), ValueError, ["ratio", "(0, 1]", "0"]),
    "no negatives": (lambda: HardNegativeSampler(num_negatives=0), ValueError, ["num_negatives", "at least 1", "0"]),
    "positives are a float": (lambda: HardNegativeSampler(num_positives=2.0), TypeError, ["num_positives", "int", "2.0"]),
    "no channels": (lambda: ProjectionHead(0), ValueError, ["in_channels", "at least 1", "0"]),
    "kind of head": (lambda: ProjectionHead(4, kind="conv"), ValueError, ["kind", "'mlp'", "'conv'"]),
    "hidden of a linear head": (lambda: ProjectionHead(4, hidden=3, kind="linear"), ValueError, ["hidden", "None", "3"]),
    "features of another dtype": (lambda: ProjectionHead(4)(EMB.bfloat16()), TypeError, ["features", "float32", "bfloat16", "autocast"]),
    "features elsewhere": (lambda: ProjectionHead(4)(EMB.to(META)), ValueError, ["features", "cpu", "meta"]),
    "features in a dict": (lambda: ProjectionHead(4)({"out": EMB}), TypeError, ["features", "dict of length 1", "features['out']"]),
    "features in an array": (lambda: ProjectionHead(4)(EMB.numpy()), TypeError, ["features", "torch.as_tensor(features)"]),
    "features of other channels": (lambda: ProjectionHead(3)(EMB), ValueError, ["features", "(B, 3, *S)", "(2, 4, 6, 5)"]),
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "error", "words"), CASES.values(), ids=CASES.keys())
def test_message(wrong, error, words):
    with pytest.raises(error) as caught:
        wrong()
    assert type(caught.value) is error
    message = str(caught.value)
    assert re.match(rf"{re.escape(words[0])}\b|{re.escape(words[0])}:", message), message
    for word in words:
        assert word in message


@pytest.mark.parametrize("spatial", [(), (7,), (6, 5), (3, 2, 5)], ids=str)
@pytest.mark.parametrize("kind", [PixelContrastLoss, RegionContrastLoss])
@pytest.mark.parametrize("training", [None, True, False], ids=["alone", "bank", "eval"])
def test_the_fix_of_a_format_in_every_dimension(spatial, kind, training):
    loss = kind() if training is None else kind(bank=bank()).train(training)
    emb, labels = torch.randn(2, 4, *spatial), torch.zeros(2, *spatial, dtype=torch.int64)
    one_hot = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)
    wrong = {
        "labels.long()": (emb, labels.float()),
        "labels.argmax(1)": (emb, one_hot),
        "(the fix is labels.argmax(1))": (emb, one_hot.float()),
        "torch.as_tensor(labels)": (emb, labels.numpy()),
        "preds > 0.5": (emb, labels, labels.float()),
        "preds['out']": (emb, labels, {"out": emb}),
        "add up the losses": ([emb], labels),
    }
    if spatial:
        wrong["emb.movedim(-1, 1)"] = (emb.movedim(1, -1), labels)
    for words, arguments in wrong.items():
        with pytest.raises((TypeError, ValueError), match=re.escape(words)) as caught:
            loss(*arguments)
        assert len(str(caught.value)) < 250  # without the contents


def test_nothing_is_written_before_a_check_fails():
    held = bank()
    loss = PixelContrastLoss(bank=held)
    for arguments in [(EMB, LABELS + 3), (EMB, LABELS, EMB[:, :1])]:
        with pytest.raises(ValueError, match=r"labels|preds"):
            loss(*arguments)
    assert held.region_count.sum() == 0


def test_fractions_may_be_any_real_number():
    labels, preds = torch.zeros(1, 8, dtype=torch.int64), torch.arange(8)[None] % 2
    sampler = HardAnchorSampler(max_anchors=4, hard_fraction=Fraction(1, 2))
    assert int(preds.flatten()[sampler(labels, preds).indices].sum()) == 2
    mining = HardNegativeSampler(ratio=Fraction(1, 2), num_negatives=3)
    assert mining == HardNegativeSampler(ratio=0.5, num_negatives=3)
    for backend in ("dense", "tiled"):
        assert torch.isfinite(info_nce(ANCHORS, THREE, negative_sampler=mining, backend=backend))


def test_a_head_under_autocast_takes_other_dtypes():
    with torch.autocast("cpu", torch.bfloat16):
        assert ProjectionHead(4, 8)(EMB.bfloat16()).shape == (2, 8, 6, 5)


def test_a_negative_ignore_index_is_no_class():
    loss = PixelContrastLoss(ignore_index=-100, bank=bank(ignore_index=-100))
    loss(EMB, LABELS - 100)
    assert loss.bank.region_count.sum() == 0


def test_a_temperature_may_be_any_real_number():
    loss = PixelContrastLoss(temperature=Fraction(1, 10), base_temperature=Fraction(1, 2))
    expected = PixelContrastLoss(temperature=0.1, base_temperature=0.5)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    labels = torch.arange(60).view(2, 6, 5) % 3
    losses = [
        one(EMB, labels, generator=g) for one, g in zip((loss, expected), generators, strict=True)
    ]
    torch.testing.assert_close(*losses)


def test_a_weight_is_never_one_hot():
    with pytest.raises(ValueError, match=r"^weight: ") as caught:
        PixelContrastLoss()(EMB, LABELS, weight=ONE_HOT.float())
    assert "argmax" not in str(caught.value)
