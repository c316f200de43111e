"""Spread tests over processes so that few kernels are compiled twice, and all end together.

A process compiles a kernel when a test first launches it. That takes seconds, the test itself much
less. Tests that share kernels therefore belong in one process, as far as the load allows.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Set
from typing import NamedTuple

TEST_WEIGHT = 0.1
"""Of a test itself, where compiling one kernel weighs 1."""
GROUP_SHARE = 0.8
"""How many kernels a group of tests may have, as a part of the mean of all processes. Smaller
groups compile more kernels twice; larger ones leave the loads of the processes uneven."""


class Group(NamedTuple):
    """Tests that stay together, and a bit mask of the kernels that they launch."""

    kernels: int
    tests: list[str]


def pack(kernels: Mapping[str, Set[str]], processes: int) -> list[list[str]]:
    """The tests of each process, in the order in which they are given.

    Tests whose kernels are most alike are joined into groups. The groups are then placed, the
    largest first, where the load is the smallest.

    Args:
        kernels: the kernels that each test launches.
        processes: how many processes there are, at least 1.
    """
    bits = {name: 1 << bit for bit, name in enumerate(sorted(set().union(*kernels.values())))}
    alone = [Group(sum(bits[name] for name in used), [test]) for test, used in kernels.items()]
    largest = max((len(used) for used in kernels.values()), default=0)
    groups = _join(alone, max(largest, int(GROUP_SHARE * len(bits) / processes)))
    placed = [Group(0, []) for _ in range(processes)]
    for group in sorted(groups, key=lambda group: (-group.kernels.bit_count(), -len(group.tests))):
        joined = [_union(taken, group) for taken in placed]
        best = min(range(processes), key=lambda number: _load(joined[number]))
        placed[best] = joined[best]
    order = {test: number for number, test in enumerate(kernels)}
    return [sorted(group.tests, key=order.__getitem__) for group in placed]


def count_compilations(
    packed: Collection[Collection[str]], kernels: Mapping[str, Set[str]]
) -> list[int]:
    """How many kernels each process compiles if it finds none in Triton's cache."""
    return [len(set[str]().union(*(kernels[test] for test in tests))) for tests in packed]


def _join(alone: list[Group], limit: int) -> list[Group]:
    """Join the two groups that are most alike, again and again, up to `limit` kernels."""
    groups = dict(enumerate(alone))
    pairs: list[tuple[float, int, int]] = []

    def add_pair(one: int, other: int) -> None:
        shared = (groups[one].kernels & groups[other].kernels).bit_count()
        united = (groups[one].kernels | groups[other].kernels).bit_count()
        if shared > 0 and united <= limit:
            heapq.heappush(pairs, (-shared / united, one, other))

    for number in groups:
        for earlier in range(number):
            add_pair(earlier, number)
    number = len(groups)
    while pairs:
        _, one, other = heapq.heappop(pairs)
        if one in groups and other in groups:
            groups[number] = _union(groups.pop(one), groups.pop(other))
            for earlier in groups:
                if earlier != number:
                    add_pair(earlier, number)
            number += 1
    return list(groups.values())


def _union(one: Group, other: Group) -> Group:
    return Group(one.kernels | other.kernels, one.tests + other.tests)


def _load(group: Group) -> float:
    return group.kernels.bit_count() + TEST_WEIGHT * len(group.tests)
