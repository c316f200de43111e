"""The kernel that resizes labels and predictions, beside the operations that it replaces."""

import pytest
import torch

from pixcontrast import PixelContrastLoss, _triton
from pixcontrast._pixels import map_kernel
from pixcontrast._pixels.maps import flat_maps

UNSIGNED = (torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64)


@pytest.fixture(autouse=True)
def _small_programs(monkeypatch):
    monkeypatch.setattr(map_kernel, "BLOCK", 32)


def check(monkeypatch, labels, preds, weight, size, ignore_index=255, num_classes=None):
    results = []
    for takes_kernels in (False, True):
        monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_, use=takes_kernels: use)
        results.append(flat_maps(labels, preds, weight, size, ignore_index, num_classes))
    (marked, classes), (made, made_classes) = results
    assert torch.equal(made, marked)
    assert made.dtype == torch.int64
    assert (classes is None) == (made_classes is None)
    if classes is not None:
        assert torch.equal(made_classes, classes.to(torch.int64))
    return made


@pytest.mark.parametrize(
    ("old", "pred_size", "size"),
    [
        ((7,), (5,), (9,)),
        ((8, 12), (8, 12), (4, 3)),
        ((5, 33), (9, 7), (6, 10)),
        ((1, 1), (40, 3), (13, 17)),
        ((4, 6, 5), (3, 3, 2), (2, 5, 7)),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["logits", "classes", None])
def test_any_sizes(old, pred_size, size, kind, monkeypatch):
    labels = torch.randint(-2, 7, (2, *old))
    preds = None
    if kind is not None:
        shape = (2, 5, *pred_size) if kind == "logits" else (2, *pred_size)
        preds = torch.randint(0, 5, shape)
        preds = preds.bfloat16() if kind == "logits" else preds
    weight = torch.rand(2, torch.Size(size).numel()).round()
    check(monkeypatch, labels, preds, weight, size, ignore_index=0, num_classes=5)
    check(monkeypatch, labels, preds, weight > 0, size, ignore_index=2**40)
    # Strided and expanded weights.
    for strided in (torch.stack([weight, 1 - weight], dim=2)[..., 0], weight[:1].expand(2, -1)):
        assert not strided.is_contiguous()
        check(monkeypatch, labels, preds, strided, size)
    # Strides of other orders.
    flipped = labels.movedim(0, -1).contiguous().movedim(-1, 0)
    if preds is not None:
        preds = preds.movedim(1, -1).contiguous().movedim(-1, 1)
    check(monkeypatch, flipped, preds, None, size)


def test_sizes_that_pytorch_rounds_in_float32(monkeypatch):
    """1 / 3 · 3 and the like: the scale is a quotient of floats, rounded to nearest."""
    for old, new in ((41, 123), (1000, 49), (83, 999), (640, 641)):
        check(monkeypatch, torch.arange(old)[None], None, None, (new,), ignore_index=-1)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, *UNSIGNED], ids=str)
def test_integers_of_any_dtype(dtype, monkeypatch):
    labels = torch.randint(0, 2, (2, 6, 4)).to(dtype)
    check(monkeypatch, labels, labels.flip(0) if dtype in UNSIGNED[:2] else None, None, (3, 4))


def test_integers_beyond_32_bits(monkeypatch):
    labels = torch.tensor([[2**53 + 1, 2**33, -(2**40), 2**62, 7]])
    made = check(monkeypatch, labels, labels, None, (5,))
    assert made.tolist() == [[2**53 + 1, 2**33, -1, 2**62, 7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_argmax_of_any_logits(dtype, monkeypatch):
    logits = torch.randint(0, 3, (2, 8, 5, 6)).to(dtype)  # many ties: the first class wins
    logits[0, 3:5, 0], logits[1, 2:4, 1], logits[1, :, 2] = float("nan"), torch.inf, -torch.inf
    logits[0, 0, 3, 2] = float("nan")
    if dtype == torch.float64:  # a difference that float32 does not have
        logits[0, 2, 4] += 3 + 1e-12
        logits[0, 1, 4] += 3
    labels = torch.zeros(2, 5, 6, dtype=torch.int64)
    check(monkeypatch, labels, logits.requires_grad_(), None, (5, 6))


def test_points(monkeypatch):
    labels, logits = torch.randint(-1, 4, (70,)), torch.randn(70, 3)
    check(monkeypatch, labels, logits, None, (70,))
    check(monkeypatch, labels, labels.flip(0), torch.rand(1, 70).round(), (70,), num_classes=3)


@pytest.mark.parametrize(("shape", "size"), [((2, 8, 10), (0, 5)), ((0, 8, 10), (4, 5))])
def test_without_pixels(shape, size, monkeypatch):
    check(monkeypatch, torch.ones(shape, dtype=torch.int64), None, None, size)


def test_a_call_of_the_loss_samples_the_same_pixels(monkeypatch):
    emb, labels = torch.randn(2, 4, 6, 7), torch.randint(0, 3, (2, 1, 13, 20))
    logits, weight = torch.randn(2, 3, 9, 9), torch.rand(2, 13, 20).round()
    samples = []
    for takes_kernels in (False, True):
        monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_, use=takes_kernels: use)
        loss, generator = PixelContrastLoss(backend="tiled"), torch.Generator().manual_seed(3)
        options = {"weight": weight, "generator": generator, "return_anchors": True}
        samples.append(loss(emb, labels, logits, **options))
    (loss, sample), (other, made) = samples
    assert torch.equal(sample.indices, made.indices)
    assert torch.equal(sample.labels, made.labels)
    torch.testing.assert_close(loss, other)
