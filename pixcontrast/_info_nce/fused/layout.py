"""The tensors that the kernels read: sorted anchors, contrast entries, and the survey of both.

All of it is computed on the device by operations of fixed shape. The host reads no value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import (
    INTERPRETED,
    Configurations,
    configurations_for,
    for_mining,
)
from pixcontrast._info_nce.fused.kernels.survey import block_index_kernel, survey_kernel
from pixcontrast._info_nce.problem import ContrastTensor, Problem
from pixcontrast._info_nce.random_keys import PairKeys
from pixcontrast._info_nce.tiled.similarities import BOUNDED_LOGIT
from pixcontrast._tensors import IGNORED
from pixcontrast._triton import interpreted

CHUNK = 1024
"""Number of blocks whose classes a program reads at once."""
INTERPRETED_PROCESSORS = 6


class Survey(NamedTuple):
    """The classes of contrast entries, and what each block of them holds.

    Attributes:
        classes: (n,) int32, odd numbers that ascend with the labels of the anchors, even numbers
            for labels that no anchor has, −1 for ignored entries.
        first_classes, last_classes: (blocks,) int32, the smallest and largest class of each block.
        block_sizes: (blocks,) int32, the number of valid entries of each block.
    """

    classes: Tensor
    first_classes: Tensor
    last_classes: Tensor
    block_sizes: Tensor


@dataclass(frozen=True)
class SortedAnchors:
    """The anchors, sorted by label; ignored ones are last.

    Attributes:
        vectors: (M, D) contiguous operands, zeros for ignored anchors.
        labels: (M,) int64.
        survey: the survey of the anchors as contrast entries.
        order: (M,) int64, the index of each in the caller's order.
        num_valid: () int32, the number of anchors that are not ignored.
        bits: (M,) int32, the anchors' part of the random keys; zeros without a random choice.
    """

    vectors: Tensor
    labels: Tensor
    survey: Survey
    order: Tensor
    num_valid: Tensor
    bits: Tensor


@dataclass(frozen=True)
class SurveyedTensor:
    """A contrast tensor with its survey.

    Attributes:
        entries: (n, D), any strides.
        survey: the classes of its entries and blocks.
        is_anchors: whether the entries are the sorted anchors.
        bits: (n,) int32, the entries' part of the random keys; zeros without a random choice.
        block_size: entries of a block.
    """

    entries: Tensor
    survey: Survey
    is_anchors: bool
    bits: Tensor
    block_size: int = field(repr=False)

    def __len__(self) -> int:
        return self.survey.classes.shape[0]

    @property
    def num_blocks(self) -> int:
        return self.survey.block_sizes.shape[0]

    @cached_property
    def block_index(self) -> Tensor:
        """(7, blocks + 1) int32, see `kernels/class_blocks.py`. The backward does not need it."""
        index = self.survey.block_sizes.new_empty(7, self.num_blocks + 1)
        block_index_kernel[(1,)](
            self.survey.block_sizes,
            index,
            self.num_blocks,
            BLOCK_N=self.block_size,
            CHUNK=CHUNK,
        )
        return index


@dataclass(frozen=True)
class Layout:
    """One call of `info_nce` as the kernels take it, and the tiles of each kernel."""

    problem: Problem
    anchors: SortedAnchors
    contrast: tuple[SurveyedTensor, ...]
    configurations: Configurations
    precision: str
    interpreted: bool

    @property
    def bounded(self) -> bool:
        """Whether exp2 of every similarity is known to be in the range of every dtype in use."""
        problem = self.problem
        # The length of a unit vector that is rounded to 16 bits exceeds 1 by up to 1/256.
        largest = 1.02 * problem.inverse_temperature
        bounded = problem.unit_length and largest <= BOUNDED_LOGIT[torch.float32]
        return bounded and problem.product_dtype != torch.float16

    @property
    def num_processors(self) -> int:
        if self.interpreted:
            return INTERPRETED_PROCESSORS
        return _num_processors(self.anchors.vectors.device)


def lay_out(problem: Problem) -> Layout:
    """Sort the anchors, survey the contrast tensors, and choose the tiles."""
    on_cpu = interpreted()
    configurations = INTERPRETED if on_cpu else _configurations(problem)
    if problem.negative_sampler is not None:
        configurations = for_mining(configurations)
    block_size = configurations.denominator.columns
    anchors = _sort_anchors(problem, block_size)
    contrast = tuple(
        _survey_tensor(problem, tensor, anchors, block_size) for tensor in problem.contrast
    )
    precision = product_precision(problem.product_dtype)
    return Layout(problem, anchors, contrast, configurations, precision, on_cpu)


def product_precision(dtype: torch.dtype) -> str:
    """Return Triton's precision of float32 products, as PyTorch is set; unused for 16 bits."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    return "tf32"


def padded_dim(dim: int) -> int:
    """Return D rounded up to a power of two that a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(dim)))


def _configurations(problem: Problem) -> Configurations:
    kind = product_precision(problem.product_dtype)
    if problem.product_dtype != torch.float32:
        wide = any(tensor.entries.dtype == torch.float32 for tensor in problem.contrast
                   if not tensor.is_anchors)  # fmt: skip
        kind = "mixed" if wide else "16"
    return configurations_for(_capability(problem.anchors.device), kind, problem.anchors.shape[1])


def _sort_anchors(problem: Problem, block_size: int) -> SortedAnchors:
    valid = problem.labels != IGNORED
    last = torch.iinfo(torch.int64).max
    ascending, order = problem.labels.masked_fill(~valid, last).sort(stable=True)
    labels = ascending.masked_fill(ascending == last, IGNORED)
    vectors = problem.saturate(problem.anchors.detach()[order]).to(problem.product_dtype)
    # A matrix unit multiplies ignored anchors too, and 0 · NaN is NaN.
    vectors = torch.where((labels != IGNORED)[:, None], vectors, 0.0).contiguous()
    bits = torch.zeros_like(order, dtype=torch.int32)
    if problem.seed is not None:
        anchor_ids = order + problem.first_anchor_id
        bits = PairKeys.of(problem.seed, anchor_ids, order[:0]).row_bits[:, 0].contiguous()
    num_valid = valid.sum(dtype=torch.int32)
    survey = _survey(labels, labels, num_valid, block_size)
    return SortedAnchors(vectors, labels, survey, order, num_valid, bits)


def _survey_tensor(
    problem: Problem, tensor: ContrastTensor, anchors: SortedAnchors, block_size: int
) -> SurveyedTensor:
    if tensor.is_anchors:
        entries, ids, survey = anchors.vectors, anchors.order, anchors.survey
    else:
        entries, labels = tensor.entries.detach(), tensor.labels.contiguous()
        ids = torch.arange(len(labels), device=labels.device)
        survey = _survey(labels, anchors.labels, anchors.num_valid, block_size)
    bits = torch.zeros_like(ids, dtype=torch.int32)
    if problem.seed is not None:
        entry_ids = ids + tensor.first_id
        bits = PairKeys.of(problem.seed, ids[:0], entry_ids).column_bits.contiguous()
    return SurveyedTensor(entries, survey, tensor.is_anchors, bits, block_size)


def _survey(labels: Tensor, anchor_labels: Tensor, num_valid: Tensor, block_size: int) -> Survey:
    classes = torch.empty_like(labels, dtype=torch.int32)
    num_blocks = -(-len(labels) // block_size)
    first, last, sizes = (classes.new_empty(num_blocks) for _ in range(3))
    if num_blocks > 0:
        survey_kernel[(num_blocks,)](
            labels,
            anchor_labels,
            num_valid,
            classes,
            first,
            last,
            sizes,
            len(labels),
            len(anchor_labels).bit_length(),
            BLOCK_N=block_size,
        )
    return Survey(classes, first, last, sizes)


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def _num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
