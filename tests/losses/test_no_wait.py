"""A training step as a GPU sees it: nothing that the host would have to wait for."""

import pytest
import torch
from steps import OPTIONS, Step
from torch._subclasses.fake_tensor import FakeTensorMode
from waits import HostAsks, Launches, WaitError

each_option = pytest.mark.parametrize("options", OPTIONS, ids=range(len(OPTIONS)))


@each_option
def test_shapes_depend_on_no_value(options):
    with FakeTensorMode():
        step = Step(backend="tiled", **options)
        step(step.generator)
        made = step(step.generator)
    assert made[1].shape == step.emb.shape


@pytest.fixture
def on_a_gpu(unseen_values, monkeypatch):
    """The path that tensors on a GPU take."""
    from pixcontrast import _check

    monkeypatch.setattr(_check, "values_can_be_seen", lambda tensor: False)


@pytest.mark.usefixtures("on_a_gpu")
@each_option
def test_the_host_asks_for_nothing(options):
    step = Step(backend="tiled", **options)
    called = []
    for all_labels in (None, 1, -1):
        if all_labels is not None:
            step.labels.fill_(all_labels)
        with HostAsks(), Launches() as launches:
            step(step.generator)
        called.append(launches.names)
    # One sequence of operations, whatever the values: what a CUDA graph can hold.
    assert called[0] == called[1] == called[2]
    assert called[0]


@pytest.mark.usefixtures("on_a_gpu")
@each_option
def test_the_same_result_as_where_values_are_seen(options, monkeypatch):
    torch.manual_seed(3)
    unseen = Step(backend="tiled", **options)
    results = [unseen()]
    monkeypatch.undo()
    torch.manual_seed(3)
    seen = Step(backend="tiled", **options)
    results.append(seen())
    for actual, expected in zip(*results, strict=True):
        if expected is not None:
            torch.testing.assert_close(actual, expected, rtol=2e-5, atol=1e-6)
    if seen.bank is not None:
        for actual, expected in zip(unseen.bank.buffers(), seen.bank.buffers(), strict=True):
            torch.testing.assert_close(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_fill_(x > 0, 1).unique(),
        lambda x: torch.tensor([1.0, 2.0]),
        lambda x: x.new_tensor([1.0]),
        lambda x: x[[0, 1]],
        lambda x: torch.bincount(x.long()),
    ],
)
def test_waits_are_seen(ask):
    with pytest.raises(WaitError), HostAsks(), Launches():
        ask(torch.arange(4.0))
