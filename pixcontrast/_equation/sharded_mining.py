"""Mining over entries that are spread over ranks: thresholds are found together.

A threshold is the k-th largest hardness (or smallest random key) of an anchor's candidates on all
ranks. As integers of the same order both are found digit by digit: each rank counts how many of
its candidates reach each value that the next 4 bits could make, and the counts are added up. Exact,
ties included, by messages of 16 numbers an anchor; similarities are made anew each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pixcontrast import mining
from pixcontrast._distributed import Ranks, add_up
from pixcontrast._equation.images import DIGIT_BITS, image_of, number_of
from pixcontrast._equation.masked import log_sum_of, positives_of
from pixcontrast._equation.mined import MASKED_SIZE
from pixcontrast._equation.partial import finite
from pixcontrast._equation.parts import DenominatorPart, PositivesPart
from pixcontrast._equation.problem import Problem
from pixcontrast._equation.products import slices
from pixcontrast._equation.stripes import Part, Stripes
from pixcontrast._keys import LARGEST_KEY
from pixcontrast.mining import Thresholds

_DIGITS = 1 << DIGIT_BITS


class Side(NamedTuple):
    """What is selected among: the positives or the negatives, by hardness or by random key.

    Attributes:
        positive: the positives, and not the negatives.
        by_key: the smallest keys, and not the greatest hardness.
        least: (M, 1) the hardness that a candidate has to have, or None: any.
    """

    positive: bool
    by_key: bool
    least: Tensor | None


class MinedPasses:
    """The two passes of a problem under mining; results are in the caller's order.

    Attributes:
        thresholds: (M, 1) each, what every rank has found for the anchors.
    """

    thresholds: Thresholds

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._stripes = Stripes(problem, [True] * len(problem.pieces))

    def denominator(self, *, want_gradient: bool) -> DenominatorPart:
        like = self._problem.anchors.new_empty(0, dtype=self._problem.compute_dtype)
        log_sums = like.new_full(self._problem.labels.shape, -torch.inf)
        mean = like.new_zeros(self._problem.anchors.shape) if want_gradient else None
        for places, logits, positive, negative in self._kept():
            counted = negative
            if self._problem.denominator == "all":
                counted = positive | negative
            log_sum = log_sum_of(logits, counted)
            log_sums[places] = log_sum.squeeze(1)
            if mean is not None:
                share = torch.exp(logits - finite(log_sum)).masked_fill_(~counted, 0.0)
                mean[places] = self._stripes.sum_all(share)
        return DenominatorPart(log_sums, mean)

    def positives(self, log_sum: Tensor, *, want_gradient: bool) -> PositivesPart:
        losses, weights = torch.zeros_like(log_sum), torch.zeros_like(log_sum)
        number = torch.zeros_like(log_sum, dtype=torch.int64)
        pull = log_sum.new_zeros(self._problem.anchors.shape) if want_gradient else None
        for places, logits, positive, _ in self._kept():
            means = positives_of(logits, positive, log_sum[places][:, None], self._problem)
            number[places] = positive.sum(dim=1)
            losses[places] = means.losses.squeeze(1)
            weights[places] = means.weight.squeeze(1)
            if pull is not None:
                pull[places] = self._stripes.sum_all(means.strength)
        return PositivesPart(number, losses, weights, pull)

    def available(self, *, positive: bool) -> Tensor:
        """(M,) how many candidates each anchor has here."""
        found = torch.zeros_like(self._problem.labels)
        for places, part in self._parts():
            found[places] = (part.positive if positive else part.negative).sum(dim=1)
        return found

    def count_digits(self, side: Side, prefix: Tensor, shift: int) -> Tensor:
        """(M, 16) how many candidates have each next digit, of those that start with `prefix`."""
        counts = torch.zeros_like(self._problem.labels)[:, None].repeat(1, _DIGITS)
        for places, part in self._parts():
            candidate = part.positive if side.positive else part.negative
            hardness = -part.logits if side.positive else part.logits
            if side.least is not None:
                candidate = candidate & (hardness >= side.least[places])
            image = _image_of_keys(part.keys) if side.by_key else image_of(hardness)
            above = shift + DIGIT_BITS
            if above < _bits_of(image):
                candidate = candidate & (image >> above == prefix[places][:, None] >> above)
            digit = (image >> shift & (_DIGITS - 1)).to(torch.int64)
            counted = counts.new_zeros(len(digit), _DIGITS)
            counts[places] = counted.scatter_add_(1, digit, candidate.to(torch.int64))
        return counts

    def _kept(self) -> Iterator[tuple[slice | Tensor, Tensor, Tensor, Tensor]]:
        """A few anchors at a time: similarities, and the positives and negatives that count."""
        for places, part in self._parts():
            found = Thresholds(*(column[places] for column in self.thresholds))
            positive, negative = mining.keep(
                found, part.logits, part.positive, part.negative, part.keys
            )
            yield places, part.logits, positive, negative

    def _parts(self) -> Iterator[tuple[slice | Tensor, Part]]:
        stripes = self._stripes
        if stripes.num_columns == 0:
            return
        for block, logits in stripes.all():
            for rows in slices(block, max(1, MASKED_SIZE // stripes.num_columns)):
                own = logits[rows.start - block.start : rows.stop - block.start]
                yield stripes.anchors.places(rows), stripes.part(own, rows)


def find_thresholds(
    of_shard: MinedPasses, own: MinedPasses, problem: Problem, ranks: Ranks
) -> Thresholds:
    """(W·M, 1) what an entry must meet to count for each rank's anchors, the same on every rank.

    `of_shard` holds all ranks' anchors against this rank's shard, `own` this rank's anchors
    against what its batch contributes.
    """
    asked = problem.mining
    assert asked is not None
    search = _Search(of_shard, own, problem, ranks)
    sides = []
    for positive, count in ((False, asked.num_negatives), (True, asked.num_positives)):
        least = search.like.new_full((search.num_anchors, 1), -torch.inf)
        key = torch.full_like(least, LARGEST_KEY, dtype=torch.int32)
        if count is not None:
            wanted = search.like.new_full((search.num_anchors,), count, dtype=torch.int64)
            pooled = asked.strategy == "semi-hard"
            if asked.strategy != "random":
                among = asked.pool_size(search.available(positive=positive)) if pooled else wanted
                found, there = search.largest(Side(positive, False, None), among)
                image = found.to(image_of(least).dtype)
                least = number_of(image).masked_fill(~there, -torch.inf)[:, None]
            if asked.strategy != "hardest":
                side = Side(positive, True, least if pooled else None)
                found, there = search.largest(side, wanted)
                key = (-1 - found).masked_fill(~there, LARGEST_KEY).to(torch.int32)[:, None]
        sides.append((least, key))
    (negative_least, negative_key), (positive_least, positive_key) = sides
    return Thresholds(negative_least, negative_key, -positive_least, positive_key)


class _Search:
    """Candidates on all ranks, counted together."""

    def __init__(
        self, of_shard: MinedPasses, own: MinedPasses, problem: Problem, ranks: Ranks
    ) -> None:
        num_own = problem.labels.numel()
        self.num_anchors = ranks.size * num_own
        self.like = problem.anchors.new_empty(0, dtype=problem.compute_dtype)
        self._of_shard, self._own, self._ranks = of_shard, own, ranks
        self._mine = slice(ranks.rank * num_own, (ranks.rank + 1) * num_own)

    def available(self, *, positive: bool) -> Tensor:
        """(W·M,) how many candidates each anchor has."""
        found = self._of_shard.available(positive=positive)
        found[self._mine] += self._own.available(positive=positive)
        return add_up(self._ranks, found)

    def largest(self, side: Side, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The `wanted`-th largest image of each anchor's candidates, and whether there is one."""
        bits = 32 if side.by_key else torch.finfo(self.like.dtype).bits
        prefix = torch.zeros_like(wanted)
        remaining = wanted.clone()
        there = torch.ones_like(wanted, dtype=torch.bool)
        for shift in range(bits - DIGIT_BITS, -1, -DIGIT_BITS):
            counts = self._of_shard.count_digits(side, prefix, shift)
            counts[self._mine] += self._own.count_digits(self._of(side), prefix[self._mine], shift)
            counts = add_up(self._ranks, counts)
            digits = torch.arange(_DIGITS, device=wanted.device)
            # The first digit has the sign: negative numbers, whose digits are 8 and up, are least.
            order = digits ^ (_DIGITS // 2) if shift == bits - DIGIT_BITS else digits
            at_least = counts[:, order].flip(1).cumsum(dim=1).flip(1)
            reached = (at_least >= remaining[:, None]).sum(dim=1)
            there &= reached > 0
            place = (reached - 1).clamp(min=0)
            beyond = torch.nn.functional.pad(at_least, (0, 1)).gather(1, place[:, None] + 1)
            remaining = remaining - beyond.squeeze(1)
            digit = order[place]
            if shift == bits - DIGIT_BITS:
                digit = torch.where(digit >= _DIGITS // 2, digit - _DIGITS, digit)
            prefix = prefix + (digit << shift)
        return prefix, there

    def _of(self, side: Side) -> Side:
        return side if side.least is None else side._replace(least=side.least[self._mine])


def _image_of_keys(keys: Tensor | None) -> Tensor:
    """The smallest key is the largest image."""
    assert keys is not None  # every strategy that comes here draws a seed
    return -1 - keys


def _bits_of(image: Tensor) -> int:
    return torch.iinfo(image.dtype).bits
