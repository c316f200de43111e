"""The options of a negative sampler: which contrast entries count for each anchor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pixcontrast import _check as check

Strategy = Literal["hardest", "semi-hard", "random"]


@dataclass(frozen=True, kw_only=True)
class HardNegativeSampler:
    """Select negatives and positives for each anchor.

    The selected sets replace P_i and N_i, in both denominators. The selection is exact and works on
    complete rows of streamed similarities; only `backend="dense"` stores an M×N matrix. Entries
    that tie with the last selected one are selected too, and entries within rounding error of it
    may or may not be. The sampler is immutable and has no state.

    The strategies are those of Wang et al., ICCV 2021, section 3.2:

    - `"hardest"`: the `num_negatives` most similar negatives and the `num_positives` least similar
      positives.
    - `"semi-hard"`: the same numbers drawn at random, without replacement, from the hardest
      `ceil(ratio · available)` negatives and positives, at least 1 of each.
    - `"random"`: the same numbers drawn at random, without replacement, from all.

    Args:
        strategy (str): `"hardest"`, `"semi-hard"` or `"random"`, also by position. Default:
            `"semi-hard"`.
        ratio (float): fraction of the available entries that `"semi-hard"` draws from, in (0, 1].
            Default: 0.1.
        num_negatives (int, optional): number of negatives for each anchor, at least 1. None: all
            negatives. Default: 2048.
        num_positives (int, optional): number of positives for each anchor, at least 1. None: all
            positives. Default: 1024.

    Raises:
        ValueError, TypeError: if an option is out of its range; the message names it.

    Example:
        >>> import torch
        >>> from pixcontrast import HardNegativeSampler
        >>> from pixcontrast.functional import info_nce
        >>> anchors = torch.nn.functional.normalize(torch.randn(8, 4), dim=1)
        >>> labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
        >>> sampler = HardNegativeSampler(strategy="hardest", num_negatives=3, num_positives=None)
        >>> info_nce(anchors, labels, negative_sampler=sampler).shape
        torch.Size([])
    """

    strategy: Strategy = field(default="semi-hard", kw_only=False)
    ratio: float = 0.1
    num_negatives: int | None = 2048
    num_positives: int | None = 1024

    def __post_init__(self) -> None:
        check.check_choice("strategy", self.strategy, ("hardest", "semi-hard", "random"))
        # A tensor cannot be multiplied by every number type of Python, for example Fraction.
        ratio = check.check_fraction("ratio", self.ratio, above_zero=True)
        object.__setattr__(self, "ratio", ratio)
        for name in ("num_negatives", "num_positives"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check.check_integer(name, getattr(self, name), 1))


def draw_seed(
    sampler: HardNegativeSampler | None, device: torch.device, generator: torch.Generator | None
) -> Tensor | None:
    """Draw the seed () int64 of a call; None if nothing is drawn at random."""
    if sampler is None or sampler.strategy == "hardest":
        return None
    return torch.randint(torch.iinfo(torch.int64).max, (), generator=generator, device=device)
