"""The kernels that gather pixels as unit vectors, beside the operations that they replace."""

import pytest
import torch

from pixcontrast import MemoryBank, PixelContrastLoss, _triton
from pixcontrast._loss.sampled_rows import sampled_rows

IGNORE = 255
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(params=["operations", "kernels"])
def _by(request, monkeypatch):
    use_form(request.param, monkeypatch)


def use_form(form, monkeypatch):
    monkeypatch.setattr(_triton, "auto_takes_fused", lambda *_: form == "kernels")


def map_of(size=(3, 4), dim=5, dtype=torch.float32, images=2):
    emb = torch.randn(images, dim, *size)
    emb *= 10 ** torch.empty(images, 1, *size).uniform_(-2, 2)
    return emb.to(dtype)


def rows_and_gradient(emb, indices, labels, **options):
    leaf = emb.detach().requires_grad_()
    options = {"normalize": True, "backend": "triton", **options}
    rows, marked = sampled_rows(leaf, indices, labels, IGNORE, **options)
    upstream = torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).to(rows.dtype)
    (gradient,) = torch.autograd.grad(rows, leaf, upstream)
    return rows, marked, gradient


def check(emb, indices, labels, monkeypatch):
    use_form("operations", monkeypatch)
    expected, expected_labels, truth = rows_and_gradient(emb.double(), indices, labels)
    use_form("kernels", monkeypatch)
    rows, marked, gradient = rows_and_gradient(emb, indices, labels)
    assert torch.equal(marked, expected_labels)
    assert (rows.dtype, gradient.dtype) == (emb.dtype, emb.dtype)
    assert gradient.stride() == torch.empty_like(emb).stride()
    tolerance = TOLERANCE[emb.dtype]
    torch.testing.assert_close(rows.double(), expected.detach(), rtol=0, atol=tolerance)
    scale = truth.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
    torch.testing.assert_close(gradient.double() / scale, truth / scale, rtol=0, atol=2 * tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [(7,), (3, 4), (2, 3, 2)])
@pytest.mark.parametrize("strides", ["contiguous", "channels last", "expanded", "sliced"])
def test_rows_and_their_gradient(dtype, size, strides, monkeypatch):
    emb = map_of(size, 6, dtype)
    if strides == "channels last":
        emb = emb.movedim(1, -1).contiguous().movedim(-1, 1)
    elif strides == "expanded":
        emb = emb[:1].expand(2, -1, *size)
    elif strides == "sliced":
        emb = emb.repeat_interleave(2, dim=-1)[..., ::2]
    # Pixels that occur more than once, one of them ignored, and padding.
    indices = torch.tensor([3, 0, 9, 3, 3, 13 if len(size) == 1 else 11, 0, 0, 0, 1])
    labels = torch.tensor([0, 1, 2, 5, IGNORE, 3, -7, IGNORE, IGNORE, 0])
    check(emb, indices, labels, monkeypatch)


@pytest.mark.parametrize("dim", [1, 16, 33])
def test_any_width_and_number(dim, monkeypatch):
    emb = map_of((3, 5), dim)
    for count in (1, 3, 4, 9):
        indices, labels = torch.randperm(30)[:count], torch.randint(-1, 3, (count,))
        check(emb, indices, labels.to(torch.int32), monkeypatch)


def test_points_and_negative_indices(monkeypatch):
    check(
        map_of((), 4, images=9).T[None], torch.tensor([2, -1, 5]), torch.ones(3).long(), monkeypatch
    )


@pytest.mark.usefixtures("_by")
def test_no_row():
    none = torch.zeros(0, dtype=torch.int64)
    rows, marked, gradient = rows_and_gradient(map_of(), none, none)
    assert (rows.shape, marked.shape) == ((0, 5), (0,))
    assert torch.equal(gradient, torch.zeros(2, 5, 3, 4))


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("length", [0.0, 1e-44, 1e-29, 1e-20, 1e20, 3e38])
def test_vectors_of_any_length(length):
    emb = torch.full((1, 16, 2), length)
    rows, _, gradient = rows_and_gradient(emb, torch.tensor([1]), torch.tensor([0]))
    torch.testing.assert_close(rows, torch.full((1, 16), 0.25 if length > 1e-30 else 0.0))
    assert gradient.isfinite().all()
    assert length > 1e-30 or not gradient.any()


@pytest.mark.usefixtures("_by")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_ignored_may_hold_anything_and_the_rest_stays_visible(bad):
    emb = map_of()
    emb[0, 2, 0, 0] = bad
    indices = torch.tensor([0, 5])
    rows, _, gradient = rows_and_gradient(emb, indices, torch.tensor([IGNORE, 1]))
    assert rows.isfinite().all()
    assert gradient.isfinite().all()
    rows, _, gradient = rows_and_gradient(emb, indices, torch.tensor([1, 1]))
    assert rows[0].isnan().any()
    assert rows[1].isfinite().all()


@pytest.mark.parametrize("options", [{"normalize": False}, {"backend": "tiled"}], ids=str)
def test_other_forms_take_operations(options, monkeypatch):
    given = map_of(), torch.tensor([3, 3, 0]), torch.tensor([1, 2, IGNORE])
    use_form("kernels", monkeypatch)
    found = rows_and_gradient(*given, **options)
    use_form("operations", monkeypatch)
    assert all(map(torch.equal, found, rows_and_gradient(*given, **options)))


def test_a_second_derivative_raises(monkeypatch):
    use_form("kernels", monkeypatch)
    emb, labels = map_of().requires_grad_(), torch.randint(0, 2, (2, 3, 4))
    loss = PixelContrastLoss(backend="triton")(emb, labels)
    (gradient,) = torch.autograd.grad(loss, emb, create_graph=True)
    with pytest.raises(RuntimeError, match='needs backend="dense"'):
        gradient.square().sum().backward()


@pytest.mark.parametrize("per_region", [None, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_bank_stores_the_same(per_region, dtype, monkeypatch):
    banks = []
    emb, labels = map_of((6, 7), 4, dtype), torch.randint(-1, 3, (2, 6, 7))
    emb[1, 2, 3], emb[0, :, 0] = float("nan"), 0.0
    for form in ("operations", "kernels"):
        use_form(form, monkeypatch)
        bank = MemoryBank(3, 4, pixel_slots=40, region_slots=7, pixels_per_region=per_region)
        bank.update(emb, labels, generator=torch.Generator().manual_seed(0))
        banks.append(bank)
    for one, other in zip(*(bank.buffers() for bank in banks), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_a_loss_whose_bank_alone_takes_kernels(monkeypatch):
    """With the dense form the anchors are differentiable twice."""
    use_form("kernels", monkeypatch)
    emb, labels = map_of((6, 7), 4).requires_grad_(), torch.randint(0, 3, (2, 6, 7))
    loss = PixelContrastLoss(bank=MemoryBank(3, 4, pixel_slots=9), backend="dense")
    (gradient,) = torch.autograd.grad(loss(emb, labels), emb, create_graph=True)
    gradient.square().sum().backward()
    assert emb.grad.any()
