import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pixcontrast._pixels.maps import flat_predictions, resize_nearest
from pixcontrast._pixels.take_pixels import TakePixels, take_pixels
from pixcontrast._tensors import unit_length


@given(
    old=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    new=st.lists(st.integers(1, 40), min_size=3, max_size=3),
)
def test_resizing_is_pytorchs_nearest(old, new):
    new = new[: len(old)]
    maps = torch.randint(0, 255, (2, *old))
    expected = F.interpolate(maps[:, None].float(), size=new, mode="nearest")[:, 0].long()
    assert torch.equal(resize_nearest(maps, new), expected)


def test_large_integers_stay_exact():
    maps = torch.full((1, 4), 2**53 + 1)
    assert (resize_nearest(maps, (3,)) == 2**53 + 1).all()


def test_predictions_from_logits():
    emb, logits = torch.randn(2, 4, 5, 6), torch.randn(2, 3, 10, 24)
    expected = F.interpolate(logits.argmax(1)[:, None].float(), size=(5, 6), mode="nearest")
    assert torch.equal(flat_predictions(logits, emb.shape[2:]), expected[:, 0].long().flatten(1))


def test_predictions_are_the_argmax_whatever_the_logits():
    logits = torch.randint(0, 3, (2, 8, 5, 6)).float()  # many ties: the first class wins
    logits[0, 3:5, 0], logits[1, 2:4, 1], logits[1, :, 2] = float("nan"), torch.inf, -torch.inf
    channels_last = logits.contiguous(memory_format=torch.channels_last)
    for same in (logits, logits.bfloat16(), channels_last):
        assert torch.equal(flat_predictions(same, logits.shape[2:]), logits.argmax(1).flatten(1))
    points = logits.flatten(2)[0].T
    assert torch.equal(flat_predictions(points, (len(points),)), points.argmax(1)[None])


@pytest.mark.parametrize("size", [(7,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("strides", ["contiguous", "channels last", "expanded", "sliced"])
def test_pixels_are_taken_whatever_the_strides(size, strides):
    emb = torch.randn(2, 4, *size, dtype=torch.float64)
    if strides == "channels last":
        emb = emb.movedim(1, -1).contiguous().movedim(-1, 1)
    elif strides == "expanded":
        emb = emb[:1].expand(2, -1, *size)
    elif strides == "sliced":
        emb = emb.repeat_interleave(2, dim=-1)[..., ::2]
    pixels = emb[0, 0].numel()
    indices = torch.randperm(2 * pixels)[:5]
    expected = emb.flatten(2).transpose(1, 2).reshape(-1, 4)[indices]
    assert torch.equal(take_pixels(emb, indices), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_unit_length(dtype):
    lengths = torch.tensor([1.0, 1e-3, 6e4, 0.0])
    given = (torch.randn(4, 8).sign() * lengths[:, None]).to(dtype).requires_grad_()
    unit = unit_length(given)
    assert unit.dtype == dtype
    expected = torch.tensor([1.0, 1, 1, 0]).double()
    torch.testing.assert_close(unit.double().norm(dim=1), expected, rtol=0, atol=0.01)
    unit.sum().backward()
    assert torch.isfinite(given.grad).all()
    assert (given.grad[3] == 0).all()


@pytest.mark.parametrize("length", [1e-44, 1e-29, 1e-20, 1e20, 3e38])
def test_unit_length_of_extreme_float32(length):
    given = torch.full((1, 16), length, requires_grad=True)
    unit = unit_length(given)
    unit[0, 0].backward()
    assert torch.isfinite(given.grad).all()
    expected = 0.25 if length > 1e-30 else 0.0
    torch.testing.assert_close(unit[0], torch.full((16,), expected))


def test_unit_length_gradient():
    given = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_length, given)
    assert torch.autograd.gradgradcheck(unit_length, given)


def test_unit_length_gradient_where_one_component_is_all_of_the_length():
    # The norm rounds to 1 there, a value at which PyTorch 2.15 changed the gradient of clamp.
    given = torch.tensor([[0.0, 2.0, 0.0], [1e-9, -3.0, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(unit_length, given.requires_grad_())


def test_a_diverged_embedding_stays_visible():
    for value in (float("nan"), float("inf")):
        assert unit_length(torch.tensor([[1.0, value]])).isnan().any()


@pytest.mark.parametrize("size", [(7,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_the_gradient_of_pixels_taken_more_than_once(size, layout):
    emb = torch.randn(2, 5, *size, dtype=torch.float64)
    if layout == "channels last":
        emb = emb.movedim(1, -1).contiguous().movedim(-1, 1)
    emb.requires_grad_()
    indices = torch.tensor([3, 0, 9, 3, 3, 13, 0, 1])
    upstream = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    results = []
    rows = emb.flatten(2).transpose(1, 2).flatten(0, 1)
    for taken in (rows[indices], take_pixels(emb, indices)):
        (gradient,) = torch.autograd.grad(taken, emb, upstream, create_graph=True)
        # A gradient penalty, as the dense form allows: the derivative of the derivative.
        (second,) = torch.autograd.grad(gradient.square().sum(), upstream)
        results.append((taken, gradient, second))
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_map_of_zeros_comes_last_and_in_the_order_of_the_features(memory_format):
    """Then it is not beside the buffers of other losses, and is added without a conversion."""
    images = torch.randn(2, 3, 4, 5).contiguous(memory_format=memory_format).requires_grad_()
    features = images.relu()
    logits = torch.nn.functional.conv2d(features, torch.randn(2, 3, 1, 1))
    upsampled = torch.nn.functional.interpolate(logits, scale_factor=2)
    rows = take_pixels(features, torch.tensor([3, 11, 3]))
    finished = []
    for node in (rows.grad_fn, logits.grad_fn, upsampled.grad_fn):
        node.register_hook(lambda *_, node=node: finished.append(node.name()))
    (rows.square().sum() + upsampled.square().sum()).backward()
    assert finished[-1] == "TakePixelsBackward"
    assert len(finished) == 3
    alone = torch.autograd.grad(take_pixels(features, torch.tensor([3])).sum(), features)[0]
    assert alone.stride() == features.stride()


def test_the_gradient_of_no_pixels():
    emb = torch.randn(2, 5, 3, requires_grad=True)
    taken = TakePixels.apply(emb, torch.zeros(0, dtype=torch.int64))
    (gradient,) = torch.autograd.grad(taken.sum(), emb)
    assert torch.equal(gradient, torch.zeros(2, 5, 3))


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 8, 10), (0, 5)), ((2, 8, 10), (4, 0)), ((0, 8, 10), (4, 5))]
)
def test_an_embedding_without_pixels(shape, size):
    resized = resize_nearest(torch.ones(shape, dtype=torch.int64), size)
    assert resized.shape == (shape[0], *size)
    assert resized.dtype == torch.int64
