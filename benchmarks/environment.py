"""Where and when a result was measured: no figure is worth much without it."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

import pixcontrast


def describe_environment(commit: str | None = None) -> dict[str, object]:
    """Versions, machine, date and commit, taken at the start, before the run itself adds load.

    `commit` is for a copy of the files without their history.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pixcontrast": pixcontrast.__version__,
        "git_commit": _git("rev-parse", "HEAD") or commit,
        "git_changed_files": _changed_files(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average_at_start": _load_average(),
    }


def _load_average() -> list[float] | None:
    """What else the machine was doing; Windows does not tell."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def _changed_files() -> int | None:
    """How many files differ from the commit: with any, the commit alone does not say what ran."""
    changes = _git("status", "--porcelain")
    return None if changes is None else len(changes.splitlines())


def _git(*arguments: str) -> str | None:
    """What git says of this checkout, or None where there is no git or no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
