"""The tensors that the kernels read: sorted anchors, contrast entries, and the survey of both.

All of it is computed on the device by operations of fixed shape. The host reads no value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import (
    INTERPRETED,
    Configurations,
    configurations_for,
    for_mining,
)
from pixcontrast._info_nce.fused.kernels.blocks import SURVEY_ROWS, classes_kernel, index_kernel
from pixcontrast._info_nce.problem import LOG2_E, Problem
from pixcontrast._info_nce.thresholds import Thresholds, anchor_bits, entry_bits
from pixcontrast._info_nce.tiled.similarities import BOUNDED_LOGIT
from pixcontrast._tensors import IGNORED
from pixcontrast._triton import LAUNCH_OPTIONS, ceil_div, interpreted

INTERPRETED_PROCESSORS = 6
# Triton reads this once too, when a kernel is decorated.
IS_INTERPRETED = interpreted()


class Vectors(NamedTuple):
    """Anchors or entries (n, D) as arguments of a kernel.

    Attributes:
        classes: (n,) int32, see `classes_kernel`.
        key_bits: (n,) int32, their part of the random keys (`thresholds.PairKeys`); zeros without a
            seed, None without mining.
        num_valid: () int32, the number of valid anchors, which come first; None for entries.
        row_stride, column_stride: None if the vectors are contiguous.
        largest: largest number of the dtype of products, at which components saturate because
            inf · 0 is NaN. None if that dtype is not narrower than that of the vectors.
    """

    vectors: Tensor
    classes: Tensor
    key_bits: Tensor | None
    num_valid: Tensor | None
    row_stride: int | None
    column_stride: int | None
    largest: float | None


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Layout:
    """One call of `info_nce` as arguments of the kernels, and the tiles of each kernel.

    Attributes:
        anchors: the M anchors as contiguous operands, sorted by label; ignored ones are last and
            zeros.
        order: (M,) int64, the index of each sorted anchor in the caller's order.
        thresholds: those of the sorted anchors, (M, 1) each; None without mining.
    """

    problem: Problem
    configurations: Configurations
    anchors: Vectors
    order: Tensor
    contrast: tuple[SurveyedTensor, ...]
    thresholds: Thresholds | None = None

    def __len__(self) -> int:
        return self.order.shape[0]

    @cached_property
    def scales(self) -> tuple[float, float, float]:
        """log2(e) / τ, the limit of similarities to the base 2, and 1/τ."""
        inverse = self.problem.inverse_temperature
        scale = min(inverse * LOG2_E, torch.finfo(torch.float32).max)
        return scale, self.problem.logit_limit * LOG2_E, inverse

    @cached_property
    def bounded(self) -> bool:
        """Whether exp2 of every similarity is known to be in the range of the dtypes."""
        problem = self.problem
        # The length of a unit vector that is rounded to 16 bits exceeds 1 by up to 1/256.
        largest = 1.02 * problem.inverse_temperature
        bounded = problem.unit_length and largest <= BOUNDED_LOGIT[torch.float32]
        return bounded and problem.product_dtype != torch.float16

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
    block_size = configurations.denominator.columns

    # Without its sign, IGNORED is the largest number.
    order = problem.labels.bitwise_and(torch.iinfo(torch.int64).max).sort(stable=True).indices
    anchor_labels = problem.labels.index_select(0, order)
    valid = anchor_labels != IGNORED
    num_valid = valid.sum(dtype=torch.int32)
    values = problem.saturate(problem.anchors.detach().index_select(0, order))
    # Ignored anchors may contain NaN and are multiplied too: 0 · NaN is NaN.
    values = torch.where(valid[:, None], values.to(problem.product_dtype), 0.0).contiguous()

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

    classes, anchor_blocks = _survey(anchor_labels, anchor_labels, num_valid, block_size)
    bits = key_bits(anchor_bits, order, problem.first_anchor_id)
    anchors = Vectors(values, classes, bits, num_valid, None, None, None)
    contrast = []
    for tensor in problem.contrast:
        if tensor.is_anchors:
            bits = key_bits(entry_bits, order, tensor.first_id)
            entries, blocks = anchors._replace(key_bits=bits), anchor_blocks
        else:
            values, labels = tensor.entries.detach(), tensor.labels.contiguous()
            bits = key_bits(entry_bits, labels, tensor.first_id)
            classes, blocks = _survey(labels, anchor_labels, num_valid, block_size)
            entries = _entries(problem, values, classes, bits)
            if not values.is_contiguous():
                row_stride, column_stride = values.stride()
                entries = entries._replace(row_stride=row_stride, column_stride=column_stride)
        surveyed = SurveyedTensor(entries, tensor.is_anchors, blocks)
        if index_blocks and surveyed.num_blocks > 0:
            index_kernel[(1,)](blocks, surveyed.num_blocks, BLOCK_N=block_size, **LAUNCH_OPTIONS)
        contrast.append(surveyed)
    return Layout(problem, configurations, anchors, order, tuple(contrast))


def _survey(
    labels: Tensor, anchor_labels: Tensor, num_valid: Tensor | None, block_size: int
) -> tuple[Tensor, Tensor]:
    """Return the classes of entries with these labels, and the survey with its first rows."""
    classes = torch.empty_like(labels, dtype=torch.int32)
    num_blocks = -(-len(labels) // block_size)
    blocks = classes.new_empty(SURVEY_ROWS, num_blocks + 1)
    if num_blocks > 0:
        classes_kernel[(num_blocks,)](
            labels,
            anchor_labels,
            num_valid,
            classes,
            blocks,
            len(labels),
            len(anchor_labels).bit_length(),
            BLOCK_N=block_size,
            **LAUNCH_OPTIONS,
        )
    return classes, blocks


def _entries(problem: Problem, values: Tensor, classes: Tensor, bits: Tensor | None) -> Vectors:
    """Return contiguous entries as arguments of a kernel."""
    narrowest = torch.finfo(problem.product_dtype).max
    largest = narrowest if torch.finfo(values.dtype).max > narrowest else None
    return Vectors(values, classes, bits, None, None, None, largest)


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
    num_valid, block_size = layout.anchors.num_valid, layout.configurations.denominator.columns
    classes, blocks = _survey(sampled, sorted_labels, num_valid, block_size)
    sample = SurveyedTensor(_entries(problem, values, classes, keys), False, blocks)
    index_kernel[(1,)](blocks, sample.num_blocks, BLOCK_N=block_size, **LAUNCH_OPTIONS)
    return replace(layout, contrast=(sample,)), stride


def product_precision(dtype: torch.dtype) -> str:
    """Return Triton's float32 precision for PyTorch's setting; not used for 16-bit products."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    return "tf32"


def _configurations(problem: Problem) -> Configurations:
    kind = product_precision(problem.product_dtype)
    if problem.product_dtype != torch.float32:
        wide = any(
            tensor.entries.dtype == torch.float32 and not tensor.is_anchors
            for tensor in problem.contrast
        )
        kind = "mixed" if wide else "16"
    capability, _ = _card(problem.anchors.device)
    return configurations_for(capability, kind, problem.anchors.shape[1])


@cache
def _card(device: torch.device) -> tuple[int, int]:
    """Return the compute capability of a device times ten, and its number of multiprocessors."""
    major, minor = torch.cuda.get_device_capability(device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return 10 * major + minor, processors
