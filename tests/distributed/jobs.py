"""What ranks do in tests: each function is called on every rank, with its process group first."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from pixcontrast import (
    AnchorSample,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    ProjectionHead,
    RandomAnchorSampler,
    RegionContrastLoss,
)
from pixcontrast._distributed import Ranks, add_up, ranks_of
from pixcontrast._info_nce.operators import losses_operator
from pixcontrast._info_nce.problem import Problem, Shards
from pixcontrast._info_nce.sharded import MinedPasses
from pixcontrast._info_nce.thresholds import Thresholds
from pixcontrast._triton import Backend
from pixcontrast.samplers import Strategy

LOSSES = {"pixels": PixelContrastLoss, "regions": RegionContrastLoss}
EVERY_PIXEL = RandomAnchorSampler(max_anchors=10_000, max_views=10_000)
CLASSES = 4


class Batch:
    """A global batch; `share` is what a rank has of it."""

    def __init__(self, seed: int, dtype: torch.dtype, images: int = 6, dim: int = 8) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.emb = torch.randn(images, dim, 3, 4, generator=generator, dtype=dtype)
        self.labels = torch.randint(-1, CLASSES, (images, 6, 8), generator=generator)
        # One image has nothing, and one class stands in a single image.
        self.labels[images // 2] = 255
        self.labels[: images - 1][self.labels[: images - 1] == CLASSES - 1] = 0
        self.weight = torch.rand(images, 6, 8, generator=generator)

    def share(self, sizes: list[int], rank: int) -> tuple[Tensor, Tensor, Tensor]:
        start = sum(sizes[:rank])
        part = slice(start, start + sizes[rank])
        return self.emb[part], self.labels[part], self.weight[part]


def make_bank(group: Any, dtype: torch.dtype, **options: Any) -> MemoryBank:
    """A bank that takes every pixel."""
    return MemoryBank(CLASSES, 8, pixels_per_image=12, dtype=dtype, process_group=group, **options)


def make_head(dtype: torch.dtype, norm: Literal["batch", "layer"] | None = None) -> ProjectionHead:
    """A projection head with the same weights on every rank."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ProjectionHead(8, 8, norm=norm).to(dtype)


def fill_from_maps_of_any_size(group: Any, rank: int, **options: Any) -> dict[str, Tensor]:
    """A bank that takes all pixels of maps of another size on each rank; the second has none."""
    options = {"pixel_slots": 40, "region_slots": 5, "pixels_per_image": 10**9, **options}
    bank = MemoryBank(CLASSES, 8, process_group=group, **options)
    bank.update(*maps_of_any_size(rank))
    return bank.state_dict()


def opcheck_of_shards(group: Any, rank: int, mined: bool) -> None:
    """PyTorch's own checks: what a compiler is told of the operator's results is what they are."""
    ranks = ranks_of(group)
    assert ranks is not None
    generator = torch.Generator().manual_seed(rank)
    anchors, entries = torch.randn(13, 4, generator=generator).split((6, 7))
    labels = torch.arange(6) % 3
    sampler = HardNegativeSampler(strategy="hardest", num_negatives=3, num_positives=2)
    anchors = anchors.clone().requires_grad_()
    shards = Shards(ranks, [entries], [torch.arange(7) % 3])
    problem = Problem.of(
        anchors,
        labels,
        [(None, None)],
        form="tiled",
        negative_sampler=sampler if mined else None,
        unit_length=True,
        shards=shards,
    )
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(losses_operator, problem.arguments(), test_utils=checks)


def loss_that_asks_no_rank(group: Any, rank: int) -> tuple[float, float]:
    """A loss beside a sharded bank that it does not look at, called by the first rank alone."""
    bank = make_bank(group, torch.float64, pixel_slots=4, region_slots=4, sharded=True)
    emb, labels, _ = Batch(0, torch.float64).share([6], 0)
    values = []
    for beside in (bank, None):
        loss = PixelContrastLoss(bank=beside, contrast_with=("batch",), process_group=group).eval()
        generator = torch.Generator().manual_seed(0)
        values.append(float(loss(emb, labels, generator=generator)) if rank == 0 else 0.0)
    return values[0], values[1]


def warnings_of_one_class(group: Any, rank: int, sharded: bool) -> list[str]:
    """Warnings of twelve calls whose batch has one class, a different one on each rank."""
    bank = MemoryBank(CLASSES, 8, process_group=group, sharded=sharded)
    loss = PixelContrastLoss(bank=bank, process_group=group)
    emb, labels = torch.randn(1, 8, 3, 4), torch.full((1, 3, 4), rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(12):
            loss(emb, labels)
    return [str(one.message) for one in caught]


def maps_of_any_size(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    images, size = (0, 3) if rank == 1 else (1, 2 + 2 * rank)
    emb = torch.randn(images, 8, size, size, generator=generator)
    return emb, torch.randint(0, CLASSES, (images, size, size), generator=generator)


def loss_step(
    group: Any,
    rank: int,
    kind: str,
    sizes: list[int],
    dtype: torch.dtype,
    *,
    bank: dict[str, Any] | None = None,
    weighted: bool = False,
    steps: int = 1,
    gather: bool = True,
    project: bool = False,
    seed: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Losses of some steps, the last one's gradients, and the bank after it.

    The gradients are those of the embeddings, or with `project` of features and projection head.
    """
    memory = None if bank is None else make_bank(group, dtype, **bank)
    if project:
        options["projection"] = make_head(dtype)
    loss = LOSSES[kind](
        anchor_sampler=EVERY_PIXEL, bank=memory, gather=gather, process_group=group, **options
    )
    losses = []
    for step in range(steps):
        emb, labels, weight = Batch(step, dtype).share(sizes, rank)
        emb = emb.clone().requires_grad_()
        generator = None if seed is None else torch.Generator().manual_seed(seed + step)
        value = loss(emb, labels, weight=weight if weighted else None, generator=generator)
        gradient, *of_head = torch.autograd.grad(value.sum(), (emb, *loss.parameters()))
        losses.append(value.detach())
    state = {} if memory is None else memory.state_dict()
    entries = loss.stats.entries if loss.stats is not None else None
    return {
        "losses": losses,
        "gradient": gradient,
        "head": of_head,
        "bank": state,
        "entries": entries,
    }


def entries_beside_no_pixel(group: Any, rank: int, sharded: bool, backend: Backend) -> int:
    """The entries of a call in which no rank has an image, after a call with images."""
    bank = make_bank(group, torch.float32, pixel_slots=6, region_slots=6, sharded=sharded)
    loss = PixelContrastLoss(bank=bank, process_group=group, backend=backend)
    emb, labels, _ = Batch(0, torch.float32).share([2] * 2, rank)
    loss(emb, labels)
    loss(emb[:0], labels[:0])
    assert loss.stats is not None
    return int(loss.stats.entries)


def count_selected(
    group: Any, rank: int, strategy: Strategy, sizes: list[int]
) -> tuple[Tensor, Tensor, int, int]:
    """How many negatives all ranks' anchors have, how many were selected, the limit; the seed."""
    ranks = ranks_of(group)
    assert ranks is not None
    asked = 5
    mining = HardNegativeSampler(
        strategy=strategy, ratio=1.0, num_negatives=asked, num_positives=None
    )
    generator = torch.Generator().manual_seed(rank)
    found = []
    seeds = []

    find_thresholds = MinedPasses.find_thresholds

    def thresholds(of_shard: MinedPasses, own: MinedPasses, ranks: Ranks) -> Thresholds:
        met = find_thresholds(of_shard, own, ranks)
        of_shard.thresholds = met
        problem = own._problem
        mine = slice(problem.first_anchor_id, problem.first_anchor_id + len(problem.labels))
        own.thresholds = met.of(mine)
        counts = []
        for passes in (of_shard, own):
            selected = torch.zeros_like(passes._problem.labels)
            for indices, _, masks in passes.selected():
                selected[indices] = masks.negative.sum(dim=1)
            lowest = torch.zeros_like(selected, dtype=torch.int32)[:, None]
            reached = passes.count_digits(lowest, 0, None, positive=False, by_key=False)
            counts.append((reached[:, 0], selected))
        for total, part in zip(counts[0], counts[1], strict=True):
            total[mine] += part
        found.extend(add_up(ranks, total) for total in counts[0])
        assert problem.seed is not None
        seeds.append(int(problem.seed))
        return met

    MinedPasses.find_thresholds = thresholds  # type: ignore[method-assign]
    try:
        bank = make_bank(group, torch.float32, pixel_slots=9, region_slots=4, sharded=True)
        loss = PixelContrastLoss(
            anchor_sampler=EVERY_PIXEL,
            bank=bank,
            gather=True,
            process_group=group,
            negative_sampler=mining,
        )
        emb, labels, _ = Batch(0, torch.float32).share(sizes, rank)
        bank.update(emb, labels)
        loss(emb, labels, generator=generator)
    finally:
        MinedPasses.find_thresholds = find_thresholds  # type: ignore[method-assign]
    return found[0], found[1], asked, seeds[0]


def fill_banks(
    group: Any, rank: int, steps: int, seed: int, size: int, **options: Any
) -> list[dict[str, Tensor]]:
    """States of a bank after every tenth step. Ranks are sometimes empty, batches short or long."""
    bank = make_bank(group, torch.float32, pixel_slots=13, region_slots=5, **options)
    states = []
    for step in range(steps):
        emb, labels = shares_of_step(step, seed, size)[rank]
        bank.update(emb, labels)
        if step % 10 == 9:
            states.append({name: tensor.clone() for name, tensor in bank.state_dict().items()})
    return states


def shares_of_step(step: int, seed: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """What each rank has in a step: 0 to 3 images; one that has nothing; one class alone."""
    generator = torch.Generator().manual_seed(1000 * seed + step)
    shares = []
    for _ in range(size):
        images = int(torch.randint(0, 4, (), generator=generator))
        emb = torch.randn(images, 8, 2, 3, generator=generator)
        labels = torch.randint(-1, CLASSES, (images, 2, 3), generator=generator)
        kind = int(torch.randint(0, 4, (), generator=generator))
        if kind == 0:
            labels[:] = 255
        elif kind == 1:
            labels[:] = step % CLASSES
        shares.append((emb, labels))
    return shares


class OwnSampler:
    """A sampler of a user's, which says nothing of itself but where it lies in memory."""

    def __call__(self, labels: Tensor, preds: Tensor | None = None, **options: Any) -> AnchorSample:
        return EVERY_PIXEL(labels, preds, **options)


def own_sampler(group: Any, rank: int) -> Tensor:
    keep = [OwnSampler() for _ in range(rank + 1)]  # so that it lies elsewhere on each rank
    loss = PixelContrastLoss(anchor_sampler=keep[-1], gather=True, process_group=group)
    emb, labels, _ = Batch(0, torch.float64).share([4, 2], rank)
    return loss(emb, labels)


def shaped_step(
    group: Any,
    rank: int,
    sizes: list[int],
    spatial: tuple[int, ...],
    dtype: torch.dtype,
    bank_dtype: torch.dtype | None,
    *,
    sharded: bool = False,
) -> dict[str, Any]:
    """Two steps with any shape, points where `spatial` is empty; `sizes` are images, or points."""
    whole = MemoryBank(
        CLASSES,
        8,
        pixel_slots=240 // (len(sizes) if sharded else 1),
        region_slots=0,
        pixels_per_image=100,
        dtype=bank_dtype or torch.float32,
        sharded=sharded,
        process_group=group,
    )
    loss = PixelContrastLoss(
        anchor_sampler=EVERY_PIXEL,
        bank=None if bank_dtype is None else whole,
        gather=True,
        process_group=group,
    )
    start = sum(sizes[:rank])
    part = slice(start, start + sizes[rank])
    losses = []
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        emb = torch.randn(sum(sizes), 8, *spatial, generator=generator).to(dtype)[part]
        labels = torch.randint(-1, CLASSES, (sum(sizes), *spatial), generator=generator)[part]
        value = loss(emb.requires_grad_(), labels)
        (gradient,) = torch.autograd.grad(value, emb)
        losses.append(value.detach().double())
    return {"losses": losses, "gradient": gradient.double()}


def draw_regions(
    group: Any, rank: int, kind: str, sizes: list[int], slots: int, **options: Any
) -> dict[str, Tensor]:
    """A bank after steps that draw some pixels of each region.

    Without a group, one process calls the loss with the share of each rank in turn.
    """
    bank = MemoryBank(
        CLASSES,
        8,
        pixel_slots=slots,
        region_slots=slots,
        dtype=torch.float64,
        pixels_per_image=2,
        pixels_per_region=3,
        process_group=group,
        **options,
    )
    loss = LOSSES[kind](
        projection=make_head(torch.float64), bank=bank, gather=True, process_group=group
    )
    for step in range(6):
        for part in range(len(sizes)) if group is None else [rank]:
            emb, labels, _ = Batch(step, torch.float64).share(sizes, part)
            loss(emb, labels, generator=torch.Generator().manual_seed(10 * step + part))
    return bank.state_dict()
