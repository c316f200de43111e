"""What a kind of device lacks."""

from __future__ import annotations

import torch


def widest_float(device: torch.device) -> torch.dtype:
    """float64, but for Apple's GPUs, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64
