"""What the kernels read: anchors sorted by class, entries as they stand, and what stands where.

Everything is made on the device by operations of fixed shape; the host learns no value.
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
from pixcontrast._info_nce.fused.kernels.survey import runs_kernel, survey_kernel
from pixcontrast._info_nce.problem import Problem
from pixcontrast._info_nce.random_keys import PairKeys
from pixcontrast._info_nce.tiled.similarities import BOUNDED_LOGIT
from pixcontrast._labels import IGNORED
from pixcontrast._triton import interpreted

# Blocks whose labels a program looks at together.
CHUNK = 1024
INTERPRETED_PROCESSORS = 6


class Survey(NamedTuple):
    """What stands where.

    Attributes:
        classes: (n,) int32, odd numbers that ascend with the labels of the anchors, even ones for
            labels that no anchor has, −1 for entries that take no part.
        first_classes, last_classes: the least and largest class of each block of entries.
    """

    classes: Tensor
    first_classes: Tensor
    last_classes: Tensor


@dataclass(frozen=True)
class Rows:
    """The anchors, sorted by label; those that take no part stand last.

    Attributes:
        vectors: (M, D) contiguous operands, zeros for those that take no part.
        labels: (M,) int64.
        survey: of them as entries of each other.
        order: (M,) int64, their places in the caller's order.
        num_present: () int32.
        bits: (M,) int32, the random keys' part of each; zeros where nothing is left to chance.
    """

    vectors: Tensor
    labels: Tensor
    survey: Survey
    order: Tensor
    num_present: Tensor
    bits: Tensor

    @property
    def classes(self) -> Tensor:
        """(M,) int32, as in `Survey`."""
        return self.survey.classes


class Runs(NamedTuple):
    """The runs of blocks that are not empty.

    Attributes:
        starts, stops: of each run.
        befores: how many blocks stand in the runs before it.
        counts: (2,) the number of runs, and of blocks in them.
    """

    starts: Tensor
    stops: Tensor
    befores: Tensor
    counts: Tensor


@dataclass(frozen=True)
class Columns:
    """A piece of entries as it stands.

    Attributes:
        entries: (n, D), any strides.
        classes, first_classes, last_classes: as in `Survey`.
        is_anchors: whether these are the sorted anchors themselves.
        bits: (n,) int32, as in `Rows`.
    """

    entries: Tensor
    classes: Tensor
    is_anchors: bool
    bits: Tensor
    first_classes: Tensor = field(repr=False)
    last_classes: Tensor = field(repr=False)

    def __len__(self) -> int:
        return self.classes.shape[0]

    @property
    def num_blocks(self) -> int:
        return self.first_classes.shape[0]

    @cached_property
    def runs(self) -> Runs:
        """Made when they are first asked for: a backward has no use for them."""
        starts, stops, befores = (torch.empty_like(self.last_classes) for _ in range(3))
        counts = self.last_classes.new_zeros(2)
        if self.num_blocks > 0:
            runs_kernel[(1,)](
                self.last_classes, starts, stops, befores, counts, self.num_blocks, CHUNK=CHUNK
            )
        return Runs(starts, stops, befores, counts)


@dataclass(frozen=True)
class Layout:
    """One call of `info_nce` as the kernels take it, and how they are cut into tiles."""

    problem: Problem
    rows: Rows
    pieces: tuple[Columns, ...]
    configurations: Configurations
    precision: str
    interpreted: bool

    @property
    def bounded(self) -> bool:
        """Whether exp2 of any similarity is known to be within the range of every dtype used."""
        problem = self.problem
        # Rounded to 16 bits a vector of unit length may be longer by one part in 256.
        largest = 1.02 * problem.inverse_temperature
        bounded = problem.unit_length and largest <= BOUNDED_LOGIT[torch.float32]
        return bounded and problem.product_dtype != torch.float16

    @property
    def num_processors(self) -> int:
        if self.interpreted:
            return INTERPRETED_PROCESSORS
        return _num_processors(self.rows.vectors.device)


def lay_out(problem: Problem) -> Layout:
    """Sort the anchors, survey the pieces, choose the tiles."""
    precision = product_precision(problem.product_dtype)
    on_cpu = interpreted()
    if on_cpu:
        configurations = INTERPRETED
    else:
        device, dim = problem.anchors.device, problem.anchors.shape[1]
        kind = precision if problem.product_dtype == torch.float32 else "16"
        configurations = configurations_for(_capability(device), kind, dim)
    if problem.negative_sampler is not None:
        configurations = for_mining(configurations)
    block = configurations.denominator.columns
    rows = _sort(problem, block)
    pieces = tuple(
        _columns(problem, number, rows, block) for number in range(len(problem.contrast))
    )
    return Layout(problem, rows, pieces, configurations, precision, on_cpu)


def product_precision(dtype: torch.dtype) -> str:
    """How Triton multiplies: as PyTorch is asked to for float32; of no account in 16 bits."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest":
        return "ieee"
    return "tf32"


def padded_dim(dim: int) -> int:
    """D as a power of two, and no less than a matrix unit takes."""
    return max(16, int(triton.next_power_of_2(dim)))


def _sort(problem: Problem, block: int) -> Rows:
    present = problem.labels != IGNORED
    last = torch.iinfo(torch.int64).max
    ascending, order = problem.labels.masked_fill(~present, last).sort(stable=True)
    labels = ascending.masked_fill(ascending == last, IGNORED)
    vectors = problem.saturate(problem.anchors.detach()[order]).to(problem.product_dtype)
    # An accelerator multiplies what takes no part too, and 0 · NaN would reach the rest.
    vectors = torch.where((labels != IGNORED)[:, None], vectors, 0.0).contiguous()
    bits = torch.zeros_like(order, dtype=torch.int32)
    if problem.seed is not None:
        rows = order + problem.first_anchor_id
        bits = PairKeys.of(problem.seed, rows, order[:0]).row_bits[:, 0].contiguous()
    num_present = present.sum(dtype=torch.int32)
    survey = _survey(labels, labels, num_present, block)
    return Rows(vectors, labels, survey, order, num_present, bits)


def _columns(problem: Problem, number: int, rows: Rows, block: int) -> Columns:
    piece = problem.contrast[number]
    if piece.is_anchors:
        entries, labels, numbers = rows.vectors, rows.labels, rows.order
    else:
        entries, labels = piece.entries.detach(), piece.labels.contiguous()
        numbers = torch.arange(len(labels), device=labels.device)
    bits = torch.zeros_like(numbers, dtype=torch.int32)
    if problem.seed is not None:
        columns = numbers + piece.first_id
        bits = PairKeys.of(problem.seed, numbers[:0], columns).column_bits.contiguous()
    survey = rows.survey
    if not piece.is_anchors:
        survey = _survey(labels, rows.labels, rows.num_present, block)
    classes, first, last = survey
    return Columns(entries, classes, piece.is_anchors, bits, first, last)


def _survey(labels: Tensor, anchor_labels: Tensor, num_present: Tensor, block: int) -> Survey:
    classes = torch.empty_like(labels, dtype=torch.int32)
    num_blocks = -(-len(labels) // block)
    first, last = (classes.new_empty(num_blocks) for _ in range(2))
    if num_blocks > 0:
        survey_kernel[(num_blocks,)](
            labels,
            anchor_labels,
            num_present,
            classes,
            first,
            last,
            len(labels),
            len(anchor_labels).bit_length(),
            BLOCK_N=block,
        )
    return Survey(classes, first, last)


@cache
def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def _num_processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
