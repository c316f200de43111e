"""Whatever is raised in a step: bank and arguments are as before, or wholly updated."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import pixcontrast
from pixcontrast import (
    HardAnchorSampler,
    HardNegativeSampler,
    MemoryBank,
    PixelContrastLoss,
    RegionContrastLoss,
)

PACKAGE = Path(pixcontrast.__file__).parent
FILES = ("_loss/base.py", "bank.py", "_bank/ring.py")
"""Where a step is taken and what is written; elsewhere nothing of a bank is changed."""


class FaultAt(TorchDispatchMode):
    """Raises at the k-th operation, before it is made or after."""

    def __init__(self, number, error, after=False):
        super().__init__()
        self.left, self.error, self.after = number, error, after

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise self.error("no more memory")
        result = func(*args, **(kwargs or {}))
        if self.left == 0:
            raise self.error("no more memory")
        return result


class InterruptAt:
    """Raises KeyboardInterrupt at the k-th line of `FILES`, or instruction of the last of them."""

    def __init__(self, number):
        self.left = number

    def __enter__(self):
        self._before = sys.gettrace()  # coverage may be measured
        sys.settrace(self._enter)

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _enter(self, frame, event, argument):
        path = Path(frame.f_code.co_filename)
        name = path.relative_to(PACKAGE).as_posix() if path.is_relative_to(PACKAGE) else None
        if name not in FILES:
            return None
        frame.f_trace_opcodes = name == FILES[-1]
        return self._step

    def _step(self, frame, event, argument):
        if event in ("line", "opcode"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._step


class Scene:
    """A loss with a bank that is partly full, and its next batch."""

    def __init__(self, form=PixelContrastLoss, mining=None):
        generator = torch.Generator().manual_seed(0)
        self.bank = MemoryBank(3, 4, pixel_slots=7, region_slots=3, pixels_per_image=2)
        for buffer, value in zip(self.bank.buffers(), FILLED, strict=True):
            buffer.copy_(value)
        self.loss = form(
            bank=self.bank, anchor_sampler=HardAnchorSampler(max_anchors=9), negative_sampler=mining
        )
        self.emb, self.labels = self.batch(generator)
        self.emb.requires_grad_()

    @staticmethod
    def batch(generator):
        emb = torch.randn(2, 4, 3, 3, generator=generator)
        return emb, torch.randint(0, 3, (2, 3, 3), generator=generator)

    def step(self):
        generator = torch.Generator().manual_seed(5)
        loss = self.loss(self.emb, self.labels, self.labels.flip(0), generator=generator)
        loss.backward()
        return loss

    def state(self):
        return [buffer.clone() for buffer in self.bank.buffers()]

    def arguments(self):
        return [self.emb.detach().clone(), self.labels.clone()]


def filled():
    bank = MemoryBank(3, 4, pixel_slots=7, region_slots=3, pixels_per_image=2)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        bank.update(*Scene.batch(generator), generator=generator)
    return list(bank.buffers())


FILLED = filled()
# A step has hundreds of operations and lines: a plain run takes some, `pytest -m slow` all.
every_so_many = pytest.mark.parametrize(
    "every", [7, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)


def same(first, second):
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def states_after_faults(make_fault, every, **options):
    """For each k: whether the step ended, and whether the bank is as before or wholly updated."""
    whole = Scene(**options)
    whole.step()
    for tries, number in enumerate(itertools.count(1, every)):
        scene = Scene(**options)
        before, arguments = scene.state(), scene.arguments()
        ended = False
        try:
            with make_fault(number):
                scene.step()
                ended = True
        except (RuntimeError, KeyboardInterrupt):
            pass
        as_before, updated = same(scene.state(), before), same(scene.state(), whole.state())
        assert same(scene.arguments(), arguments)
        yield number, as_before, updated
        if ended:
            return
        if as_before and tries % 10 == 0:  # tried again, it comes to the same
            scene.step()
            assert same(scene.state(), whole.state())


@every_so_many
@pytest.mark.parametrize(
    ("error", "after"),
    [(torch.OutOfMemoryError, False), (KeyboardInterrupt, True)],
    ids=["no memory for it", "an interrupt after it"],
)
def test_an_error_at_any_operation(error, after, every):
    seen = list(states_after_faults(lambda number: FaultAt(number, error, after), every))
    assert all(as_before or updated for _, as_before, updated in seen)
    assert len(seen) > 200 / every
    assert sum(as_before for _, as_before, _ in seen) > 100 / every
    assert seen[-1][2]


@every_so_many
@pytest.mark.parametrize(
    "options",
    [
        {"form": RegionContrastLoss},
        {"mining": HardNegativeSampler(num_negatives=2, num_positives=1)},
    ],
    ids=["regions", "mined"],
)
def test_memory_runs_out_in_other_losses(options, every):
    seen = list(
        states_after_faults(
            lambda number: FaultAt(number, torch.OutOfMemoryError), every, **options
        )
    )
    assert all(as_before or updated for _, as_before, updated in seen)


@every_so_many
def test_an_interrupt_at_any_line(every):
    """And between instructions of the file that writes."""
    seen = list(states_after_faults(InterruptAt, every))
    assert all(as_before or updated for _, as_before, updated in seen)
    assert len(seen) > 500 / every
    assert seen[-1][2]


@pytest.mark.parametrize("kind", ["pre", "forward", "backward", "gradient"])
def test_an_exception_in_a_hook(kind):
    scene, whole = Scene(), Scene()
    whole.step()
    before = scene.state()

    def fail(*_):
        raise ValueError("a hook failed")

    if kind == "pre":
        scene.loss.register_forward_pre_hook(fail)
    elif kind == "forward":
        scene.loss.register_forward_hook(fail)
    elif kind == "backward":
        scene.loss.register_full_backward_hook(fail)
    else:
        scene.emb.register_hook(fail)
    with pytest.raises(ValueError, match="a hook failed"):
        scene.step()
    assert same(scene.state(), before if kind == "pre" else whole.state())


def test_a_sampler_that_fails():
    scene = Scene()
    before = scene.state()

    def fail(*_, **__):
        raise ValueError("no sample")

    scene.loss.anchor_sampler = fail
    with pytest.raises(ValueError, match="no sample"):
        scene.step()
    assert same(scene.state(), before)
