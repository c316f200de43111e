"""Two ranks on one card: NCCL where the driver lets two processes share it, else gloo.

Gloo carries tensors of a GPU through the host, so that there are two paths. They agree with each
other, and with one rank that has the whole batch.
"""

from __future__ import annotations

import queue
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from on_gpu import BACKEND, DEVICE, needs_gpu
from torch import distributed, multiprocessing

from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss, RandomAnchorSampler

pytestmark = needs_gpu

SECONDS = 120
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
    """Losses of some steps, and the last one's gradient; rank r of W has its part of each batch."""
    # The kernels select on one device: over shards "auto" takes the tiled form.
    backend = "auto" if negative_sampler is not None else BACKEND
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
        backend=backend,
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
    except Exception as error:  # told, so that the parent can say what happened
        answers.put((rank, f"{type(error).__name__}: {error}"))


def run_two(backend: str, folder: Path) -> dict[str, list[torch.Tensor]] | str:
    """The mean over both ranks of losses, and of the gradient; or why there is none."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = [
        context.Process(target=_serve, args=(r, backend, str(folder / backend), answers))
        for r in range(2)
    ]
    for process in processes:
        process.start()
    try:
        said = dict(answers.get(timeout=SECONDS) for _ in processes)
    except queue.Empty:
        return "a rank has not answered"
    finally:
        for process in processes:
            process.join(timeout=10)
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


@pytest.mark.timeout(4 * SECONDS)
def test_two_ranks_on_one_card(tmp_path):
    alone = {name: train(None, 0, 1, **case) for name, case in CASES.items()}
    by_gloo = run_two("gloo", tmp_path)
    assert not isinstance(by_gloo, str), by_gloo
    for name in CASES:
        assert_alike(by_gloo[name], alone[name])
    if DEVICE.type != "cuda":
        return
    by_nccl = run_two("nccl", tmp_path)
    if isinstance(by_nccl, str):
        assert "NCCL" in by_nccl or "Dist" in by_nccl, by_nccl
        pytest.skip(f"NCCL does not take two processes on one card here: {by_nccl[:200]}")
    for name in CASES:
        assert_alike(by_nccl[name], alone[name])
