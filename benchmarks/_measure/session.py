"""One run of a measuring command: its device, its deadline, and its record on disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import STARTED
from benchmarks._measure.command import DEVICE_LOST, write_record
from benchmarks._measure.environment import describe_device, look_at_machine
from benchmarks._measure.timers import NO_TIME, DeviceLostError, in_words, now, release

Row = dict[str, Any]
MARGIN_SECONDS = 4.0
"""Between the deadline and the end of the budget."""
UNFINISHED = "did not finish"


class Session:
    """What the measuring commands share at run time.

    From the command line, the budget counts from the start of the process. The file of the record
    is NAME.json, or NAME_gpu.json.
    """

    def __init__(self, options: argparse.Namespace, from_command_line: bool, name: str) -> None:
        self.started = STARTED if from_command_line else now()
        self.deadline = self.started + options.budget - MARGIN_SECONDS
        self.device = torch.device("cpu" if options.rehearse else options.device)
        self.as_on_gpu: bool = options.rehearse or self.device.type == "cuda"
        file = f"{name}_gpu.json" if self.as_on_gpu else f"{name}.json"
        self.path = None if options.out is None else options.out / file
        environment = look_at_machine()
        self.record: Row = {"environment": {**environment, **describe_device(self.device)}}

    def has_time(self, seconds: float = 0.0) -> bool:
        """Return whether something that takes so long would end before the deadline."""
        return bool(now() + seconds < self.deadline)

    def save(self) -> None:
        """Write the record as far as it is known."""
        self.record["seconds"] = now() - self.started
        if self.path is not None:
            write_record(self.path, self.record)

    def fill(self, row: Row, job: Callable[[], None], expected_seconds: float) -> int:
        """Run a job that fills in a row of the record; return 0 or `DEVICE_LOST`.

        What it raises becomes the row's `note`, and the other rows are still measured; on the CPU
        of a user errors are raised. It is not started if it would end after the deadline.
        """
        in_time = self.has_time(expected_seconds)
        row["note"], status = UNFINISHED if in_time else NO_TIME, 0
        self.save()
        try:
            if in_time:
                release(self.device)
                job()
                row["note"] = None
        except DeviceLostError as lost:
            row["note"], status = f"the device was lost: {lost}", DEVICE_LOST
        except Exception as error:
            if not self.as_on_gpu:
                raise
            row["note"] = in_words(error)
        self.save()
        return status
