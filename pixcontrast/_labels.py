"""Which labels are ignored."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -1
"""The label of every ignored pixel and contrast entry inside the package."""


def mark_ignored(labels: Tensor, ignore_index: int, num_classes: int | None = None) -> Tensor:
    """Convert labels to int64 and replace ignored labels by `IGNORED`.

    A label is ignored if it is equal to `ignore_index`, negative, or not below `num_classes`.
    Code behind the public functions only compares labels with `IGNORED`.

    Args:
        labels (Tensor): labels of any integer dtype, any shape.
        ignore_index (int): the label that the caller ignores.
        num_classes (int, optional): number of classes. Default: None, which means no upper bound.

    Returns:
        A new int64 tensor of the same shape.
    """
    # Convert first: uint8 cannot represent IGNORED and cannot be compared with -100.
    wide = labels.to(torch.int64)
    ignored = wide < 0
    ignored |= wide == ignore_index
    if num_classes is not None:
        ignored |= wide >= num_classes
    return wide.masked_fill(ignored, IGNORED)
