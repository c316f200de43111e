"""Which backend runs, for machines of every kind: what looks at the machine is replaced."""

import os
import re
import subprocess
import sys
import types
import warnings
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pixcontrast import PixelContrastLoss, _triton
from pixcontrast._info_nce import dispatch, operators
from pixcontrast._triton import auto_takes_fused, choose, why_not_fused, why_not_on
from pixcontrast.functional import info_nce

BROKEN_COMPILER = "a first small kernel on cuda:0 failed (RuntimeError: Failed to find C compiler)"
LABELS = torch.arange(6) % 2
LAUNCH_FAILURE = _triton.launch_failure


def anchors_on(device, dtype=torch.float32, width=8):
    """What `choose` looks at, for devices that this machine need not have."""
    return types.SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(4, width))


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with one new CUDA device and a Triton that works, and nothing remembered."""
    monkeypatch.setattr(_triton, "_warned", set())
    monkeypatch.setattr(_triton, "_launch_failures", {})

    def build(*, capability=(8, 0), import_failure=None, launch_failure=None, interpreted=False):
        monkeypatch.setattr(_triton, "capability", lambda index: capability)
        monkeypatch.setattr(_triton, "import_failure", lambda: import_failure)
        monkeypatch.setattr(_triton, "launch_failure", lambda index: launch_failure)
        monkeypatch.setattr(_triton, "interpreted", lambda: interpreted)
        monkeypatch.setattr(torch.version, "hip", None)

    build()
    return build


@pytest.fixture
def fused_calls(monkeypatch):
    """The tiled form in place of the kernels; the list of the problems it was handed."""
    calls = []

    def compute_losses(problem):
        if problem.form == "triton":
            calls.append(problem)
        return operators.compute_losses(replace(problem, form="tiled"))

    monkeypatch.setattr(dispatch, "compute_losses", compute_losses)
    return calls


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 512])
def test_auto_takes_triton_on_new_cuda_devices(machine, capability, dtype, width):
    machine(capability=capability)
    anchors = anchors_on("cuda:0", dtype, width)
    assert why_not_fused(anchors) is None
    assert choose("auto", anchors) == "triton"
    assert choose("triton", anchors) == "triton"


LIMITS = {
    "an old card": ({"capability": (7, 5)}, anchors_on("cuda:0"), RuntimeError, "8.0 or newer; got 7.5"),
    "an older card": ({"capability": (6, 1)}, anchors_on("cuda:0"), RuntimeError, "got 6.1"),
    "no such device": ({"capability": None}, anchors_on("cuda:3"), RuntimeError, "there is none"),
    "the CPU": ({}, anchors_on("cpu"), RuntimeError, "CUDA device, or the CPU under TRITON_INTERPRET=1; got cpu"),
    "Metal": ({}, anchors_on("mps"), RuntimeError, "got mps"),
    "Metal, interpreted": ({"interpreted": True}, anchors_on("mps"), RuntimeError, "got mps"),
    "float64": ({}, anchors_on("cuda:0", torch.float64), ValueError, "float32, bfloat16, float16; got float64"),
    "wide": ({}, anchors_on("cuda:0", width=513), ValueError, "D up to 512; got D = 513"),
}  # fmt: skip
each_limit = pytest.mark.parametrize(
    ("kind", "anchors", "error", "words"), LIMITS.values(), ids=LIMITS
)


@each_limit
def test_auto_passes_over_limits_in_silence(machine, kind, anchors, error, words):
    # Warnings are errors here. A fault beside the limit is none that matters.
    for fault in ({}, {"launch_failure": BROKEN_COMPILER}):
        machine(**kind, **fault)
        assert choose("auto", anchors) == "tiled"
        assert words in why_not_fused(anchors)


@each_limit
def test_triton_raises_for_limits(machine, kind, anchors, error, words):
    machine(**kind)
    with pytest.raises(error, match=re.escape(words)) as caught:
        choose("triton", anchors)
    assert str(caught.value).startswith('backend: "triton" cannot run here: ')
    assert 'use "auto"' in str(caught.value)


def test_an_amd_gpu_is_no_cuda_device(machine, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choose("auto", anchors_on("cuda:0")) == "tiled"
    with pytest.raises(RuntimeError, match="got an AMD GPU"):
        choose("triton", anchors_on("cuda:0"))


FAULTS = {
    "missing": {"import_failure": "Triton cannot be imported (ModuleNotFoundError: no triton)"},
    "broken": {"launch_failure": BROKEN_COMPILER},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_auto_warns_of_a_fault_once(machine, fault):
    machine(**fault)
    (reason,) = fault.values()
    with pytest.warns(RuntimeWarning) as caught:
        assert choose("auto", anchors_on("cuda:0")) == "tiled"
    assert len(caught) == 1
    assert 'backend="auto" takes "tiled"' in str(caught[0].message)
    assert reason in str(caught[0].message)
    for _ in range(2):
        assert choose("auto", anchors_on("cuda:0")) == "tiled"  # a second warning is an error


def test_auto_warns_of_each_fault(machine):
    for reason in ("one", "another"):
        machine(launch_failure=reason)
        with pytest.warns(RuntimeWarning, match=reason):
            choose("auto", anchors_on("cuda:0"))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_triton_raises_for_a_fault(machine, fault):
    machine(**fault)
    (reason,) = fault.values()
    with pytest.raises(RuntimeError, match=re.escape(reason)):
        choose("triton", anchors_on("cuda:0"))


def test_interpreted_kernels_run_on_the_cpu_for_those_who_ask(machine):
    machine(interpreted=True, launch_failure="not to be tried on the CPU")
    assert choose("triton", anchors_on("cpu")) == "triton"
    assert choose("auto", anchors_on("cpu")) == "tiled"


def test_auto_takes_no_interpreted_kernels_on_cuda(machine):
    machine(interpreted=True)
    assert choose("auto", anchors_on("cuda:0")) == "tiled"
    assert choose("triton", anchors_on("cuda:0")) == "triton"


def test_a_loss_that_needs_a_missing_triton_is_not_built(machine):
    assert PixelContrastLoss(backend="triton").backend == "triton"
    machine(**FAULTS["missing"])
    with pytest.raises(RuntimeError, match=r"^backend: .*ModuleNotFoundError"):
        PixelContrastLoss(backend="triton")
    assert PixelContrastLoss(backend="auto").backend == "auto"


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_other_backends_ask_nothing_of_the_machine(machine, backend):
    machine(**FAULTS["missing"])
    assert choose(backend, anchors_on("cuda:0", torch.float64, 600)) == backend


# info_nce runs what was chosen


def test_info_nce_by_triton(machine, fused_calls):
    machine(interpreted=True)
    anchors = torch.randn(6, 4)
    expected = info_nce(anchors, LABELS, backend="tiled")
    assert not fused_calls
    assert torch.equal(info_nce(anchors, LABELS, backend="triton"), expected)
    assert len(fused_calls) == 1
    info_nce(anchors, LABELS, backend="dense")
    info_nce(anchors, LABELS)
    assert len(fused_calls) == 1


def test_info_nce_by_auto(machine, fused_calls, monkeypatch):
    monkeypatch.setattr(
        _triton, "auto_takes_fused", lambda kind, index: (kind, index) == ("cpu", None)
    )
    info_nce(torch.randn(6, 4), LABELS)
    assert len(fused_calls) == 1


def test_the_warning_points_at_the_caller(machine):
    machine(**FAULTS["broken"])
    with FakeTensorMode(), pytest.warns(RuntimeWarning) as caught:
        info_nce(torch.ones(6, 4, device="cuda"), torch.ones(6, device="cuda", dtype=torch.int64))
    assert caught[0].filename == __file__


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", ["auto", "tiled", "dense"])
def test_the_choice_in_a_whole_graph(machine, backend):
    compiled = torch.compile(info_nce, fullgraph=True, backend="aot_eager")
    anchors = torch.randn(6, 4)
    actual = compiled(anchors, LABELS, backend=backend)
    torch.testing.assert_close(actual, info_nce(anchors, LABELS, backend=backend))


@pytest.mark.usefixtures("_fresh_compiler")
def test_triton_in_a_whole_graph(machine, fused_calls):
    machine(interpreted=True)
    compiled = torch.compile(
        lambda anchors: info_nce(anchors, LABELS, backend="triton"),
        fullgraph=True,
        backend="aot_eager",
    )
    anchors = torch.randn(6, 4)
    torch.testing.assert_close(compiled(anchors), info_nce(anchors, LABELS))


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("by_name", [True, False])
def test_the_probe_while_a_compiler_traces(monkeypatch, launch_failure, by_name, works):
    """It is launched once, and its result is a constant in the graph."""
    launched = []

    def launch(index):
        launched.append(index)
        if not works:
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(_triton, "launch_failure", launch_failure)
    monkeypatch.setattr(_triton, "_launch_probe", launch)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice_or_thrice(x):
        runs = why_not_on("cuda", 0) is None if by_name else auto_takes_fused("cuda", 0)
        return x * 2 if runs else x * 3

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [twice_or_thrice(torch.ones(2)).tolist() for _ in range(3)]
    assert results == 3 * [[2.0, 2.0] if works else [3.0, 3.0]]
    assert launched == [0]
    said = [str(warning.message) for warning in caught]
    assert sum("C compiler" in message for message in said) == (0 if works or by_name else 1)


# the probe


@pytest.fixture
def launch_failure():
    """The function itself, which `machine` replaces."""
    return LAUNCH_FAILURE


@pytest.fixture
def launched(monkeypatch):
    """No kernel is launched; the list of the devices on which one would have been."""
    indices = []
    monkeypatch.setattr(_triton, "_launch_probe", indices.append)
    return indices


def test_the_probe_is_launched_once_for_each_device(launch_failure, launched):
    for index in (0, 1, None, 1, 0):
        assert launch_failure(index) is None
    assert launched == [0, 1]


def test_the_probe_keeps_what_was_raised(monkeypatch, launch_failure):
    def fail(index):
        raise RuntimeError("Failed to find\n   C compiler " + 1000 * "please " + "install one")

    monkeypatch.setattr(_triton, "_launch_probe", fail)
    reason = launch_failure(0)
    assert "cuda:0 failed (RuntimeError: Failed to find C compiler please" in reason
    assert len(reason) < 400
    monkeypatch.setattr(_triton, "_launch_probe", lambda index: None)
    assert launch_failure(0) == reason


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
    ],
    ids=["PyTorch's", "Triton's"],
)
def test_lack_of_memory_is_no_fault_of_triton(monkeypatch, launch_failure, error):
    def fail(index):
        raise error

    monkeypatch.setattr(_triton, "_launch_probe", fail)
    assert launch_failure(0) is None


def test_no_probe_in_a_capture(monkeypatch, launch_failure, launched):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert launch_failure(0) is None
    assert launched == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert launch_failure(0) is None
    assert launched == [0]  # nothing had been remembered


def test_the_probe_runs_in_any_mode_of_its_caller():
    """Its kernel takes no tensor, and nothing is drawn at random."""
    pytest.importorskip("triton")
    program = """
import contextlib, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from pixcontrast import _triton

launches = []
kind = type(_triton.probe_kernel())
launcher = kind.__getitem__
def launch(*given):
    return lambda *args, **options: launches.append(args) or launcher(*given)(*args, **options)
kind.__getitem__ = launch
torch.cuda.device = lambda index: contextlib.nullcontext()
state = torch.get_rng_state()
with torch.no_grad(), torch.autocast("cpu"), FakeTensorMode():
    print(_triton.launch_failure(0))
_triton._launch_failures.clear()
torch.func.vmap(lambda x: print(_triton.launch_failure(0)) or x)(torch.ones(2))
print(launches, torch.equal(torch.get_rng_state(), state))
"""
    lines = run_python(program, TRITON_INTERPRET="1")
    assert lines == ["None", "None", "[(2,), (2,)] True"]


# what looks at the machine, unreplaced


def run_python(program, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**inherited, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()


def test_without_triton():
    program = """
import sys, torch
sys.modules["triton"] = None
from pixcontrast import PixelContrastLoss
from pixcontrast.functional import info_nce
from pixcontrast import _triton
anchors = torch.eye(4, requires_grad=True)
labels = torch.tensor([0, 0, 1, 1])
info_nce(anchors, labels, backend="auto").backward()
print(_triton.interpreted())
for wrong in (
    lambda: info_nce(anchors, labels, backend="triton"),
    lambda: PixelContrastLoss(backend="triton"),
):
    try:
        wrong()
    except RuntimeError as error:
        print(error)
"""
    lines = run_python(program, TRITON_INTERPRET="1")
    assert lines[0] == "False"
    assert len(lines) == 3
    for line in lines[1:]:
        assert line.startswith('backend: "triton" cannot run here: Triton cannot be imported')
        assert "ModuleNotFoundError" in line


def test_a_triton_that_raises_when_imported(tmp_path):
    (tmp_path / "triton.py").write_text("raise OSError('libcuda.so.1 is of another system')")
    program = """
import warnings
from pixcontrast import _triton
_triton.capability = lambda index: (9, 0)
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    print(*(_triton.auto_takes_fused("cuda", index) for index in (0, 1, 0)))
print(*(warning.message for warning in caught))
"""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    lines = run_python(program, PYTHONPATH=path)
    assert lines[0] == "False False False"
    assert lines[1].count("OSError: libcuda.so.1 is of another system") == 1


def test_auto_on_the_cpu_imports_no_triton():
    program = """
import sys, torch
from pixcontrast._triton import choose
print(choose("auto", torch.eye(4)), "triton" in sys.modules, "torch._dynamo" in sys.modules)
"""
    assert run_python(program, TRITON_INTERPRET="1") == ["tiled False False"]


@pytest.mark.parametrize(
    ("value", "expected"), [("1", True), ("true", True), ("0", False), ("", False), (None, False)]
)
def test_the_interpreter_is_read_as_triton_reads_it(value, expected, monkeypatch):
    pytest.importorskip("triton", minversion="3.4")
    monkeypatch.undo()
    if value is None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    else:
        monkeypatch.setenv("TRITON_INTERPRET", value)
    assert _triton.interpreted() is expected


def test_the_interpreter_before_triton_had_knobs(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "triton", types.ModuleType("triton"))
    for value, expected in (("1", True), ("0", False), ("true", False)):
        monkeypatch.setenv("TRITON_INTERPRET", value)
        assert _triton.interpreted() is expected


def test_a_device_that_is_not_there_has_no_capability(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 9))
    assert _triton.capability(0) == _triton.capability(None) == (8, 9)
    assert _triton.capability(1) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_this_cuda_device(monkeypatch):
    monkeypatch.undo()
    anchors = torch.ones(6, 4, device="cuda")
    new = torch.cuda.get_device_capability() >= (8, 0)
    assert choose("auto", anchors) == ("triton" if new else "tiled")
