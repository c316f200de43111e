"""The fused form in training: autocast, loss scaling, torch.compile and the modules."""

import pytest
import torch
from internals import matmul_precision
from on_gpu import (
    BACKEND,
    COUNTING,
    DEVICE,
    INTERPRETED,
    compiled,
    draw,
    needs_gpu,
    relative_errors,
    run,
    wide,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from pixcontrast import HardAnchorSampler, HardNegativeSampler, MemoryBank, PixelContrastLoss
from pixcontrast.functional import info_nce

pytestmark = needs_gpu

HALVES = [torch.bfloat16, torch.float16]
DIM = 64
"""As in many other tests, whose kernels these tests share."""


def both_kinds(dtype=torch.float32):
    """Anchors against themselves, entries and a bank."""
    anchors, labels = draw(60, DIM, dtype)
    entries, entry_labels = draw(90, DIM, dtype, seed=1)
    bank, bank_labels = draw(150, DIM, dtype, seed=2, in_order=True)
    return anchors, labels, [entries, None, bank], [entry_labels, None, bank_labels]


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_autocast_rounds_the_operands_alone(dtype):
    if INTERPRETED and dtype == torch.bfloat16:
        pytest.skip("the interpreter does not round to bfloat16")
    arguments = both_kinds()
    with torch.autocast(DEVICE.type, dtype):
        actual = run(BACKEND, arguments, None)
    assert {tensor.dtype for tensor in actual} == {torch.float32}
    rounded = (
        arguments[0].to(dtype),
        arguments[1],
        [part if part is None else part.to(dtype) for part in arguments[2]],
        arguments[3],
    )
    truth = run("dense", wide(rounded), None)
    errors = relative_errors(actual, truth)
    assert errors[0] < 1e-5
    # Probabilities are rounded to 16 bits before a matrix unit multiplies them.
    assert max(errors[1:]) < torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_dtypes_of_loss_and_gradients(dtype):
    actual = run(BACKEND, both_kinds(dtype), None)
    assert [tensor.dtype for tensor in actual] == [torch.float32] + [dtype] * 3


def test_overflow_of_a_scaled_gradient_is_infinite():
    anchors, labels = draw(50, DIM, torch.float16)
    leaf = anchors.requires_grad_()
    loss = info_nce(leaf, labels, backend=BACKEND, temperature=0.01)
    (loss * 2.0**24).backward()
    assert leaf.grad.isinf().any()
    assert not leaf.grad.isnan().any()


def test_a_step_that_overflows_is_skipped():
    head = nn.Linear(8, DIM).to(DEVICE)
    before = head.weight.detach().clone()
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    labels = torch.arange(40, device=DEVICE) % 4
    for scale in (2.0**40, 1.0):
        scaler = torch.amp.GradScaler(DEVICE.type, init_scale=scale)
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, torch.float16):
            loss = info_nce(head(draw(40, 8, torch.float32)[0]), labels, backend=BACKEND)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        moved = not torch.equal(head.weight, before)
        assert moved == (scale == 1.0)
    assert torch.isfinite(head.weight).all()


@pytest.mark.ungated("inductor")
@pytest.mark.plain_empty
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mining", [None, HardNegativeSampler()], ids=["everything", "mined"])
def test_compiled_whole(mining):
    def loss(anchors, labels, entries, entry_labels):
        kinds = [None, entries], [None, entry_labels]
        return info_nce(anchors, labels, *kinds, negative_sampler=mining, backend=BACKEND)

    torch._dynamo.reset()
    arguments = (*draw(40, DIM, torch.float32), *draw(90, DIM, torch.float32, seed=1))
    leaves = [arguments[0].requires_grad_(), arguments[2].requires_grad_()]
    results = []
    for form in (loss, compiled(loss)):
        with torch._inductor.config.patch(fallback_random=True):
            torch.manual_seed(0)
            value = form(*arguments)
            results.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


class Operators(TorchDispatchMode):
    """Records the calls of this package's operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "pixcontrast":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def as_given(tensor):
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


@pytest.mark.ungated("opcheck")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mining", [None, HardNegativeSampler()], ids=["everything", "mined"])
def test_opcheck_of_every_operator_that_runs(mining):
    anchors, labels, entries, entry_labels = both_kinds()
    leaf, wanted = anchors.clone().requires_grad_(), entries[0].clone().requires_grad_()
    with Operators() as seen:
        pieces = [wanted, *entries[1:]]
        options = {"negative_sampler": mining, "backend": BACKEND}
        info_nce(leaf, labels, pieces, entry_labels, **options).backward()
    assert len(seen.calls) >= 2, "a forward and a backward operator"
    if COUNTING:
        return
    for number, (operator, args, kwargs) in enumerate(seen.calls):
        # The first operator is called by autograd; the others have no derivative.
        fresh = tree_map_only(torch.Tensor, as_given if number == 0 else torch.Tensor.detach, args)
        torch.library.opcheck(operator, fresh, kwargs)
    assert seen.calls[0][1][0].requires_grad


def test_a_second_derivative_raises():
    anchors, labels = draw(40, DIM, torch.float32)
    leaf = anchors.requires_grad_()
    loss = info_nce(leaf, labels, backend=BACKEND)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="dense"):
        gradient.square().sum().backward()


def test_a_bank_may_be_written_to_between_forward_and_backward():
    anchors, labels, entries, entry_labels = both_kinds()
    results = []
    for write in (False, True):
        leaf, bank = anchors.clone().requires_grad_(), entries[2].clone()
        loss = info_nce(leaf, labels, [None, bank], [None, entry_labels[2]], backend=BACKEND)
        if write:
            bank.normal_()
        loss.backward()
        results.append(leaf.grad)
    assert torch.equal(*results)


@pytest.mark.ungated("training")
@pytest.mark.parametrize("bank_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_with_a_bank_are_those_of_the_cpu(bank_dtype):
    """Every pixel becomes an anchor and enters the bank: sampling changes only the order."""

    def train(device, backend):
        torch.manual_seed(0)
        head = nn.Conv2d(6, 16, 1).to(device)
        bank = MemoryBank(
            3, 16, pixel_slots=400, region_slots=8, pixels_per_image=64, dtype=bank_dtype
        )
        criterion = PixelContrastLoss(
            anchor_sampler=HardAnchorSampler(max_anchors=2048, max_views=64),
            bank=bank,
            backend=backend,
        ).to(device)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        losses = []
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            images = torch.randn(2, 6, 8, 8, generator=generator).to(device)
            labels = torch.randint(-1, 3, (2, 8, 8), generator=generator).to(device)
            loss = criterion(head(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().cpu())
        counts = torch.cat([bank.pixel_count, bank.region_count]).cpu()
        return torch.stack(losses), head.weight.detach().cpu(), counts

    with matmul_precision("highest"), torch.backends.cudnn.flags(allow_tf32=False):
        ours = train(DEVICE, BACKEND)
        expected = train(torch.device("cpu"), "dense")
    assert torch.equal(ours[2], expected[2])
    # A number stored in bfloat16 may be rounded the other way.
    bound = 1e-4 if bank_dtype == torch.float32 else 3e-3
    for actual, reference in zip(ours[:2], expected[:2], strict=True):
        torch.testing.assert_close(actual, reference, rtol=bound, atol=bound)


def test_auto_takes_the_fused_form():
    if DEVICE.type != "cuda" and not COUNTING:
        pytest.skip("tiled is what auto takes on a CPU")
    arguments = both_kinds(torch.bfloat16)
    for actual, expected in zip(
        run("auto", arguments, None), run(BACKEND, arguments, None), strict=True
    ):
        assert torch.equal(actual, expected)
