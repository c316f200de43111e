"""Warnings about labels that leave nothing to contrast. Each is given once for a loss."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from pixcontrast import _check as check
from pixcontrast._tensors import IGNORED

MAX_CALLS_WITHOUT_NEGATIVE = 10
DEFAULT_IGNORE_INDEX = 255


class LabelWarnings:
    """What a loss has seen of its labels. Does nothing under torch.compile."""

    def __init__(self) -> None:
        self._warned: set[str] = set()
        self._calls_without_negative = 0

    def see_logits(self, preds: Tensor | None, ignore_index: int) -> None:
        """Warn if class 255 exists and has the default `ignore_index`."""
        if torch.compiler.is_compiling() or preds is None or not preds.is_floating_point():
            return
        if ignore_index == DEFAULT_IGNORE_INDEX and preds.shape[1] > DEFAULT_IGNORE_INDEX:
            self._warn(
                f"preds: logits of {preds.shape[1]} classes beside the default ignore_index=255: "
                f"pixels of class 255 are ignored (pass another ignore_index, for example -1)"
            )

    def see_labels(self, anchors: Tensor, contrast: Sequence[Tensor | None]) -> None:
        """Warn if no anchor had a negative in several calls in a row. Only on the CPU.

        Args:
            anchors (Tensor): marked labels of the anchors.
            contrast (sequence of Tensor): marked labels of each contrast tensor; None for the
                anchors.
        """
        if torch.compiler.is_compiling() or not check.values_can_be_seen(anchors):
            return
        if anchors.numel() == 0:
            return
        if _any_negative(anchors, contrast):
            self._calls_without_negative = 0
            return
        self._calls_without_negative += 1
        if self._calls_without_negative == MAX_CALLS_WITHOUT_NEGATIVE:
            self._warn(
                f"labels: no anchor had a negative in {MAX_CALLS_WITHOUT_NEGATIVE} calls in a row, "
                f"so the loss is constant (are there labels of one class only? In a mask of 0 and "
                f"255, the value 255 is ignored by default: pass (mask > 0) as labels)"
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, UserWarning, stacklevel=6)


def _any_negative(anchors: Tensor, contrast: Sequence[Tensor | None]) -> bool:
    """Return whether two labels differ, of which one is an anchor's."""
    valid = anchors[anchors != IGNORED]
    if valid.numel() == 0:
        return False
    low, high = (int(bound) for bound in valid.aminmax())
    for labels in contrast:
        if labels is None:
            if low != high:
                return True
        elif bool(((labels != IGNORED) & ((labels != low) | (low != high))).any()):
            return True
    return False
