"""The loss by PyTorch's attention: a ceiling, and what a skilled user would build.

Both take the anchors as queries and the entries, split over heads, as keys and values, as the
fused kernels split them over programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks._ways.problem import TEMPERATURE, Problem

BLOCK = 128
"""Rows and columns of a block of the mask, and rows of a program."""
MOST_HEADS = 64


def num_heads(num_anchors: int, num_entries: int, processors: int) -> int:
    """Return into how many heads of equal length the entries are split, to fill the processors.

    The fewest of those that leave the fewest processors idle in the last wave of programs.
    """

    def fullness(heads: int) -> float:
        waves = math.ceil(num_anchors / BLOCK) * heads / processors
        return waves / math.ceil(waves)

    most = min(MOST_HEADS, max(1, num_entries // BLOCK))
    return max((heads for heads in range(1, most + 1) if num_entries % heads == 0), key=fullness)


def attention_output(problem: Problem) -> Tensor:
    """Return scaled_dot_product_attention of every head, (1, H, M, D).

    It has no label mask, does not merge the heads and computes no loss: a ceiling of the
    denominator's pass, and no loss.
    """
    query, keys = _split(problem.anchors, problem.contrast, _heads_of(problem))
    return F.scaled_dot_product_attention(query, keys, keys, scale=1 / TEMPERATURE)


class FlexLoss:
    """The loss by FlexAttention with a mask of equal labels, the entries split over heads.

    The logarithms of the heads' sums merge to Z of the negatives. The positives are a batched
    product of the anchors and entries of each class, with the exact formula. Anchors are sorted
    by label in every call, so that most blocks of the mask need no test of each element.
    """

    def __init__(self, problem: Problem, compiler: Callable[[Any], Any]) -> None:
        from torch.nn.attention import flex_attention as flex

        self.problem = problem
        self.heads = _heads_of(problem)
        self.flex = compiler(flex.flex_attention)
        # PyTorch 2.9 and newer have AuxRequest, and deprecate the other form.
        new = hasattr(flex, "AuxRequest")
        self.request = {"return_aux": flex.AuxRequest(lse=True)} if new else {"return_lse": True}
        self.positives = compiler(_losses_of_positives)
        # Capacities are known in training: the sampler's and the bank's options set them. A bank
        # is stored by class, so that its part of the positives' product needs no gather.
        labels = problem.contrast_labels
        self.num_classes = int(labels.max()) + 1
        self.capacity = int(problem.anchor_labels.bincount().max())
        self.columns, self.column_mask = _class_index(
            labels.sort().values, self.num_classes, int(labels.bincount().max())
        )
        self.bank = None if problem.entries is None else problem.entries[self.columns]

    def __call__(self) -> Tensor:
        """Return the mean loss."""
        problem = self.problem
        labels, order = problem.anchor_labels.sort(stable=True)
        anchors = problem.anchors[order]
        entries = anchors if problem.entries is None else problem.entries
        entry_labels = labels if problem.entry_labels is None else problem.entry_labels
        query, keys = _split(anchors, entries, self.heads)
        mask = negatives_mask(labels, entry_labels.view(self.heads, -1))
        _, aux = self.flex(
            query, keys, keys, block_mask=mask, scale=1 / TEMPERATURE, **self.request
        )
        z = getattr(aux, "lse", aux)[0].logsumexp(dim=0)  # of (1, H, M)
        rows, row_mask = _class_index(labels, self.num_classes, self.capacity)
        positive = row_mask[:, :, None] & self.column_mask[:, None, :]
        by_class = self.bank
        if by_class is None:
            by_class = anchors[self.columns]
            positive = positive & (rows[:, :, None] != self.columns[:, None, :])
        loss: Tensor = self.positives(anchors[rows], by_class, z[rows], positive)
        return loss


def negatives_mask(labels: Tensor, entry_labels: Tensor) -> Any:
    """Return FlexAttention's block mask of the negatives of (M,) labels among (H, n) ones.

    It is made of the least and largest label of each block, without an M×N matrix.
    """
    from torch.nn.attention.flex_attention import BlockMask

    def is_negative(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return labels[row] != entry_labels[head, column]

    def ranges(of_heads: Tensor) -> tuple[Tensor, Tensor]:
        last = of_heads[:, -1:].expand(-1, -of_heads.shape[1] % BLOCK)
        blocks = torch.cat((of_heads, last), dim=1).view(len(of_heads), -1, BLOCK)
        return blocks.amin(dim=2), blocks.amax(dim=2)

    def selected_first(selected: Tensor) -> tuple[Tensor, Tensor]:
        """Return the number of selected blocks of each row, and all blocks in that order."""
        order = selected.int().argsort(dim=-1, descending=True, stable=True)
        return selected.sum(dim=-1, dtype=torch.int32)[None], order.int()[None].contiguous()

    low, high = (bound[:, :, None] for bound in ranges(labels[None]))
    entry_low, entry_high = (bound[:, None, :] for bound in ranges(entry_labels))
    full = (high < entry_low) | (low > entry_high)
    empty = (low == high) & (entry_low == entry_high) & (low == entry_low)
    return BlockMask.from_kv_blocks(
        *selected_first(~full & ~empty),
        *selected_first(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=is_negative,
        seq_lengths=(len(labels), entry_labels.shape[1]),
    )


def _heads_of(problem: Problem) -> int:
    device = problem.anchors.device
    processors = 6
    if device.type == "cuda":
        processors = torch.cuda.get_device_properties(device).multi_processor_count
    return num_heads(len(problem.anchors), len(problem.contrast), processors)


def _split(anchors: Tensor, entries: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return queries (1, H, M, D), the anchors for each head, and keys (1, H, N / H, D)."""
    query = anchors.expand(1, heads, -1, -1).contiguous()
    return query, entries.view(1, heads, -1, entries.shape[1])


def _class_index(labels: Tensor, num_classes: int, capacity: int) -> tuple[Tensor, Tensor]:
    """Return the (C, capacity) indices of each class in ascending labels, and which are valid."""
    classes = torch.arange(num_classes, device=labels.device)
    starts = torch.searchsorted(labels, classes)
    stops = torch.searchsorted(labels, classes, right=True)
    index = starts[:, None] + torch.arange(capacity, device=labels.device)
    return index.clamp(max=len(labels) - 1), index < stops[:, None]


def _losses_of_positives(anchors: Tensor, entries: Tensor, z: Tensor, positive: Tensor) -> Tensor:
    """Return the mean loss of anchors (C, A, D) and entries (C, E, D) of each class."""
    similarities = torch.bmm(anchors, entries.transpose(1, 2)).float() / TEMPERATURE
    num_positives = positive.sum(dim=2)
    terms = F.softplus(z[:, :, None] - similarities)
    losses = torch.where(positive, terms, 0.0).sum(dim=2) / num_positives.clamp(min=1)
    return losses.sum() / (num_positives > 0).sum()
