"""What must hold of the loss whatever the numbers are."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from problems import IGNORE, labels, loss_and_gradients, vectors, worst_error
from torch.utils._python_dispatch import TorchDispatchMode

from pixcontrast import HardNegativeSampler
from pixcontrast._info_nce.tiled import class_order, row_blocks, similarities, tiles
from pixcontrast.functional import info_nce

BACKENDS = ("dense", "tiled")
DENOMINATORS = ("negatives", "all")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_denominator = pytest.mark.parametrize("denominator", DENOMINATORS)


@pytest.fixture
def arrays():
    generator = torch.Generator().manual_seed(11)
    return (
        vectors(50, 8, generator),
        labels(50, 6, generator),
        vectors(80, 8, generator),
        labels(80, 6, generator),
    )


@each_backend
@each_denominator
@pytest.mark.usefixtures("small_tiles")
class TestNothingChangesWhen:
    @pytest.fixture(autouse=True)
    def _base(self, backend, denominator, arrays):
        self.options = {"backend": backend, "denominator": denominator}
        self.arrays = arrays
        self.base = self.run(*arrays)

    def run(self, *arguments, **more):
        options = dict(self.options)
        return loss_and_gradients(options.pop("backend"), *arguments, **options, **more)

    def expect(self, actual):
        assert worst_error(actual, self.base) < 1e-12

    def test_anchors_are_permuted(self):
        anchors, anchor_labels, entries, entry_labels = self.arrays
        order = torch.randperm(50)
        loss, by_anchors, by_entries = self.run(
            anchors[order], anchor_labels[order], entries, entry_labels
        )
        self.expect(
            [loss, torch.empty_like(by_anchors).index_copy(0, order, by_anchors), by_entries]
        )

    def test_entries_are_permuted(self):
        anchors, anchor_labels, entries, entry_labels = self.arrays
        order = torch.randperm(80)
        loss, by_anchors, by_entries = self.run(
            anchors, anchor_labels, entries[order], entry_labels[order]
        )
        self.expect(
            [loss, by_anchors, torch.empty_like(by_entries).index_copy(0, order, by_entries)]
        )

    def test_classes_are_renamed(self):
        anchors, anchor_labels, entries, entry_labels = self.arrays
        names = torch.full((256,), IGNORE)
        names[:6] = torch.tensor([900, 4, 0, 77, 254, 12])
        renamed = [
            torch.where(given < 0, given, names[given.clamp(min=0)])
            for given in (anchor_labels, entry_labels)
        ]
        self.expect(self.run(anchors, renamed[0], entries, renamed[1]))

    def test_ignored_entries_are_added(self):
        anchors, anchor_labels, entries, entry_labels = self.arrays
        more = torch.full((20, 8), float("nan"), dtype=torch.float64)
        more[::2] = 1e300
        more_labels = torch.tensor([IGNORE, -1] * 10)
        loss, by_anchors, by_entries = self.run(
            anchors,
            anchor_labels,
            torch.cat([more, entries]),
            torch.cat([more_labels, entry_labels]),
        )
        assert (by_entries[:20] == 0).all()
        self.expect([loss, by_anchors, by_entries[20:]])

    def test_ignored_anchors_are_added(self):
        anchors, anchor_labels, entries, entry_labels = self.arrays
        more = torch.full((3, 8), float("inf"), dtype=torch.float64)
        loss, by_anchors, by_entries = self.run(
            torch.cat([anchors, more]),
            torch.cat([anchor_labels, torch.tensor([IGNORE, -7, IGNORE])]),
            entries,
            entry_labels,
        )
        assert (by_anchors[50:] == 0).all()
        self.expect([loss, by_anchors[:50], by_entries])

    def test_entries_come_in_pieces(self):
        anchors, anchor_labels, entries, entry_labels = self.arrays
        cuts = [0, 0, 33, 80]
        pieces = [entries[a:b] for a, b in itertools.pairwise(cuts)]
        piece_labels = [entry_labels[a:b] for a, b in itertools.pairwise(cuts)]
        loss, by_anchors, *by_pieces = self.run(anchors, anchor_labels, pieces, piece_labels)
        self.expect([loss, by_anchors, torch.cat(by_pieces)])

    def test_another_ignore_index_names_the_ignored(self):
        anchors, anchor_labels, entries, entry_labels = self.arrays
        renamed = [
            given.masked_fill(given == IGNORE, -100) for given in (anchor_labels, entry_labels)
        ]
        self.expect(self.run(anchors, renamed[0], entries, renamed[1], ignore_index=-100))

    def test_labels_are_of_another_dtype(self):
        anchors, anchor_labels, entries, entry_labels = self.arrays
        as_bytes = [
            given.masked_fill(given < 0, IGNORE).to(torch.uint8)
            for given in (anchor_labels, entry_labels)
        ]
        self.expect(self.run(anchors, as_bytes[0], entries, as_bytes[1]))

    def test_weights_are_all_alike(self):
        self.expect(self.run(*self.arrays, weight=torch.full((50,), 0.25)))


@each_backend
@each_denominator
def test_weights_weigh(backend, denominator, arrays):
    options = {"backend": backend, "denominator": denominator}
    weight = torch.linspace(0, 2, 50, dtype=torch.float64)
    each = info_nce(*arrays, reduction="none", **options)
    has_positive = each > 0  # with negatives of every class, no loss is 0 but where left out
    expected = (weight * each)[has_positive].sum() / weight[has_positive].sum()
    torch.testing.assert_close(info_nce(*arrays, weight=weight, **options), expected)
    torch.testing.assert_close(
        info_nce(*arrays, weight=weight, reduction="none", **options), weight * each
    )
    nothing = info_nce(*arrays, weight=torch.zeros(50), **options)
    assert nothing == 0


@each_backend
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@each_denominator
@pytest.mark.parametrize(
    ("anchor_labels", "entry_labels"),
    [
        ([], [0, 1]),
        ([0, 1, 1], []),
        ([IGNORE, -1, IGNORE], [0, 1, 2]),
        ([0, 0, 0], [IGNORE, -1, IGNORE]),
        ([0, 1, 2], [3, 4, 5]),
        ([0, 0], [0, 0, 0]),
        ([0], [0]),
    ],
    ids=["no anchors", "no entries", "anchors ignored", "entries ignored", "no positives",
         "no negatives", "one pair"],
)  # fmt: skip
def test_degenerate_labels(backend, reduction, denominator, anchor_labels, entry_labels):
    generator = torch.Generator().manual_seed(0)
    anchors = vectors(len(anchor_labels), 4, generator)
    entries = vectors(len(entry_labels), 4, generator)
    anchor_labels = torch.tensor(anchor_labels, dtype=torch.int64)
    entry_labels = torch.tensor(entry_labels, dtype=torch.int64)
    shape = anchor_labels.shape if reduction == "none" else ()
    loss, by_anchors, by_entries = loss_and_gradients(
        backend,
        anchors,
        anchor_labels,
        entries,
        entry_labels,
        torch.ones(shape, dtype=torch.float64),
        denominator=denominator,
        reduction=reduction,
    )
    assert loss.shape == shape
    for tensor in (loss, by_anchors, by_entries):
        assert torch.isfinite(tensor).all()
    present = set(anchor_labels[anchor_labels != IGNORE].tolist()) & set(entry_labels.tolist())
    if denominator == "negatives" or not present:
        # Without negatives the loss is exactly 0; without positives there is none.
        assert (loss == 0).all()
        assert (by_anchors == 0).all()
        assert (by_entries == 0).all()


@each_backend
def test_the_empty_sequence_is_no_contrast(backend):
    anchors = torch.eye(3, requires_grad=True)
    loss = info_nce(anchors, torch.zeros(3, dtype=torch.int64), [], [], backend=backend)
    loss.backward()
    assert loss == 0
    assert (anchors.grad == 0).all()


@each_backend
@each_denominator
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    exponents=st.lists(st.floats(-45, 38), min_size=2, max_size=6),
    temperature=st.sampled_from([1e-300, 1e-30, 1e-4, 0.1, 1e30]),
    seed=st.integers(0, 1000),
)
def test_finite_similarities_never_make_nan(backend, denominator, exponents, temperature, seed):
    """float32 vectors from subnormal to nearly the largest there is, one component each."""
    generator = torch.Generator().manual_seed(seed)
    # The last is a zero vector, at right angles to everything.
    lengths = torch.tensor([*(10.0**e for e in exponents), 0.0], dtype=torch.float64)
    anchors = (lengths * torch.randn(len(lengths), generator=generator)).float()[:, None]
    anchors = anchors.nan_to_num().requires_grad_()
    anchor_labels = torch.randint(0, 2, (len(lengths),), generator=generator)
    loss = info_nce(
        anchors,
        anchor_labels,
        temperature=temperature,
        denominator=denominator,
        backend=backend,
        reduction="none",
    )
    assert not loss.isnan().any()
    largest = float(anchors.detach().abs().max())
    # Beyond this similarities, or the gradient's own terms, overflow: inf − inf is then due.
    if largest * max(largest, 1.0) / temperature < 1e37:
        (gradient,) = torch.autograd.grad(loss.sum(), anchors)
        assert torch.isfinite(gradient).all()


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("entries_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes(backend, dtype, entries_dtype, arrays):
    anchors, anchor_labels, entries, entry_labels = arrays
    anchors, entries = anchors.to(dtype), entries.to(entries_dtype)
    actual = loss_and_gradients(backend, anchors, anchor_labels, entries, entry_labels)
    assert [tensor.dtype for tensor in actual] == [torch.float32, dtype, entries_dtype]
    # The truth for operands as they are rounded: entries take the anchors' dtype.
    rounded = entries.to(dtype).double()
    expected = loss_and_gradients("dense", anchors.double(), anchor_labels, rounded, entry_labels)
    bound = max(torch.finfo(t).eps for t in (dtype, entries_dtype, torch.float32))
    assert worst_error(actual[:1], expected[:1]) < 2e-6
    assert worst_error(actual[1:], expected[1:]) < 4 * bound


@each_backend
@pytest.mark.parametrize("mining", [None, HardNegativeSampler()], ids=["everything", "mined"])
def test_autocast_rounds_the_operands_alone(backend, mining, arrays):
    anchors, anchor_labels, entries, entry_labels = arrays
    leaves = [part.float().requires_grad_() for part in (anchors, entries)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(
            leaves[0],
            anchor_labels,
            [leaves[1], None],
            [entry_labels, None],
            negative_sampler=mining,
            generator=torch.Generator().manual_seed(1),
            backend=backend,
        )
    actual = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    assert {tensor.dtype for tensor in actual} == {torch.float32}
    rounded = [part.bfloat16().double() for part in (anchors, entries)]
    expected = loss_and_gradients(
        "dense",
        rounded[0],
        anchor_labels,
        [rounded[1], None],
        [entry_labels, None],
        negative_sampler=mining,
        generator=torch.Generator().manual_seed(1),
    )
    assert worst_error(actual[:1], expected[:1]) < 1e-6
    assert worst_error(actual[1:], expected[1:]) < 1e-5


@each_backend
def test_overflow_of_a_scaled_float16_gradient_is_infinite(backend, arrays):
    anchors = arrays[0].half().requires_grad_()
    loss = info_nce(anchors, arrays[1], backend=backend, temperature=0.01)
    (loss * 2.0**24).backward()
    assert anchors.grad.isinf().any()
    assert not anchors.grad.isnan().any()


@pytest.mark.usefixtures("sorted_tiles")
def test_no_gradient_is_made_where_none_is_wanted(arrays, monkeypatch):
    seen, make_tile = [], tiles.Tiling.logits
    monkeypatch.setattr(tiles.Tiling, "logits", lambda *a: seen.append(1) or make_tile(*a))
    addmm, products = torch.Tensor.addmm_, []
    monkeypatch.setattr(
        torch.Tensor, "addmm_", lambda *a, **k: products.append(1) or addmm(*a, **k)
    )
    anchors, *rest = arrays
    anchors = anchors.requires_grad_()
    with torch.no_grad():
        assert not info_nce(anchors, *rest).requires_grad
    assert seen
    assert not products
    loss = info_nce(anchors, *rest)
    assert products
    tiles_of_forward = len(seen)
    monkeypatch.setattr(class_order.ClassOrder, "__init__", None)
    loss.backward()  # entries of a bank cost nothing, not even a look at the anchors
    assert len(seen) == tiles_of_forward


class Called(TorchDispatchMode):
    """Names the operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket)
        return func(*args, **(kwargs or {}))


def test_the_backward_creates_no_zeros_for_outputs_without_gradient(arrays):
    """Of the many outputs of the operator, only the losses have one."""
    anchors, *rest = arrays
    loss = info_nce(anchors.requires_grad_(), *rest)
    with Called() as called:
        loss.backward()
    assert torch.ops.aten.mul in called.names
    assert torch.ops.aten.zeros not in called.names


class Dropped(torch.autograd.Function):
    """The identity, without a gradient."""

    @staticmethod
    def forward(ctx, losses):
        return losses.clone()

    @staticmethod
    def backward(ctx, upstream):
        return None


def test_losses_whose_gradient_is_undefined(arrays):
    anchors, *rest = arrays
    losses = info_nce(anchors.requires_grad_(), *rest, reduction="none")
    Dropped.apply(losses).sum().backward()
    assert anchors.grad is None


@each_backend
def test_a_bank_may_be_written_to_between_forward_and_backward(backend, arrays):
    anchors, anchor_labels, entries, entry_labels = arrays
    for mining in (None, HardNegativeSampler(ratio=0.5, num_negatives=4)):
        results = []
        for write in (False, True):
            leaf, bank = anchors.clone().requires_grad_(), entries.clone()
            loss = info_nce(
                leaf,
                anchor_labels,
                [None, bank],
                [None, entry_labels],
                negative_sampler=mining,
                generator=torch.Generator().manual_seed(1),
                backend=backend,
            )
            if write:
                bank.normal_()
            loss.backward()
            results.append(leaf.grad)
        assert torch.equal(*results)


@each_backend
@pytest.mark.parametrize("mining", [None, HardNegativeSampler()], ids=["everything", "mined"])
@pytest.mark.parametrize("threads", [1, 2])
def test_same_seed_same_bits(backend, mining, threads, arrays):
    anchors, anchor_labels, entries, entry_labels = arrays
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = (
            loss_and_gradients(
                backend,
                anchors.float().repeat(8, 4),
                anchor_labels.repeat(8),
                [entries.float().repeat(50, 4), None],
                [entry_labels.repeat(50), None],
                negative_sampler=mining,
                generator=torch.Generator().manual_seed(3),
            )
            for _ in range(2)
        )
    finally:
        torch.set_num_threads(before)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@each_backend
def test_no_argument_is_changed(backend, arrays):
    before = [array.clone() for array in arrays]
    weight = torch.rand(50)
    weight_before = weight.clone()
    loss_and_gradients(backend, *arrays, weight=weight)
    info_nce(*arrays, backend=backend)
    for array, copy in zip([*arrays, weight], [*before, weight_before], strict=True):
        assert torch.equal(array, copy)


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("mining", [None, HardNegativeSampler()], ids=["everything", "mined"])
@pytest.mark.parametrize("want", ["anchors", "entries"])
def test_memory_does_not_grow_with_anchors_times_entries(mining, want):
    num_anchors, num_entries = 500, 12_000
    generator = torch.Generator().manual_seed(0)
    anchors = vectors(num_anchors, 4, generator, torch.float32).requires_grad_()
    entries = vectors(num_entries, 4, generator, torch.float32)
    entries.requires_grad_(want == "entries")
    arguments = labels(num_anchors, 9, generator), entries, labels(num_entries, 9, generator)

    def largest(backend):
        with LargestTensor() as mode:
            info_nce(anchors, *arguments, negative_sampler=mining, backend=backend).backward()
        return mode.elements

    assert largest("dense") >= num_anchors * num_entries
    tile = row_blocks.BLOCK_SIZE if mining else similarities.TILE_ROWS * similarities.TILE_COLUMNS
    assert largest("tiled") <= max(tile, 4 * num_entries)


def test_the_docstring_gives_the_same_value(arrays):
    anchors, anchor_labels, contrast, contrast_labels = arrays
    there = (anchor_labels >= 0) & (anchor_labels != IGNORE)
    anchors, anchor_labels = anchors[there], anchor_labels[there]
    there = (contrast_labels >= 0) & (contrast_labels != IGNORE)
    contrast, contrast_labels = contrast[there], contrast_labels[there]
    temperature = 0.1
    lines = info_nce.__doc__.split("in plain PyTorch::")[1].split("Args:")[0]
    names = {"torch": torch, **locals()}
    exec("\n".join(line.strip() for line in lines.splitlines()), names)
    expected = info_nce(anchors, anchor_labels, contrast, contrast_labels)
    torch.testing.assert_close(names["loss"], expected)
    assert not math.isnan(expected)


@each_backend
@each_denominator
@pytest.mark.parametrize("mining", [None, HardNegativeSampler()], ids=["everything", "mined"])
def test_means_of_large_terms_do_not_overflow(backend, denominator, mining):
    """Eight terms of a tenth of the largest float32: their sum overflows, their mean does not."""
    anchors = torch.ones(1, 1, requires_grad=True)
    for sign in (1.0, -1.0):
        entries = torch.full((9, 1), sign * 3e37)
        entries[8] = 0.0
        loss = info_nce(
            anchors,
            torch.zeros(1, dtype=torch.int64),
            entries,
            torch.tensor([0] * 8 + [1]),
            temperature=1.0,
            denominator=denominator,
            negative_sampler=mining,
            backend=backend,
        )
        assert torch.isfinite(loss)
        expected = torch.tensor(0.0 if sign > 0 else 3e37)
        # Z − mean s is the difference of two numbers of that size.
        rounding = 3e37 * 1e-6 if denominator == "all" else 0.0
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=rounding)
        assert not torch.autograd.grad(loss, anchors)[0].isnan()


@each_backend
def test_operands_beyond_the_range_of_the_product_saturate(backend):
    anchors = torch.tensor([[1.0, 0.0]], dtype=torch.float16, requires_grad=True)
    entries = torch.tensor([[1e-3, 1e5], [0.0, 1.0]])
    loss = info_nce(anchors, torch.tensor([0]), entries, torch.tensor([0, 1]), backend=backend)
    assert torch.isfinite(loss)


@each_backend
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 3e38), (torch.float64, 1e300),
                                             (torch.float64, 1e-60)])  # fmt: skip
def test_weights_of_any_size(backend, dtype, size, arrays):
    weight = size * torch.linspace(0.1, 1, 50, dtype=dtype)
    modest = torch.linspace(0.1, 1, 50)
    arrays = [a.float() if a.is_floating_point() else a for a in arrays]
    actual = info_nce(*arrays, weight=weight, backend=backend)
    torch.testing.assert_close(actual, info_nce(*arrays, weight=modest, backend=backend))


def test_transforms_of_torch_func():
    anchors, anchor_labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    weight = torch.rand(3, 4)

    def loss(anchors, weight, backend):
        return info_nce(anchors, anchor_labels, weight=weight, backend=backend)

    mapped = torch.func.vmap(loss, in_dims=(None, 0, None))(anchors, weight, "dense")
    each = torch.stack([loss(anchors, w, "dense") for w in weight])
    torch.testing.assert_close(mapped, each)
    by_func = torch.func.grad(loss)(anchors, weight[0], "dense")
    leaf = anchors.clone().requires_grad_()
    loss(leaf, weight[0], "tiled").backward()
    torch.testing.assert_close(by_func, leaf.grad)
    with pytest.raises(RuntimeError, match=r'torch.func need backend="dense"'):
        torch.func.grad(loss)(anchors, weight[0], "tiled")


def test_another_default_device_changes_nothing(arrays):
    mining = HardNegativeSampler(strategy="hardest")
    expected = info_nce(*arrays, negative_sampler=mining) + info_nce(*arrays)
    torch.set_default_device("meta")
    try:
        actual = info_nce(*arrays, negative_sampler=mining) + info_nce(*arrays)
    finally:
        torch.set_default_device(None)
    assert torch.equal(actual, expected)


def test_devices_without_autocast_are_no_error():
    loss = info_nce(torch.eye(4, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta"))
    assert loss.shape == ()
