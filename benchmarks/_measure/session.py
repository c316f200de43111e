"""One run of a measuring command: its device, its deadline, and its record on disk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import STARTED
from benchmarks._measure.command import DEVICE_LOST, look_at_machine, write_record
from benchmarks._measure.environment import describe_device
from benchmarks._measure.timers import (
    NO_TIME,
    DeviceLostError,
    in_words,
    keep_figures,
    now,
    release,
)

Row = dict[str, Any]
MARGIN_SECONDS = 4.0
"""Between the deadline and the end of the budget."""
UNFINISHED = "did not finish"


class Session:
    """What the measuring commands share at run time.

    Args:
        options: of `add_run_options` and `add_device_options`.
        from_command_line: whether the budget counts from the start of the process. Default: from
            now on.
        names: default file name of the record on the CPU and on a GPU.

    Attributes:
        device: where it runs.
        as_on_gpu: whether it measures as on a GPU: there, or in a rehearsal.
        path: of the record, or None.
        record: what is written.
        resumed: whether the record was read from `path`.
    """

    def __init__(
        self, options: argparse.Namespace, from_command_line: bool, names: tuple[str, str]
    ) -> None:
        self.started = STARTED if from_command_line else now()
        self.deadline = self.started + options.budget - MARGIN_SECONDS
        self.device: torch.device = options.device
        self.as_on_gpu: bool = options.rehearse or self.device.type == "cuda"
        name = options.record or names[self.as_on_gpu]
        self.path = None if options.out is None else options.out / name
        self.resumed = bool(options.resume and self.path is not None and self.path.exists())
        self.record: Row
        if self.resumed and self.path is not None:
            self.record = json.loads(self.path.read_text())
            self.record["resumed"] = self.record.get("resumed", 0) + 1
        else:
            environment = look_at_machine(options.refuse_busy, options.commit)
            self.record = {"environment": {**environment, **describe_device(self.device)}}

    def has_time(self, seconds: float) -> bool:
        """Return whether something that takes so long would end before the deadline."""
        return bool(now() + seconds < self.deadline)

    def save(self) -> None:
        """Write the record as far as it is known."""
        self.record["seconds"] = now() - self.started
        if self.path is not None:
            write_record(self.path, self.record)

    def fill(self, row: Row, job: Callable[[], None], expected_seconds: float) -> int:
        """Run a job that fills in a row of the record, and write the record.

        What the job raises becomes the row's `note`, and the other rows are still measured; a job
        that is not expected to end before the deadline is not started. On the CPU of a user
        errors are raised.

        Returns:
            0, or `DEVICE_LOST`.
        """
        if not self.has_time(expected_seconds):
            row["note"] = NO_TIME
            self.save()
            return 0
        row["note"] = UNFINISHED
        self.save()
        status = 0
        try:
            release(self.device)
            job()
            row["note"] = None
        except DeviceLostError as lost:
            keep_figures(row["measured"], getattr(lost, "measured", {}))
            row["note"] = f"the device was lost: {lost}"
            status = DEVICE_LOST
        except Exception as error:
            if not self.as_on_gpu:
                raise
            row["note"] = in_words(error)
        self.save()
        return status
