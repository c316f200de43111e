"""Compare the implementations of one case: time, errors and memory, written into one row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from benchmarks._measure.timers import (
    Measured,
    Run,
    add_ratios,
    attempt,
    in_words,
    keep_figures,
    measure,
    now,
    release,
)
from benchmarks._ways.formulas import Losses, Truth, relative_error, truth_of
from benchmarks._ways.problem import MODES, Case, Problem
from benchmarks._ways.products import floor_flops
from benchmarks._ways.ways import (
    DENSE_WAYS,
    LOSSES,
    OURS,
    REFERENCES,
    way_of,
)

MOST_SIMILARITIES = 100_000_000
"""On the CPU only the floor and the tiled form run above so many similarities: what holds them all
takes gigabytes, and mining, which holds a part at a time, takes long."""


class Comparison:
    """The measurements of one case, kept in the row of its record.

    Args:
        case: what is measured.
        device: where.
        row: its `measured`, `skipped` and `correct` are filled in.
        square: rows and columns of the large square product.
        save: called when figures have become known.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        row: dict[str, Any],
        square: int,
        save: Callable[[], None],
    ) -> None:
        self.case = case
        self.device = device
        self.row = row
        self.flops = {"floor": floor_flops(case), "square": 2 * square**3}
        self.save = save

    def leave_out(self, runs: dict[str, Run], say: bool) -> None:
        """Take out of `runs` what is too large here; with `say`, record why."""
        for name in [name for name in runs if self._is_too_large(way_of(name))]:
            del runs[name]
            if say:
                self.row["skipped"][way_of(name)] = "M×N is too large to try"

    def time(
        self,
        runs: Mapping[str, Run],
        repeats: int,
        deadline: float,
        phases: Sequence[Sequence[str]],
    ) -> None:
        """Time the runs in turn, and save their figures.

        The ways of the first phase are timed alone, then with those of the second: a process that
        is stopped there has figures of the first.
        """
        chosen: dict[str, Run] = {}
        for phase in phases:
            chosen |= {name: run for name, run in runs.items() if way_of(name) in phase}
            self.keep(measure(chosen, repeats, self.device, deadline=deadline))
            chosen = {name: run for name, run in chosen.items() if self._seconds(name)}
            if now() > deadline:
                break

    def keep(self, found: Mapping[str, Measured]) -> None:
        """Put results into the row with their rates and ratios, and save it."""
        measured = self.row["measured"]
        keep_figures(measured, found)
        add_ratios(measured, [name for name in REFERENCES if name in measured])
        for name, one in measured.items():
            if "seconds" in one and "forward" not in name:
                work = self.flops.get(name, self.case.useful_flops)
                one["tflops"] = work / one["seconds"] / 1e12
        for reference in ("square", "floor"):
            rate = measured.get(reference, {}).get("tflops")
            for one in measured.values():
                if rate and "tflops" in one:
                    one[f"of_{reference}"] = one["tflops"] / rate
        self.save()

    def check(self, runs: Mapping[str, Run], problem: Problem) -> None:
        """Compare losses and gradients with the truth, once each."""
        try:
            truth = truth_of(problem)
        except Exception as error:  # The figures stand without the check.
            self.row["skipped"]["check"] = in_words(error)
            release(self.device)
            return
        for name, run in runs.items():
            if way_of(name) in LOSSES and self._seconds(name):
                found = self._error_of(run, truth)
                correct = isinstance(found, float) and found <= MODES[self.case.mode].tolerance
                self.row["measured"][name] |= {"error": found, "correct": correct}
        ours = [
            one["correct"]
            for name, one in self.row["measured"].items()
            if way_of(name) in OURS and "correct" in one
        ]
        self.row["correct"] = all(ours) if ours else None
        self.save()

    def weigh(self, runs: Mapping[str, Run], weigher: Callable[[str, Run], float | None]) -> None:
        """Measure the memory of every run that was timed."""
        for name, run in runs.items():
            if self._seconds(name):
                self.row["measured"][name]["extra_mb"] = weigher(name, run)

    def _error_of(self, run: Run, truth: Truth) -> float | str:
        """Return the relative error of a run, or in words why there is none."""
        error = attempt(lambda: relative_error(cast(Losses, run()), truth), self.device)
        return "not finite" if isinstance(error, float) and not math.isfinite(error) else error

    def _seconds(self, name: str) -> float | None:
        seconds: float | None = self.row["measured"].get(name, {}).get("seconds")
        return seconds

    def _is_too_large(self, way: str) -> bool:
        if self.device.type != "cuda":
            return way not in ("floor", "tiled") and self.case.similarities > MOST_SIMILARITIES
        # All that hold M×N matrices hold three of float32 at least.
        total: int = torch.cuda.get_device_properties(self.device).total_memory
        return way in DENSE_WAYS and 3 * 4 * self.case.similarities > total
