"""The tensors that the kernels read: sorted anchors, contrast entries, and the survey of both.

All of it is computed on the device by operations of fixed shape. The host reads no value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from pixcontrast._info_nce.fused.configurations import (
    INTERPRETED,
    Configurations,
    configurations_for,
    for_mining,
)
from pixcontrast._info_nce.fused.kernels.blocks import SURVEY_ROWS, classes_kernel, index_kernel
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.random_keys import PairKeys
from pixcontrast._info_nce.thresholds import Thresholds
from pixcontrast._info_nce.tiled.similarities import BOUNDED_LOGIT
from pixcontrast._tensors import IGNORED
from pixcontrast._triton import interpreted

INTERPRETED_PROCESSORS = 6


@dataclass(frozen=True)
class SurveyedTensor:
    """A contrast tensor, the classes of its entries, and a survey of its blocks.

    Attributes:
        entries: (n, D), any strides.
        is_anchors: whether the entries are the sorted anchors.
        entry_classes: (n,) int32, see `classes_kernel`.
        entry_bits: (n,) int32, the entries' part of the random keys; zeros without a seed.
        block_size: entries of a block.
        block_classes: (10, blocks + 1) int32, of which `survey` writes the last rows.
    """

    entries: Tensor
    is_anchors: bool
    entry_classes: Tensor
    entry_bits: Tensor
    block_size: int
    block_classes: Tensor

    def __len__(self) -> int:
        return self.entry_classes.shape[0]

    @property
    def num_blocks(self) -> int:
        return self.block_classes.shape[1] - 1

    @cached_property
    def survey(self) -> Tensor:
        """(10, blocks + 1) int32, see `kernels/blocks.py`. The backward does not need it."""
        index_kernel[(1,)](self.block_classes, self.num_blocks, BLOCK_N=self.block_size)
        return self.block_classes


@dataclass(frozen=True)
class Layout:
    """One call of `info_nce` as the kernels take it, and the tiles of each kernel.

    Attributes:
        anchors: (M, D) contiguous operands, sorted by label; ignored ones are last and zeros.
        order: (M,) int64, the index of each sorted anchor in the caller's order.
        num_valid: () int32, the number of anchors that are not ignored.
        anchor_classes: (M,) int32, see `classes_kernel`.
        anchor_bits: (M,) int32, the anchors' part of the random keys; zeros without a seed.
        thresholds: those of the sorted anchors, (M, 1) each; unused without mining.
    """

    problem: Problem
    configurations: Configurations
    anchors: Tensor
    order: Tensor
    num_valid: Tensor
    anchor_classes: Tensor
    anchor_bits: Tensor
    contrast: tuple[SurveyedTensor, ...]
    thresholds: Thresholds

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
        """How many programs run at the same time."""
        return INTERPRETED_PROCESSORS if interpreted() else _card(self.anchors.device)[1]


def lay_out(problem: Problem) -> Layout:
    """Sort the anchors, survey the contrast tensors, and choose the tiles."""
    configurations = INTERPRETED if interpreted() else _configurations(problem)
    if problem.negative_sampler is not None:
        configurations = for_mining(configurations)
    block_size = configurations.denominator.columns

    valid = problem.labels != IGNORED
    num_valid = valid.sum(dtype=torch.int32)
    last = torch.iinfo(torch.int64).max
    ascending, order = problem.labels.masked_fill(~valid, last).sort(stable=True)
    anchor_labels = ascending.masked_fill(ascending == last, IGNORED)
    anchors = problem.saturate(problem.anchors.detach()[order]).to(problem.product_dtype)
    # A matrix unit multiplies ignored anchors too, and 0 · NaN is NaN.
    anchors = torch.where((anchor_labels != IGNORED)[:, None], anchors, 0.0).contiguous()

    def survey(labels: Tensor) -> tuple[Tensor, Tensor]:
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
                num_blocks,
                len(anchor_labels).bit_length(),
                BLOCK_N=block_size,
            )
        return classes, blocks

    unused = order[:0]
    anchor_classes, anchor_blocks = survey(anchor_labels)
    anchor_bits, _ = _key_bits(problem, order + problem.first_anchor_id, unused)
    contrast = []
    for tensor in problem.contrast:
        if tensor.is_anchors:
            entries, ids, classes, blocks = anchors, order, anchor_classes, anchor_blocks
        else:
            entries, labels = tensor.entries.detach(), tensor.labels.contiguous()
            ids = torch.arange(len(labels), device=labels.device)
            classes, blocks = survey(labels)
        _, bits = _key_bits(problem, unused, ids + tensor.first_id)
        contrast.append(
            SurveyedTensor(entries, tensor.is_anchors, classes, bits, block_size, blocks)
        )
    return Layout(
        problem,
        configurations,
        anchors,
        order,
        num_valid,
        anchor_classes,
        anchor_bits,
        tuple(contrast),
        Thresholds(*[anchor_classes] * 4),
    )


def product_precision(dtype: torch.dtype) -> str:
    """Return Triton's precision of float32 products, as PyTorch is set; unused for 16 bits."""
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


def _key_bits(problem: Problem, anchor_ids: Tensor, entry_ids: Tensor) -> tuple[Tensor, Tensor]:
    if problem.seed is None:
        dtype = torch.int32
        return torch.zeros_like(anchor_ids, dtype=dtype), torch.zeros_like(entry_ids, dtype=dtype)
    keys = PairKeys.of(problem.seed, anchor_ids, entry_ids)
    return keys.row_bits[:, 0].contiguous(), keys.column_bits.contiguous()


@cache
def _card(device: torch.device) -> tuple[int, int]:
    """Return ten times the compute capability of a device, and its number of multiprocessors."""
    major, minor = torch.cuda.get_device_capability(device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return 10 * major + minor, processors
