"""The samplers: which pixels become anchors, and which contrast entries count for an anchor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._pixels.groups import (
    MAX_LABEL,
    draw_groups,
    share_of_class,
    source,
    take_pixels,
)
from pixcontrast._tensors import widest_float

Strategy = Literal["hardest", "semi-hard", "random"]


class AnchorSample(NamedTuple):
    """The sampled pixels, K = min(max_anchors, B·P) of them. K does not depend on the labels.

    Attributes:
        indices (Tensor): int64 index of each pixel into the flattened B·P, 0 for padding, shape
            (K,).
        labels (Tensor): int64 label of each pixel, `ignore_index` for padding, shape (K,).
    """

    indices: Tensor
    labels: Tensor


class AnchorSampler(Protocol):
    """The interface of the `anchor_sampler` of a loss."""

    def __call__(
        self,
        labels: Tensor,
        preds: Tensor | None = None,
        *,
        ignore_index: int = 255,
        generator: torch.Generator | None = None,
    ) -> AnchorSample: ...


def check_sample(sample: object, num_pixels: int, *, validate: bool) -> AnchorSample:
    """Accept what an anchor sampler returned for a batch of B·P pixels.

    Values are read on the CPU, and with `validate` on other devices too.
    """
    if not isinstance(sample, AnchorSample):
        got = check.kind_of(sample)
        check.refuse(
            "anchor_sampler", "a callable that returns an AnchorSample", got, "", TypeError
        )
    name, of_labels = (f"{column} of the anchor_sampler" for column in ("indices", "labels"))
    indices = check.check_tensor(name, sample.indices, "an index")
    if indices.ndim != 1:
        check.refuse(name, "shape (K,)", indices.shape)
    if indices.numel() > 0 and (check.values_can_be_seen(indices) or validate):
        lowest, highest = (int(end) for end in indices.aminmax())
        if lowest < 0 or highest >= num_pixels:
            expected = f"indices from 0 to {num_pixels - 1} into the pixels of the batch"
            check.refuse(name, expected, f"indices from {lowest} to {highest}")
    labels = check.check_vector_labels(of_labels, sample.labels, f"the {name}", indices)
    return AnchorSample(indices, labels)


class _GroupSampler:
    """Base class of the samplers. Without a `hard_fraction`, no pixel is hard."""

    max_anchors: int
    max_views: int
    min_pixels: int
    max_per_class: int | None
    hard_fraction: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_anchors", "max_views", "min_pixels"):
            object.__setattr__(self, name, check.check_integer(name, getattr(self, name), 1))
        if self.max_per_class is not None:
            most = check.check_integer("max_per_class", self.max_per_class, 1)
            object.__setattr__(self, "max_per_class", most)

    def __call__(
        self,
        labels: Tensor,
        preds: Tensor | None = None,
        *,
        ignore_index: int = 255,
        generator: torch.Generator | None = None,
    ) -> AnchorSample:
        check.check_ignore_index(ignore_index)
        labels = check.check_sampler_map("labels", labels)
        check.check_generator(generator, labels.device)
        if check.values_can_be_seen(labels):
            expected = f"classes up to {MAX_LABEL}, the largest label that the samplers support"
            fix = "number the classes from 0"
            check.check_largest_label(labels, ignore_index, MAX_LABEL, expected, fix)
        preds = self._check_preds(preds, labels)
        if labels.numel() == 0:
            empty = torch.zeros(0, dtype=torch.int64, device=labels.device)
            return AnchorSample(empty, empty.clone())
        options = self.max_anchors, self.min_pixels, ignore_index, generator
        groups = draw_groups(labels, preds, *options)
        share = None
        if self.max_per_class is not None:
            share = share_of_class(groups, labels, self.max_per_class, generator)
        chance = None
        if self.hard_fraction is not None:
            dtype = widest_float(labels.device)
            chance = torch.rand(
                groups.size.shape, dtype=dtype, device=labels.device, **source(generator)
            )
        limits = min(self.max_anchors, labels.numel()), self.max_anchors, self.max_views
        hard = chance, self.hard_fraction or 0.0
        return AnchorSample(*take_pixels(groups, labels, share, *hard, *limits, ignore_index))

    def _check_preds(self, preds: Tensor | None, labels: Tensor) -> Tensor | None:
        """Return the predictions (B, P) that tell which pixels are hard, or None if none are."""
        return None


@dataclass(frozen=True, kw_only=True)
class HardAnchorSampler(_GroupSampler):
    """Sample anchors from every class of every image, a fraction of them mispredicted pixels.

    Segmentation-aware hard anchor sampling of Wang et al., ICCV 2021, section 3.2. A group is the
    valid pixels of one class in one image. With `views = clamp(max_anchors // groups, 1,
    max_views)`, each group gives min(views, its size) pixels, without replacement: `hard_fraction`
    of them from its mispredicted (hard) pixels and the rest from the correct (easy) ones. If one
    kind has too few pixels, the other kind fills up. If hard_fraction × views is not an integer, it
    is randomly rounded up or down, so that the fraction is met on average. If there are more groups
    than `max_anchors`, a random `max_anchors` of the groups give one pixel each. With
    `max_per_class`, the groups of a class in all images share that number evenly, the remainder at
    random. The sampler is an immutable object without state.

    Args:
        max_anchors (int): largest number of anchors of a batch, at least 1. Default: 1024.
        max_views (int): largest number of anchors of a group, at least 1. Small maps need fewer,
            for example 6 at 36×48. Default: 100.
        hard_fraction (float): fraction of hard pixels, in [0, 1]. Default: 0.5.
        min_pixels (int): smallest size of a group that gives anchors, at least 1. Default: 1.
        max_per_class (int, optional): largest number of anchors of one class over the batch, at
            least 1. Default: None, no such limit.

    Call:
        `sampler(labels, preds=None, *, ignore_index=255, generator=None) -> AnchorSample`

        - labels (Tensor): integer labels, shape (B, P).
        - preds (Tensor, optional): integer predicted classes, shape (B, P). Default: None, every
          pixel counts as correctly predicted.
        - ignore_index (int): label of ignored pixels. Negative labels are ignored too.
          Default: 255.
        - generator (torch.Generator, optional): source of randomness, on the device of `labels`.
          Default: None, the default generator.

    Raises:
        ValueError, TypeError: if an option or argument is invalid, or if a label is above
            16,777,215. Labels are read on the CPU only; on other devices such pixels are ignored.

    Example:
        >>> import torch
        >>> from pixcontrast import HardAnchorSampler
        >>> labels = torch.tensor([[0, 0, 0, 1, 1, 255]])
        >>> preds = torch.tensor([[0, 1, 0, 1, 1, 0]])
        >>> sample = HardAnchorSampler(max_anchors=4, max_views=2)(labels, preds)
        >>> sample.labels
        tensor([0, 0, 1, 1])
        >>> int(sample.indices[0])  # the only mispredicted pixel of class 0
        1
    """

    max_anchors: int = 1024
    max_views: int = 100
    hard_fraction: float = 0.5
    min_pixels: int = 1
    max_per_class: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # Convert to float: a tensor cannot be multiplied by a Fraction.
        hard_fraction = check.check_fraction("hard_fraction", self.hard_fraction)
        object.__setattr__(self, "hard_fraction", hard_fraction)

    def _check_preds(self, preds: Tensor | None, labels: Tensor) -> Tensor | None:
        if preds is None:
            return None
        preds = check.check_sampler_map("preds", preds)
        if preds.shape != labels.shape:
            expected = f"the shape of labels, {check.shape_of(labels)}"
            check.refuse("preds", expected, check.shape_of(preds))
        check.check_same_device("preds", preds, "labels", labels)
        return preds


@dataclass(frozen=True, kw_only=True)
class RandomAnchorSampler(_GroupSampler):
    """Sample anchors from every class of every image at random, regardless of predictions.

    Args:
        max_anchors (int): largest number of anchors of a batch, at least 1. Default: 1024.
        max_views (int): largest number of anchors of a group (one class in one image), at least 1.
            Default: 100.
        min_pixels (int): smallest size of a group that gives anchors, at least 1. Default: 1.
        max_per_class (int, optional): largest number of anchors of one class over the batch, at
            least 1. Default: None, no such limit.

    Call:
        As `HardAnchorSampler`; `preds` is not used.

    Raises:
        ValueError, TypeError: as `HardAnchorSampler`.

    Example:
        >>> import torch
        >>> from pixcontrast import RandomAnchorSampler
        >>> sampler = RandomAnchorSampler(max_anchors=4, max_views=1)
        >>> sampler(torch.tensor([[0, 0, 1, 255]])).labels  # one pixel per class, and padding
        tensor([  0,   1, 255, 255])
    """

    max_anchors: int = 1024
    max_views: int = 100
    min_pixels: int = 1
    max_per_class: int | None = None


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
        # Convert to float: a tensor cannot be multiplied by a Fraction.
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
