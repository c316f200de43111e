"""Two ranks on one card give the results of one rank with the whole batch, by gloo and by NCCL.

Gloo copies tensors of a GPU through the host. NCCL may refuse two processes on one card.
"""

from __future__ import annotations

import queue
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from on_gpu import BACKEND, COUNTING, DEVICE, needs_gpu
from torch import distributed, multiprocessing

from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss, RandomAnchorSampler

pytestmark = [*needs_gpu, pytest.mark.ungated("ranks")]

SECONDS = 50
"""For both ranks to start, compile and answer."""
STEPS = 3
CASES = {
    "whole bank": {},
    "bank in shards": {"sharded": True},
    "mining over shards": {
        "sharded": True,
        "negative_sampler": HardNegativeSampler(
            strategy="hardest", num_negatives=20, num_positives=None
        ),
    },
}


def train(group: Any, rank: int, size: int, *, sharded=False, negative_sampler=None) -> list:
    """Losses of some steps, and the gradient of the last; each rank has its part of the batch."""
    slots = 120 // (size if sharded else 1)
    bank = MemoryBank(
        3,
        32,
        pixel_slots=slots,
        region_slots=0,
        pixels_per_image=100,
        sharded=sharded,
        process_group=group,
    )
    loss = PixelContrastLoss(
        anchor_sampler=RandomAnchorSampler(max_anchors=1000, max_views=1000),
        bank=bank,
        gather=True,
        negative_sampler=negative_sampler,
        backend=BACKEND,
        process_group=group,
    ).to(DEVICE)
    results = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        emb = torch.randn(4, 32, 3, 4, generator=generator)
        labels = torch.randint(-1, 3, (4, 3, 4), generator=generator)
        share = slice(4 * rank // size, 4 * (rank + 1) // size)
        emb, labels = emb[share].to(DEVICE).requires_grad_(), labels[share].to(DEVICE)
        value = loss(emb, labels)
        (gradient,) = torch.autograd.grad(value, emb)
        results.append(value.detach().cpu())
    return [torch.stack(results), gradient.cpu()]


def _serve(rank: int, backend: str, rendezvous: str, answers: Any) -> None:
    torch.set_num_threads(1)
    if DEVICE.type == "cuda":
        torch.cuda.set_device(0)
    try:
        distributed.init_process_group(
            backend,
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=SECONDS / 2),
        )
        made = {name: train(None, rank, 2, **case) for name, case in CASES.items()}
        answers.put((rank, {name: [t.numpy() for t in case] for name, case in made.items()}))
    except Exception as error:  # The parent process reports it.
        answers.put((rank, f"{type(error).__name__}: {error}"))


def run_two(backend: str, folder: Path) -> dict[str, list[torch.Tensor]] | str:
    """The mean over both ranks of losses and of the gradient, or the error of a rank."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=_serve, args=(r, backend, str(folder / backend), answers))
        for r in range(2)
    ]
    for process in processes:
        process.start()
    try:
        end = time.monotonic() + SECONDS
        said = dict(answers.get(timeout=max(0.0, end - time.monotonic())) for _ in processes)
    except queue.Empty:
        return "a rank has not answered"
    finally:
        for process in processes:
            process.join(timeout=1)
            process.kill()
    failures = [answer for answer in said.values() if isinstance(answer, str)]
    if failures:
        return failures[0]
    made = {}
    for name in CASES:
        losses, gradients = (
            [torch.from_numpy(said[rank][name][part]) for rank in range(2)] for part in range(2)
        )
        made[name] = [torch.stack(losses).mean(dim=0), torch.cat(gradients) / 2]
    return made


def assert_alike(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        error = float((one - other).abs().max() / other.abs().max())
        assert error < 1e-5


@pytest.fixture(scope="module")
def alone():
    """The results of one rank with the whole batch."""
    return {name: train(None, 0, 1, **case) for name, case in CASES.items()}


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_two_ranks_on_one_card(backend, alone, tmp_path):
    if backend == "nccl" and DEVICE.type != "cuda":
        pytest.skip("NCCL needs a CUDA device")
    if COUNTING:
        return
    together = run_two(backend, tmp_path)
    if backend == "nccl" and isinstance(together, str):
        assert "NCCL" in together or "Dist" in together, together
        pytest.skip(f"NCCL does not accept two processes on one card here: {together[:200]}")
    assert not isinstance(together, str), together
    for name in CASES:
        assert_alike(together[name], alone[name])
