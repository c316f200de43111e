"""Checks of a whole training step with the kernels: no waits, the same bits, and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks._gpu.smoke_products import Check, CheckError, Setting, compare, require_same_bits
from benchmarks._measure.command import matmul_precision
from pixcontrast import HardNegativeSampler, MemoryBank, PixelContrastLoss

DIM = 64
MINING = HardNegativeSampler(strategy="semi-hard", ratio=0.3, num_negatives=64, num_positives=16)
WARM_STEPS = 2
"""The bank then has entries, kernels are compiled, and libraries have their workspaces."""
STEP_BOUND = 1e-4
"""Of loss and gradient in float32, whose bank holds vectors rounded to float32."""


class SkippedError(Exception):
    """The check cannot run here, which says nothing about the results."""


class Step:
    """One training step of `PixelContrastLoss` with a bank, from an embedding map on."""

    def __init__(self, setting: Setting, mining: HardNegativeSampler | None, backend: str) -> None:
        generator = torch.Generator().manual_seed(0)
        size, classes, device = setting.map_size, setting.classes, setting.device
        emb = torch.randn(2, DIM, size, size, generator=generator)
        labels = torch.randint(-1, classes, (2, 2 * size, 2 * size), generator=generator)
        logits = torch.randn(2, classes, size, size, generator=generator)
        dtype = torch.float64 if backend == "dense" else torch.float32
        self.emb = emb.to(device, dtype).requires_grad_()
        self.labels = labels.to(device)
        self.logits = logits.to(device)
        bank = MemoryBank(classes, DIM, pixel_slots=setting.slots, region_slots=setting.slots)
        self.bank = bank.to(device)
        self.loss = PixelContrastLoss(
            bank=self.bank,
            negative_sampler=mining,
            backend=backend,  # type: ignore[arg-type]
        )

    def __call__(self, seed: int | None = None) -> list[Tensor]:
        """The loss, the gradient of the embeddings, and the buffers of the bank."""
        if seed is not None:
            torch.manual_seed(seed)
        loss = self.loss(self.emb, self.labels, self.logits)
        (gradient,) = torch.autograd.grad(loss, self.emb)
        return [loss.detach(), gradient, *self.bank.buffers()]


def step_checks(setting: Setting) -> dict[str, Check]:
    """Every check by its name."""
    checks: dict[str, Check] = {"step, beside float64": partial(_beside_float64, setting)}
    kinds: dict[str, Callable[[Setting, HardNegativeSampler | None], dict[str, float]]] = {
        "no waits": _no_waits,
        "replayed": _replayed,
        "the same bits": _same_bits,
    }
    minings = {"step": None, **({"mined step": MINING} if setting.mined_steps else {})}
    for name, mining in minings.items():
        for kind, check in kinds.items():
            checks[f"{name}, {kind}"] = partial(check, setting, mining)
    return checks


def _beside_float64(setting: Setting) -> dict[str, float]:
    with matmul_precision("highest"):
        steps = [Step(setting, None, backend) for backend in (setting.backend, "dense")]
        _warm(steps)
        ours, truth = (step(7)[:2] for step in steps)
    return compare(ours, truth, [STEP_BOUND, STEP_BOUND])


def _no_waits(setting: Setting, mining: HardNegativeSampler | None) -> dict[str, float]:
    """PyTorch raises where an operation makes the host wait for the device."""
    _require_cuda(setting, "PyTorch sees waits for a CUDA device alone")
    step = Step(setting, mining, setting.backend)
    _warm([step])
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, gradient, *_ = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if not torch.isfinite(gradient).all():
        raise CheckError("the gradient is not finite")
    return {}


def _replayed(setting: Setting, mining: HardNegativeSampler | None) -> dict[str, float]:
    """A replay is the eager step on the same draws, to the bit, and draws anew each time."""
    _require_cuda(setting, "a CUDA graph needs a CUDA device")
    captured, eager = Step(setting, mining, setting.backend), Step(setting, mining, setting.backend)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _warm([captured, eager])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = captured()
    gradients = []
    for seed in (11, 12):
        torch.manual_seed(seed)
        graph.replay()
        replayed = [result.clone() for result in made]
        require_same_bits(replayed, eager(seed))
        gradients.append(replayed[1])
    if torch.equal(*gradients):
        raise CheckError("two replays with other seeds drew the same anchors")
    return {}


def _same_bits(setting: Setting, mining: HardNegativeSampler | None) -> dict[str, float]:
    steps = [Step(setting, mining, setting.backend) for _ in range(2)]
    _warm(steps)
    require_same_bits(*(step(7) for step in steps))
    return {}


def _warm(steps: list[Step]) -> None:
    for step in steps:
        for seed in range(WARM_STEPS):
            step(seed)
    if steps[0].emb.is_cuda:
        torch.cuda.synchronize()


def _require_cuda(setting: Setting, reason: str) -> None:
    if setting.device.type != "cuda":
        raise SkippedError(reason)
