"""The tiled form under mining: stripes of a few anchors against every entry.

An exact selection needs an anchor's whole row of similarities, so a tile is here a stripe: as
many complete rows as fit into a fixed number of similarities, at the least one. What a stripe
selects is kept as thresholds, so that a backward pass can make any part of it again without the
rest: a bank may have been written to since.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pixcontrast import mining
from pixcontrast._equation.arrangement import Arrangement, arrange_anchors
from pixcontrast._equation.coefficients import AnchorStatistics, coefficients
from pixcontrast._equation.problem import Piece, Problem
from pixcontrast._equation.tiled import (
    Forward,
    allocate_entries_gradient,
    allocate_forward,
    share_of,
)
from pixcontrast._equation.tiles import TILE_COLUMNS, slices
from pixcontrast._labels import ABSENT
from pixcontrast.mining import Thresholds, pair_keys

# Similarities in a stripe; half a dozen tensors of its size live at once.
STRIPE_SIZE = 1 << 20


def mined_forward(problem: Problem, *, want_gradient: bool) -> tuple[Forward, Thresholds]:
    """As `tiled_forward`, and the thresholds (M, 1) of each anchor's selection."""
    result = allocate_forward(problem, want_gradient=want_gradient)
    thresholds = _allocate_thresholds(problem)
    stripes = _Stripes(problem, [True] * len(problem.pieces))
    assert problem.mining is not None
    if stripes.num_columns == 0:
        return result, thresholds
    for block in stripes.blocks():
        parts = [stripes.part(block, number) for number in stripes.numbers]
        logits, positive, negative, keys = _join(parts)
        found = problem.mining.thresholds(logits, positive, negative, keys)
        positive, negative = mining.keep(found, logits, positive, negative, keys)

        losses, statistics = _row_losses(logits, positive, negative, problem)
        places = stripes.anchors.places(block)
        result.losses[places] = losses
        result.has_positive[places] = positive.any(dim=1)
        result.statistics.put(places, statistics)
        for column, values in zip(thresholds, found, strict=True):
            column[places] = values
        if result.gradient is not None:
            change = coefficients(logits, positive, negative, statistics, problem.denominator)
            result.gradient[places] = stripes.weigh_entries(change)
    return result, thresholds


def mined_entries_gradient(
    problem: Problem,
    statistics: AnchorStatistics,
    thresholds: Thresholds,
    upstream: Tensor,
    wanted: list[bool],
) -> list[Tensor | None]:
    """As `entries_gradient`, of the entries that met the thresholds."""
    results = allocate_entries_gradient(problem, wanted)
    stripes = _Stripes(problem, wanted)
    for block in stripes.blocks():
        places = stripes.anchors.places(block)
        scale = upstream[places][:, None] * problem.inverse_temperature
        found = Thresholds(*(column[places] for column in thresholds))
        for number in stripes.numbers:
            logits, positive, negative, keys = stripes.part(block, number)
            positive, negative = mining.keep(found, logits, positive, negative, keys)
            change = coefficients(
                logits, positive, negative, statistics.of(places), problem.denominator
            ).mul_(scale)
            result = results[number]
            assert result is not None
            result.addmm_(change.T, stripes.rows[block])
    return results


class _Part(NamedTuple):
    """A block of anchors against one piece: similarities, candidates and keys, (R, n) each."""

    logits: Tensor
    positive: Tensor
    negative: Tensor
    keys: Tensor | None


class _Stripes:
    """Makes the stripes, piece by piece; the anchors are arranged, the entries as they stand."""

    def __init__(self, problem: Problem, wanted: list[bool]) -> None:
        self.problem = problem
        self.anchors: Arrangement = arrange_anchors(problem)
        everyone = self.anchors.places(slice(0, len(self.anchors)))
        self.rows = self.anchors.rows(slice(0, len(self.anchors)))
        self.numbers = [number for number, want in enumerate(wanted) if want]
        # Of all pieces, wanted or not: a block has the same rows in both passes, or else its
        # similarities could differ in the last bit and fall on the other side of a threshold.
        self.num_columns = sum(piece.labels.numel() for piece in problem.pieces)
        self._numbers_of_rows = torch.arange(problem.labels.numel(), device=self.rows.device)
        self._numbers_of_rows = self._numbers_of_rows[everyone]

    def blocks(self) -> list[slice]:
        height = max(1, STRIPE_SIZE // max(1, self.num_columns))
        return list(slices(slice(0, len(self.anchors)), height))

    def part(self, block: slice, number: int) -> _Part:
        piece = self.problem.pieces[number]
        row_labels = self.anchors.labels[block][:, None]
        row_numbers = self._numbers_of_rows[block]
        own_numbers = torch.arange(piece.labels.numel(), device=self.rows.device)
        positive = row_labels == piece.labels[None, :]
        negative = ~positive & (piece.labels != ABSENT)[None, :]
        if piece.is_anchors:
            positive &= row_numbers[:, None] != own_numbers[None, :]
        keys = pair_keys(self.problem.seed, row_numbers, own_numbers + piece.first_column)
        return _Part(self._logits(block, piece), positive, negative, keys)

    def weigh_entries(self, change: Tensor) -> Tensor:
        """(R, D) Σ_j change_ij k_j / τ."""
        result = self.rows.new_zeros(change.shape[0], self.rows.shape[1])
        for piece in self.problem.pieces:
            for columns in _columns(piece):
                start = piece.first_column + columns.start
                part = change[:, start : piece.first_column + columns.stop]
                result.addmm_(part, self._entries(piece, columns))
        return result.mul_(self.problem.inverse_temperature)

    def _logits(self, block: slice, piece: Piece) -> Tensor:
        rows, limit = self.rows[block], self.problem.logit_limit
        logits = rows.new_empty(rows.shape[0], piece.labels.numel())
        for columns in _columns(piece):
            logits[:, columns] = rows @ self._entries(piece, columns).T
        return logits.mul_(self.problem.inverse_temperature).clamp_(-limit, limit)

    def _entries(self, piece: Piece, columns: slice) -> Tensor:
        entries = self.problem.operand(piece.entries[columns])
        return torch.where((piece.labels[columns] != ABSENT)[:, None], entries, 0.0)


def _columns(piece: Piece) -> list[slice]:
    return list(slices(slice(0, piece.labels.numel()), TILE_COLUMNS))


def _join(parts: list[_Part]) -> _Part:
    keys = [part.keys for part in parts if part.keys is not None]
    return _Part(
        torch.cat([part.logits for part in parts], dim=1),
        torch.cat([part.positive for part in parts], dim=1),
        torch.cat([part.negative for part in parts], dim=1),
        torch.cat(keys, dim=1) if keys else None,
    )


def _row_losses(
    logits: Tensor, positive: Tensor, negative: Tensor, problem: Problem
) -> tuple[Tensor, AnchorStatistics]:
    num_positives = positive.sum(dim=1, keepdim=True)
    has_positive = num_positives > 0
    share = share_of(num_positives, logits.dtype)
    if problem.denominator == "negatives":
        log_sum = logits.masked_fill(~negative, -torch.inf).logsumexp(dim=1, keepdim=True)
        margin = (log_sum - logits).masked_fill_(~positive, -torch.inf)
        losses = F.softplus(margin, threshold=50.0).mul_(share).sum(dim=1, keepdim=True)
        weight = margin.sigmoid_().mul_(share).sum(dim=1, keepdim=True)
    else:
        counted = positive | negative
        log_sum = logits.masked_fill(~counted, -torch.inf).logsumexp(dim=1, keepdim=True)
        mean = logits.masked_fill(~positive, 0.0).mul_(share).sum(dim=1, keepdim=True)
        losses = torch.where(has_positive, log_sum - mean, 0.0)
        weight = has_positive.to(logits.dtype)
    return losses.squeeze(1), AnchorStatistics(log_sum, weight, share)


def _allocate_thresholds(problem: Problem) -> Thresholds:
    logit = problem.anchors.new_zeros(problem.labels.numel(), 1, dtype=problem.compute_dtype)
    key = torch.zeros_like(logit, dtype=torch.int64)
    return Thresholds(logit, key, logit.clone(), key.clone())
