"""`python -m pixcontrast`."""

import importlib.util
import os
import re
import subprocess
import sys
import types
from dataclasses import replace

import pytest
import torch

import pixcontrast
from pixcontrast import __main__ as report
from pixcontrast import _triton
from pixcontrast._info_nce import dispatch, operators
from pixcontrast._info_nce.results import Losses

CPU = torch.device("cpu")


def run_module(**environment):
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "pixcontrast"],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
    )


def rows(output):
    """(device, backend) → the lines of the table."""
    table = {}
    for line in output.split("gradient", 1)[1].splitlines():
        cells = line.split()
        if len(cells) > 3 and cells[1] in report.FORMS:
            table.setdefault((cells[0], cells[1]), []).append(line)
    return table


def test_as_a_command():
    done = run_module(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"pixcontrast +{re.escape(pixcontrast.__version__)}\n", done.stdout)
    assert re.search(rf"torch +{re.escape(torch.__version__)}\n", done.stdout)
    for name in ("triton", "Python", "CUDA runtime"):
        assert re.search(rf"^  {name} +\S", done.stdout, re.MULTILINE)
    assert re.search(r"cpu .*\d+ threads", done.stdout)
    assert 'backend="auto" takes tiled (triton cannot run: ' in done.stdout
    table = rows(done.stdout)
    for form in ("dense", "tiled"):
        lines = table["cpu", form]
        for dtype, line in zip(("float32", "bfloat16", "float16"), lines, strict=True):
            assert re.search(rf"{dtype} +\de-\d\d +\de-\d\d  ok$", line)
    (line,) = table["cpu", "triton"]
    assert "cannot run: " in line
    assert done.stdout.endswith("Every check passed.\n")


@pytest.mark.skipif(
    importlib.util.find_spec("pixcontrast._info_nce.fused.passes") is None
    or importlib.util.find_spec("triton") is None,
    reason="needs the fused kernels and Triton",
)
def test_as_a_command_with_interpreted_kernels():
    done = run_module(CUDA_VISIBLE_DEVICES="", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows(done.stdout)["cpu", "triton"]) == 3
    assert "FAILED" not in done.stdout


@pytest.fixture
def interpreted(monkeypatch):
    """Kernels that run on the CPU: the tiled form stands in for them."""
    monkeypatch.setattr(_triton, "import_failure", lambda: None)
    monkeypatch.setattr(_triton, "interpreted", lambda: True)
    replace_kernels(monkeypatch, tiled_losses)


def tiled_losses(problem):
    return operators.compute_losses(replace(problem, form="tiled"))


def replace_kernels(monkeypatch, losses_of):
    """Another function in place of the kernels."""

    def compute_losses(problem):
        return losses_of(problem) if problem.form == "triton" else tiled_losses(problem)

    monkeypatch.setattr(dispatch, "compute_losses", compute_losses)


def test_interpreted_kernels_are_checked(interpreted, monkeypatch):
    lines = list(report.check_device(CPU))
    assert all(ok for _, ok in lines)
    assert sum("triton" in line for line, _ in lines) == len(report.TOLERANCES)
    assert "takes tiled (triton is interpreted here" in report.describe_choice(CPU)


def wrong_by(loss=0.0, gradient=0.0):
    """The tiled form, with a loss and a gradient that are off by these parts."""

    def losses_of(problem):
        losses, has_positive, _ = tiled_losses(problem)
        losses.register_hook(lambda upstream: upstream * (1 + gradient))
        return Losses(losses + (losses * loss).detach(), has_positive)

    return losses_of


@pytest.mark.parametrize("error", [0.05, -0.05, float("nan"), float("inf")])
@pytest.mark.parametrize("of", ["loss", "gradient"])
def test_a_wrong_backend_fails(interpreted, monkeypatch, capsys, of, error):
    replace_kernels(monkeypatch, wrong_by(**{of: error}))
    monkeypatch.setattr(report, "find_devices", lambda: [CPU])
    assert report.main([]) == 1
    output = capsys.readouterr().out
    table = rows(output)
    assert all("FAILED: expected errors up to" in line for line in table["cpu", "triton"])
    assert all(line.endswith("ok") for line in table["cpu", "tiled"] + table["cpu", "dense"])
    assert output.endswith("A check FAILED.\n")


def test_a_small_error_of_float32_fails(interpreted, monkeypatch):
    replace_kernels(monkeypatch, wrong_by(gradient=1e-3))
    assert not report.compare_with_reference("triton", CPU, torch.float32).ok
    assert report.compare_with_reference("triton", CPU, torch.bfloat16).ok


def test_a_backend_that_raises_fails(interpreted, monkeypatch):
    def losses_of(problem):
        raise RuntimeError("out of\nregisters")

    replace_kernels(monkeypatch, losses_of)
    found = report.compare_with_reference("triton", CPU, torch.float32)
    assert not found.ok
    assert found.failure == "RuntimeError: out of registers"
    lines = [line for line, ok in report.check_device(CPU) if not ok]
    assert len(lines) == 3
    assert all(line.endswith("FAILED: RuntimeError: out of registers") for line in lines)


def test_the_checks_multiply_exactly_and_leave_the_precision_alone(interpreted, monkeypatch):
    seen = []

    def losses_of(problem):
        seen.append(torch.get_float32_matmul_precision())
        return tiled_losses(problem)

    replace_kernels(monkeypatch, losses_of)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert report.compare_with_reference("triton", CPU, torch.float32).ok
        assert seen == ["highest"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("dtype", report.TOLERANCES)
def test_the_tolerances_tell_right_from_wrong(dtype):
    """Right forms stay well inside; an anchor that is its own positive is far outside."""
    tolerance = report.TOLERANCES[dtype]
    for form in ("dense", "tiled"):
        found = report.compare_with_reference(form, CPU, dtype)
        assert max(found.loss_error, found.gradient_error) < tolerance / 3
    anchors, anchor_labels, bank, bank_labels = report.small_case(dtype)
    truth = report.true_loss_and_gradient(dtype)
    with_self = report.info_nce(
        anchors, anchor_labels, (anchors, bank), (anchor_labels, bank_labels)
    )
    assert abs(float(with_self / truth[0]) - 1) > 2 * tolerance


def test_the_small_case_has_everything():
    anchors, anchor_labels, bank, bank_labels = report.small_case(torch.float32)
    assert anchors.shape[1] == bank.shape[1]
    for labels in (anchor_labels, bank_labels):
        assert (labels == 255).any()
        assert (labels < 0).any()
        assert labels[(labels >= 0) & (labels < 255)].unique().numel() == 5


# devices that this machine need not have


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [str(device) for device in report.find_devices()] == ["cpu", "cuda:0", "cuda:1", "mps"]


def test_a_cuda_device_is_described(monkeypatch):
    properties = types.SimpleNamespace(name="NVIDIA T4", major=7, minor=5, total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    described = report.describe_device(torch.device("cuda:0"))
    assert described == "NVIDIA T4, compute capability 7.5, 16.0 GiB"
    assert report.describe_device(torch.device("mps")) == "Metal"


@pytest.mark.parametrize(
    ("chosen", "reason", "words"),
    [
        ("triton", None, "takes triton"),
        ("tiled", "Triton cannot be imported", "takes tiled (triton cannot run: Triton cannot"),
        ("tiled", None, "takes tiled (triton is interpreted"),
    ],
)
def test_the_choice_is_described(monkeypatch, chosen, reason, words):
    monkeypatch.setattr(report, "choose", lambda backend, anchors: chosen)
    monkeypatch.setattr(report, "why_not_fused", lambda anchors: reason)
    assert words in report.describe_choice(CPU)


def test_a_missing_triton_is_named(monkeypatch):
    monkeypatch.setattr(report, "import_failure", lambda: "Triton cannot be imported (why)")
    assert report.versions()["triton"] == "Triton cannot be imported (why)"


def test_metal_is_not_asked_for_bfloat16():
    assert report.dtypes_of(torch.device("mps")) == [torch.float32, torch.float16]
    assert report.dtypes_of(CPU) == report.dtypes_of(torch.device("cuda:0"))


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        report.main(["--fast"])
    assert caught.value.code == 2
    assert "--fast" in capsys.readouterr().err
