"""The gradient of pixels that are taken more than once: accurate, and the same in every run."""

import pytest
import torch

from pixcontrast._pixels.take_pixels import take_pixels

FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    """The compiler gives up on a function that was compiled for many other calls."""
    torch.compiler.reset()


def gradient(take, emb, indices, upstream):
    emb = emb.detach().requires_grad_()
    (found,) = torch.autograd.grad(take(emb, indices), emb, upstream)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_many_rows_of_a_pixel_are_added_in_float32(dtype, compiled):
    emb, indices = torch.zeros(1, 4, 3, dtype=dtype), torch.zeros(1024, dtype=torch.int64)
    upstream = torch.full((1024, 4), 0.01, dtype=dtype)
    take = torch.compile(take_pixels, backend="aot_eager") if compiled else take_pixels
    found = gradient(take, emb, indices, upstream)
    assert found.dtype == dtype
    expected = torch.zeros(1, 4, 3, dtype=torch.float64)
    expected[:, :, 0] = upstream.double().sum(0)
    torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_gradient_is_the_same_in_every_run(compiled):
    torch.set_num_threads(2)
    emb = torch.zeros(1, 64, 1200)
    indices = torch.randint(0, 5, (1024,))
    upstream = torch.randn(1024, 64)
    take = torch.compile(take_pixels, backend="aot_eager") if compiled else take_pixels
    first = gradient(take, emb, indices, upstream)
    assert all(torch.equal(first, gradient(take, emb, indices, upstream)) for _ in range(100))


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_pixels_are_those_of_eager_mode(memory_format, dynamic):
    emb = torch.randn(2, 6, 4, 5).contiguous(memory_format=memory_format)
    indices, upstream = torch.tensor([3, 39, 3, 20, 3, 39]), torch.randn(6, 6)
    compiled = torch.compile(take_pixels, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    assert torch.equal(compiled(emb, indices), take_pixels(emb, indices))
    found, expected = (gradient(take, emb, indices, upstream) for take in (compiled, take_pixels))
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("num_gradients", [1, 3, 6], ids=str)
def test_several_gradients_at_once(num_gradients):
    """As many as rows, too: PyTorch's rule of vmap for an index with a slice between transposes."""
    emb, indices = torch.randn(2, 6, 4, 5), torch.tensor([3, 39, 3, 20, 3, 38])
    upstreams = torch.randn(num_gradients, 6, 6)
    _, gradient_of = torch.func.vjp(lambda pixels: take_pixels(pixels, indices), emb)
    found = torch.func.vmap(lambda upstream: gradient_of(upstream)[0])(upstreams)
    expected = torch.stack([gradient(take_pixels, emb, indices, one) for one in upstreams])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
