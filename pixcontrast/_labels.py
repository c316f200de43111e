"""The one rule that says which pixels and entries are there at all."""

from __future__ import annotations

import torch
from torch import Tensor

ABSENT = -1


def mark_absent(labels: Tensor, ignore_index: int, num_classes: int | None = None) -> Tensor:
    """Labels as int64, with `ABSENT` wherever a label takes no part.

    A label takes no part when it is `ignore_index`, negative, or not below `num_classes`
    (where the number of classes is known). Everything behind the public functions asks only
    whether a label is `ABSENT`.
    """
    # Widened first: a uint8 map could not hold ABSENT, nor be compared with ignore_index = -100.
    wide = labels.to(torch.int64)
    absent = wide < 0
    absent |= wide == ignore_index
    if num_classes is not None:
        absent |= wide >= num_classes
    return wide.masked_fill(absent, ABSENT)
