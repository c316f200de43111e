"""The loss by PyTorch's FlexAttention: what a skilled user would build."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks._ways.problem import TEMPERATURE, Problem

BLOCK = 128
"""Rows and columns of a block of the mask, and rows of a program."""
MOST_HEADS = 64


class FlexLoss:
    """The loss by FlexAttention with a mask of unequal labels, the entries split over heads.

    The logarithms of the heads' sums merge to Z of the negatives. The positives are a batched
    product of the anchors and entries of each class. What depends on labels alone is computed once
    and not timed, although a training step has new labels: the order of the anchors, by label, so
    that most blocks of the mask need no test of each element; the mask; the members of the classes.
    """

    def __init__(self, problem: Problem, compiler: Callable[[Any], Any]) -> None:
        from torch.nn.attention import flex_attention as flex

        self.problem = problem
        self.flex = compiler(flex.flex_attention)
        self.request = flex.AuxRequest(lse=True)
        self.positives = compiler(_losses_of_positives)
        labels, self.order = problem.anchor_labels.sort(stable=True)
        entry_labels = labels if problem.entry_labels is None else problem.entry_labels
        device, processors = labels.device, 6
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        self.heads = num_heads(len(labels), len(entry_labels), processors)
        of_heads = entry_labels.view(self.heads, -1)

        def is_negative(batch: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return labels[row] != of_heads[head, column]

        shape = (1, self.heads, len(labels), of_heads.shape[1])
        self.mask = flex.create_block_mask(is_negative, *shape, device=device, BLOCK_SIZE=BLOCK)
        num_classes = int(torch.maximum(labels.max(), entry_labels.max())) + 1
        self.rows, columns = _members(labels, num_classes), _members(entry_labels, num_classes)
        self.positive = (self.rows >= 0)[:, :, None] & (columns >= 0)[:, None, :]
        if problem.entries is None:
            self.positive &= self.rows[:, :, None] != columns[:, None, :]
        # A bank is stored by class: its part of the product needs no gather.
        self.bank = None if problem.entries is None else problem.entries[columns]

    def __call__(self) -> Tensor:
        """Return the mean loss."""
        anchors = self.problem.anchors[self.order]
        entries = anchors if self.problem.entries is None else self.problem.entries
        query = anchors.expand(1, self.heads, -1, -1).contiguous()
        keys = entries.view(1, self.heads, -1, entries.shape[1])
        options = {"block_mask": self.mask, "scale": 1 / TEMPERATURE, "return_aux": self.request}
        _, auxiliary = self.flex(query, keys, keys, **options)
        z = auxiliary.lse[0].logsumexp(dim=0)  # of (1, H, M)
        of_classes = anchors[self.rows]
        bank = of_classes if self.bank is None else self.bank
        loss: Tensor = self.positives(of_classes, bank, z[self.rows], self.positive)
        return loss


def num_heads(num_anchors: int, num_entries: int, processors: int) -> int:
    """Return into how many heads of equal length the entries are split, to fill the processors.

    The fewest of those that leave the fewest processors idle in the last wave of programs.
    """

    def fullness(heads: int) -> float:
        waves = math.ceil(num_anchors / BLOCK) * heads / processors
        return waves / math.ceil(waves)

    most = min(MOST_HEADS, max(1, num_entries // BLOCK))
    return max((heads for heads in range(1, most + 1) if num_entries % heads == 0), key=fullness)


def _members(labels: Tensor, num_classes: int) -> Tensor:
    """Return the indices of each class in sorted labels, (C, largest class), padded with −1."""
    counts = labels.bincount(minlength=num_classes).tolist()
    indices = torch.arange(len(labels), device=labels.device)
    return pad_sequence([*torch.split(indices, counts)], batch_first=True, padding_value=-1)


def _losses_of_positives(anchors: Tensor, entries: Tensor, z: Tensor, positive: Tensor) -> Tensor:
    """Return the mean loss of anchors (C, A, D) and entries (C, E, D) of each class."""
    similarities = torch.bmm(anchors, entries.transpose(1, 2)).float() / TEMPERATURE
    num_positives = positive.sum(dim=2)
    terms = F.softplus(z[:, :, None] - similarities)
    losses = torch.where(positive, terms, 0.0).sum(dim=2) / num_positives.clamp(min=1)
    return losses.sum() / (num_positives > 0).sum()
