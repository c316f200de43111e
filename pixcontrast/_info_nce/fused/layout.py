"""The tensors that the kernels read: sorted anchors, contrast entries, and the survey of both.

All of it is computed on the device by operations of fixed shape. The host reads no value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import (
    INTERPRETED,
    Configurations,
    configurations_for,
    for_float32_product,
    for_mining,
)
from pixcontrast._info_nce.fused.kernels.blocks import SURVEY_ROWS, index_kernel, survey_kernel
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.thresholds import Thresholds, anchor_bits, entry_bits
from pixcontrast._info_nce.tiled.similarities import BOUNDED_LOGIT
from pixcontrast._launch import launch
from pixcontrast._triton import ceil_div, interpreted, next_power_of_2

INTERPRETED_PROCESSORS = 6
LARGEST = torch.finfo(torch.float32).max  # the kernels accumulate in float32
# Triton reads this once too, when a kernel is decorated.
IS_INTERPRETED = interpreted()


class Vectors(NamedTuple):
    """Anchors or entries (n, D) as arguments of a kernel. All tensors are contiguous.

    Attributes:
        classes: (n,) int32, see `survey_block`.
        key_bits: (n,) int32, their part of the random keys (`thresholds.PairKeys`); zeros without a
            seed, None without mining.
        num_valid: () int32, the number of valid anchors, which come first; None for entries.
        largest: largest number of the dtype of products, at which components saturate because
            inf · 0 is NaN. None if that dtype is not narrower than that of the vectors.
    """

    vectors: Tensor
    classes: Tensor
    key_bits: Tensor | None
    num_valid: Tensor | None = None
    largest: float | None = None


class Labels(NamedTuple):
    """Labels (n,) of anchors or entries, and what `survey_kernel` writes about them."""

    labels: Tensor
    classes: Tensor
    survey: Tensor

    @property
    def num_blocks(self) -> int:
        return self.survey.shape[1] - 1


@dataclass(eq=False)
class SurveyedTensor:
    """A contrast tensor, the sorted anchors if `is_anchors`, and the survey of its blocks.

    `survey` is (10, blocks + 1) int32, see `kernels/blocks.py`. In the backward only its first
    rows are written.
    """

    entries: Vectors
    is_anchors: bool
    survey: Tensor

    def __len__(self) -> int:
        return self.entries.classes.shape[0]

    @property
    def num_blocks(self) -> int:
        return self.survey.shape[1] - 1

    @property
    def arguments(self) -> tuple[Vectors, int, Tensor, int]:
        """The arguments `entries`, `num_entries`, `survey` and `num_blocks` of a kernel."""
        return self.entries, len(self), self.survey, self.num_blocks


@dataclass(eq=False)
class Layout:
    """One call of `info_nce` as arguments of the kernels, and the tiles of each kernel.

    Attributes:
        anchors: the M anchors as contiguous operands, sorted by label; ignored ones are last and
            zeros.
        order: (M,) int64, the index of each sorted anchor in the caller's order.
        thresholds: those of the sorted anchors, (M, 1) each; None without mining.
        scales: log2(e) / τ, the limit of similarities to the base 2, and 1/τ.
        bounded: whether exp2 of every similarity is known to be in the range of the dtypes.
        common: constants of every kernel: D, precision of products, `ALL` and `BOUNDED`.
        positives_limit: a power of two that is at least the number of positives of any anchor.
    """

    problem: Problem
    configurations: Configurations
    anchors: Vectors
    order: Tensor
    contrast: tuple[SurveyedTensor, ...]
    thresholds: Thresholds | None = None

    def __post_init__(self) -> None:
        problem = self.problem
        inverse = problem.inverse_temperature
        self.num_anchors = self.order.shape[0]
        self.scales = min(inverse * LOG2_E, LARGEST), problem.logit_limit * LOG2_E, inverse
        # The length of a unit vector that is rounded to 16 bits exceeds 1 by up to 1/256.
        bounded = problem.unit_length and 1.02 * inverse <= BOUNDED_LOGIT[torch.float32]
        self.bounded = bounded and problem.product_dtype != torch.float16
        precision = product_precision(problem.product_dtype)
        everything = problem.denominator == "all"
        self.common = problem.anchors.shape[1], precision, everything, self.bounded
        self.positives_limit = float(next_power_of_2(max(1, sum(map(len, self.contrast)))))

    @property
    def num_processors(self) -> int:
        """How many programs run at the same time."""
        return INTERPRETED_PROCESSORS if IS_INTERPRETED else _card(self.order.device)[1]

    def unsort(self, values: Tensor) -> Tensor:
        """Return numbers or vectors of the sorted anchors in the caller's order."""
        result = torch.empty_like(values)
        result[self.order] = values
        return result


def lay_out(problem: Problem, *, index_blocks: bool = True) -> Layout:
    """Sort the anchors, survey the contrast tensors, and choose the tiles."""
    configurations = INTERPRETED if IS_INTERPRETED else _configurations(problem)
    if problem.negative_sampler is not None:
        configurations = for_mining(configurations)
    elif problem.product_dtype == torch.float16:
        tile = for_float32_product(configurations.entries)
        configurations = configurations._replace(entries=tile)
    block_size = configurations.denominator.columns
    # Labels descend, so that ignored anchors are last.
    anchor_labels, order = problem.labels.sort(stable=True, descending=True)
    vectors = problem.anchors.detach()

    def key_bits(
        bits_of: Callable[[Tensor, Tensor], Tensor], like: Tensor, first_id: int
    ) -> Tensor | None:
        if problem.negative_sampler is None:
            return None
        if problem.seed is None:
            return torch.zeros_like(like, dtype=torch.int32)
        if like is not order:
            ids = torch.arange(first_id, first_id + len(like), device=like.device)
        else:
            ids = order + first_id if first_id != 0 else order
        return bits_of(problem.seed, ids)

    own, others, contrast = _allocate(anchor_labels, block_size), [], []
    anchors = Vectors(
        vectors.new_empty(vectors.shape, dtype=problem.product_dtype),
        own.classes,
        key_bits(anchor_bits, order, problem.first_anchor_id),
        own.classes.new_empty(()),
    )
    for tensor in problem.contrast:
        if tensor.is_anchors:
            bits = key_bits(entry_bits, order, tensor.first_id)
            surveyed = SurveyedTensor(anchors._replace(key_bits=bits), True, own.survey)
        else:
            values = tensor.entries.detach().contiguous()
            other = _allocate(tensor.labels.contiguous(), block_size)
            bits = key_bits(entry_bits, other.labels, tensor.first_id)
            largest = _saturation(values.dtype, problem.product_dtype)
            entries = Vectors(values, other.classes, bits, largest=largest)
            surveyed = SurveyedTensor(entries, False, other.survey)
            if surveyed.num_blocks > 0:
                others.append(other)
        contrast.append(surveyed)

    # The first launch surveys the anchors too.
    _survey(problem, order, anchors, own, own.num_blocks, others[0] if others else None, block_size)
    for other in others[1:]:
        _survey(problem, order, anchors, own, 0, other, block_size)
    for surveyed in contrast:
        if index_blocks and surveyed.num_blocks > 0:
            _index(surveyed, block_size)
    return Layout(problem, configurations, anchors, order, tuple(contrast))


def _allocate(labels: Tensor, block_size: int) -> Labels:
    num_blocks = ceil_div(labels.shape[0], block_size)
    survey = labels.new_empty(SURVEY_ROWS, num_blocks + 1, dtype=torch.int32)
    return Labels(labels, torch.empty_like(labels, dtype=torch.int32), survey)


def _survey(
    problem: Problem,
    order: Tensor,
    anchors: Vectors,
    own: Labels,
    num_own: int,
    other: Labels | None,
    block_size: int,
) -> None:
    """Survey the first blocks of the anchors, which are written too, and another tensor if any."""
    vectors, num_anchors = problem.anchors.detach().contiguous(), order.shape[0]
    largest = _saturation(vectors.dtype, problem.product_dtype)
    source = Vectors(vectors, own.labels, None, largest=largest)
    num_others, num_entries = (0, 0) if other is None else (other.num_blocks, len(other.labels))
    sizes = vectors.shape[1], num_anchors, num_own, num_anchors.bit_length(), num_entries
    arguments = source, order, anchors.vectors, anchors.num_valid, own, other or own, *sizes
    variant = order.get_device(), block_size
    launch(survey_kernel, (num_own + num_others,), arguments, (block_size,), variant)


def _index(tensor: SurveyedTensor, block_size: int) -> None:
    """Write the rows of a survey that list its blocks."""
    variant = tensor.survey.get_device(), block_size
    launch(index_kernel, (1,), (tensor.survey, tensor.num_blocks), (block_size,), variant)


@cache
def _saturation(dtype: torch.dtype, product_dtype: torch.dtype) -> float | None:
    """Return the largest number of products if the dtype has larger ones, else None."""
    largest = torch.finfo(product_dtype).max
    return largest if torch.finfo(dtype).max > largest else None


def sample_entries(layout: Layout, size: int) -> tuple[Layout, int] | None:
    """Return a layout with every s-th entry of all tensors in one, at most `size`, and s.

    Return None if there are no more entries than that. An anchor in the sample is an entry like
    any other, also for itself.
    """
    problem, tensors = layout.problem, layout.contrast
    total = sum(map(len, tensors))
    if total <= size or len(tensors) >= size:
        return None
    # An odd number, because entries of an image often come in powers of two.
    stride = ceil_div(total, size - len(tensors)) | 1
    sorted_labels = problem.labels.index_select(0, layout.order)
    labels = [sorted_labels if of.is_anchors else of.labels for of in problem.contrast]
    bits = [of.entries.key_bits for of in tensors if of.entries.key_bits is not None]
    columns = [of.entries.vectors for of in tensors], labels, bits
    values, sampled, keys = (torch.cat([one[::stride] for one in column]) for column in columns)
    block_size = layout.configurations.denominator.columns
    other = _allocate(sampled, block_size)
    own = Labels(sorted_labels, layout.anchors.classes, other.survey)
    _survey(problem, layout.order, layout.anchors, own, 0, other, block_size)
    largest = _saturation(values.dtype, problem.product_dtype)
    entries = Vectors(values, other.classes, keys, largest=largest)
    sample = SurveyedTensor(entries, False, other.survey)
    _index(sample, block_size)
    return replace(layout, contrast=(sample,)), stride


def product_precision(dtype: torch.dtype) -> str:
    """Return Triton's float32 precision for PyTorch's setting; not used for 16-bit products."""
    if dtype != torch.float32:
        return "tf32"
    # From PyTorch 2.9 on. The older function raises an error if this has been set.
    setting = getattr(torch.backends.cuda.matmul, "fp32_precision", None)
    if setting is None:
        setting = "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return "tf32" if setting == "tf32" else "ieee"


def _configurations(problem: Problem) -> Configurations:
    kind = product_precision(problem.product_dtype)
    if problem.product_dtype != torch.float32:
        wide = any(entries.dtype == torch.float32 for entries in problem.entries)
        kind = "mixed" if wide else "16"
    capability, _ = _card(problem.anchors.device)
    return configurations_for(capability, kind, problem.anchors.shape[1])


@cache
def _card(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a device times ten, and its number of multiprocessors."""
    major, minor = torch.cuda.get_device_capability(device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return 10 * major + minor, processors
