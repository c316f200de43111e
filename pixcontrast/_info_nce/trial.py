"""Whether the fused kernels run on a CUDA device, found out by running them once.

Triton can be imported and yet not run: its first launch wants a C compiler, and a driver that is
new enough.
"""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Callable

import torch

from pixcontrast._info_nce.problem import Piece, Problem

_lock = threading.Lock()
_failures: dict[torch.device, str | None] = {}


def launch_failure(index: int | None) -> str | None:
    """Why a first small call on this CUDA device failed, or None; it is made once."""
    device = torch.device("cuda", index or 0)
    with _lock:
        if device not in _failures:
            if _must_not_launch():
                return None  # and not remembered
            _failures[device] = _in_a_thread(lambda: _failure_of_trial(device))
        return _failures[device]


def in_one_line(error: Exception) -> str:
    said = textwrap.shorten(str(error), width=300, placeholder=" ...")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _must_not_launch() -> bool:
    """In a CUDA graph's capture launches would be recorded; a backward would wait for itself."""
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return capturing or torch._C._current_graph_task_id() != -1


def _in_a_thread(work: Callable[[], str | None]) -> str | None:
    """The result of work that must not see the modes of its caller.

    Grad mode, autocast, a compiler's fake tensors, the transforms of torch.func and the current
    stream are those of a thread.
    """
    results: list[str | None] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


def _failure_of_trial(device: torch.device) -> str | None:
    try:
        _run_fused(device)
    except torch.OutOfMemoryError:
        return None  # says nothing of Triton; the call itself will meet it again
    except Exception as error:  # of the compiler, the driver, or Triton
        return f"a first small call on {device} failed ({in_one_line(error)})"
    return None


def _run_fused(device: torch.device) -> None:
    """Forward and backward on 16 vectors of 8; raises what the kernels raise.

    Nothing is drawn at random, and nothing read back, so the host does not wait.
    """
    from pixcontrast._info_nce.autograd import fused_losses

    anchors = torch.eye(16, 8, device=device, requires_grad=True)
    labels = torch.arange(16, device=device) % 2
    problem = Problem(
        anchors=anchors,
        labels=labels,
        pieces=(Piece(anchors, labels, is_anchors=True, first_column=0),),
        temperature=1.0,
        denominator="negatives",
        mining=None,
        seed=None,
        product_dtype=torch.float32,
        compute_dtype=torch.float32,
    )
    losses, _ = fused_losses(problem)
    torch.autograd.grad(losses.sum(), anchors)
