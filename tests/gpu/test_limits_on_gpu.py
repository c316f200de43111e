"""Sizes, strides and memory on a GPU."""

import gc

import pytest
import torch
from internals import matmul_precision
from on_gpu import BACKEND, COUNTING, DEVICE, MODES, draw, needs_gpu, relative_errors, run, size
from torch.nn import functional as F

from pixcontrast.functional import info_nce

pytestmark = [*needs_gpu, pytest.mark.plain_empty]  # Filling gigabytes with NaN takes long.

CLASSES = 19
SPARE_GIGABYTES = 8


@pytest.fixture(autouse=True)
def _memory_given_back():
    yield
    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()


def needs_free(gigabytes):
    """Skip a test unless this much memory is free, and as much as small tests beside it need."""
    needed = (gigabytes + SPARE_GIGABYTES) * 1e9
    if DEVICE.type == "cuda" and torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {gigabytes} GB of free memory")


def bank(rows, dim, dtype=torch.bfloat16, seed=0):
    """Millions of rows sorted by class, made on the device a slice at a time."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = torch.empty(rows, dim, dtype=dtype, device=DEVICE)
    for part in made.split(1 << 18):
        part.copy_(F.normalize(torch.randn(part.shape, generator=generator, device=DEVICE), dim=1))
    return made, torch.arange(rows, device=DEVICE) * CLASSES // rows


def some(rows, dim, dtype=torch.bfloat16, seed=1):
    generator = torch.Generator(DEVICE).manual_seed(seed)
    made = F.normalize(torch.randn(rows, dim, generator=generator, device=DEVICE), dim=1)
    return made.to(dtype), torch.randint(CLASSES, (rows,), generator=generator, device=DEVICE)


@pytest.mark.large_memory
@pytest.mark.parametrize("anchors", [1024, 16_384])
@pytest.mark.parametrize("entries", [190_000, 4_000_000])
def test_a_large_bank(anchors, entries):
    """A few anchors against float64: the loss of an anchor depends on no other anchor."""
    rows, columns = size(anchors, anchors // 32), size(entries, entries // 1000)
    needs_free(20)
    vectors, labels = some(rows, 64)
    entries, entry_labels = bank(columns, 64)
    losses, gradient = run(
        BACKEND,
        (vectors, labels, entries, entry_labels),
        torch.ones(rows, device=DEVICE),
        entries_want_gradient=False,
        reduction="none",
    )
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    for row in (0, 1, rows // 2 + 1, rows - 1):
        one = slice(row, row + 1)
        leaf = vectors[one].double().requires_grad_()
        logits = leaf @ entries.double().T / 0.1
        same = labels[one, None] == entry_labels
        z = logits.masked_fill(same, -torch.inf).logsumexp(dim=1)
        truth = (F.softplus(z - logits) * same).sum() / same.sum()
        (by_leaf,) = torch.autograd.grad(truth, leaf)
        errors = relative_errors([losses[row], gradient[one]], [truth.detach(), by_leaf])
        # The gradient is rounded to 16 bits, and so are the probabilities that it is made of.
        assert errors[0] < 1e-5
        assert errors[1] < 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.large_memory
@pytest.mark.parametrize("wanted", [False, True], ids=["bank", "entries"])
def test_addresses_beyond_32_bits(wanted):
    """N·D > 2³¹: all but the first and the last entries are ignored, so that the truth is small."""
    rows, dim = size(4_300_000, 5000), 512
    needs_free(35 if wanted else 12)
    entries = torch.zeros(rows, dim, dtype=torch.bfloat16, device=DEVICE)
    assert DEVICE.type != "cuda" or entries.numel() > 2**31
    entry_labels = torch.full((rows,), 255, device=DEVICE)
    ends = torch.cat([torch.arange(300), torch.arange(rows - 700, rows)]).to(DEVICE)
    real, real_labels = draw(1000, dim, torch.bfloat16, seed=2)
    entries[ends], entry_labels[ends] = real, real_labels
    anchors, anchor_labels = draw(150, dim, torch.bfloat16)

    leaf = anchors.clone().requires_grad_()
    entries.requires_grad_(wanted)
    loss = info_nce(leaf, anchor_labels, entries, entry_labels, backend=BACKEND)
    gradients = torch.autograd.grad(loss, [leaf, entries] if wanted else [leaf])
    small = (anchors.double(), anchor_labels, real.double(), real_labels)
    truth = run("dense", small, None)
    actual = [loss.detach(), gradients[0]]
    if wanted:
        actual.append(gradients[1][ends])
        assert (gradients[1][300:-700] == 0).all()
    errors = relative_errors(actual, truth[: len(actual)])
    assert errors[0] < 1e-5
    assert max(errors[1:]) < 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.large_memory
@pytest.mark.parametrize("mode", ["bf16", "float32"])
def test_many_anchors_against_themselves(mode):
    """Anchors are entries of each other; the reference is the dense form in float32."""
    dtype, matmul = MODES[mode]
    needs_free(20)
    vectors, labels = some(size(16_384, 500), 64, dtype)
    with matmul_precision(matmul):
        ours = run(BACKEND, (vectors, labels, None, None), None)
    truth = run("dense", (vectors.float(), labels, None, None), None)
    errors = relative_errors(ours, truth)
    assert errors[0] < 1e-5
    assert errors[1] < max(2 * torch.finfo(dtype).eps, 1e-4)


@pytest.mark.skipif(
    DEVICE.type != "cuda" and not COUNTING, reason="only the allocator of a GPU counts its peak"
)
@pytest.mark.parametrize("want", ["forward", "anchors", "itself"])
def test_nothing_of_size_anchors_times_entries_is_in_memory(want):
    """The dense form's M×N alone would take 390 MB in bfloat16, against 64 MB allowed here."""
    vectors, labels = some(size(1024, 32), 256)
    pieces = (None, None) if want == "itself" else bank(size(190_000, 190), 256)
    leaf = vectors.requires_grad_(want != "forward")

    def once():
        loss = info_nce(leaf, labels, *pieces, backend=BACKEND)
        return loss if want == "forward" else torch.autograd.grad(loss, leaf)

    if COUNTING:
        once()
        return
    once()  # Libraries and compiled kernels allocate memory of their own.
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once()
    assert torch.cuda.max_memory_allocated() - before < 64 << 20


@pytest.mark.parametrize("kind", ["bank", "entries", "itself"])
@pytest.mark.parametrize("mode", MODES)
def test_the_same_bits_twice(mode, kind):
    dtype, matmul = MODES[mode]
    rows, columns = size(1024, 60), size(50_000, 200)
    vectors, labels = some(rows, 128, dtype)
    pieces = (None, None) if kind == "itself" else bank(columns, 128, dtype)
    with matmul_precision(matmul):
        first, second, third = (
            run(BACKEND, (vectors, labels, *pieces), None, kind == "entries") for _ in range(3)
        )
    for a, b, c in zip(first, second, third, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def strided(form, vectors):
    """The same numbers in another memory layout."""
    if form == "transposed":
        return vectors.T.contiguous().T
    if form == "every second row":
        return torch.stack([vectors, vectors], dim=1).flatten(0, 1)[::2]
    if form == "every third column":
        return torch.stack([vectors] * 3, dim=2).flatten(1)[:, ::3]
    if form == "not at the start":
        beside = torch.zeros(len(vectors), vectors.shape[1] + 3, dtype=vectors.dtype, device=DEVICE)
        beside[:, 3:] = vectors
        return beside[:, 3:]
    return vectors


FORMS = [
    ("transposed", 33),
    ("every second row", 64),
    ("every third column", 33),
    ("not at the start", 64),
]


@pytest.mark.parametrize("kind", ["bank", "entries", "itself"])
@pytest.mark.parametrize(("form", "dim"), FORMS)
def test_strides_change_nothing(dim, form, kind):
    vectors, labels = draw(70, dim, torch.bfloat16)
    entries, entry_labels = draw(150, dim, torch.bfloat16, seed=1)
    results = []
    for lie in ("contiguous", form):
        leaf, other = vectors.clone().requires_grad_(), entries.clone()
        other.requires_grad_(kind == "entries")
        pieces = (None, None)
        if kind != "itself":
            # Labels with a stride of 2.
            spread = torch.stack([entry_labels] * 2, dim=1).flatten()[::2]
            pieces = (strided(lie, other), entry_labels if lie == "contiguous" else spread)
        loss = info_nce(strided(lie, leaf), labels, *pieces, backend=BACKEND)
        leaves = [leaf, other] if kind == "entries" else [leaf]
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-5)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-6, atol=1e-7)


def test_expanded_vectors_and_an_expanded_gradient():
    one, labels = draw(1, 64, torch.float32)[0], torch.arange(30, device=DEVICE) % 3
    entries, entry_labels = draw(90, 64, torch.float32, seed=1)
    results = []
    for copied in (False, True):
        leaf = one.clone().requires_grad_()
        anchors = leaf.expand(30, 64)
        anchors = anchors.contiguous() if copied else anchors
        losses = info_nce(anchors, labels, entries, entry_labels, reduction="none", backend=BACKEND)
        if copied:
            upstream = torch.ones_like(losses).contiguous()
            results.append(torch.autograd.grad(losses, leaf, upstream))
        else:
            results.append(torch.autograd.grad(losses.sum(), leaf))  # A gradient of stride 0.
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
