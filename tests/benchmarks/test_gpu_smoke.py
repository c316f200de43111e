"""The checks of a GPU run before anything is timed: what they find, and how they say it."""

import json

import pytest
import torch

from benchmarks._gpu import smoke, smoke_products, smoke_steps
from benchmarks._gpu.launch_calls import launch_calls
from benchmarks._gpu.precompile import NOT_FINISHED
from benchmarks._gpu.precompile import main as precompile
from benchmarks._gpu.smoke_products import CheckError, Setting, compare
from benchmarks._ways.formulas import public_loss

TILED = Setting(
    device=torch.device("cpu"), backend="tiled", modes=("bf16", "tf32"), dims=(16,), anchors=20,
    entries=33, many=40, classes=3, map_size=4, slots=5,
)  # fmt: skip


@pytest.fixture
def tiled(monkeypatch):
    """The checks on the CPU, of a form that needs no interpreter."""
    monkeypatch.setattr(smoke.Setting, "of", lambda rehearse: TILED)


def run_smoke(folder, *options):
    assert smoke.main(["--out", str(folder), *options]) == 0
    return json.loads((folder / "smoke.json").read_text())


def test_every_check_of_a_right_form_passes(tiled, tmp_path, capsys):
    record = run_smoke(tmp_path)
    assert (record["correct"], record["failed"]) == (True, [])
    statuses = {name: one["status"] for name, one in record["checks"].items()}
    skipped = {name for name, status in statuses.items() if status.startswith("skipped")}
    assert skipped == {
        f"{kind}step, {what}" for kind in ("", "mined ") for what in ("no waits", "replayed")
    }
    assert {status for name, status in statuses.items() if name not in skipped} == {"right"}
    assert len(statuses) == 2 * (4 + 2) + 1 + 1 + 2 * 3
    assert set(record["checks"]["bf16, D = 16, entries"]["errors"]) == {
        "loss", "anchors", "entries"
    }  # fmt: skip
    assert "bf16, D = 16, bank: right" in capsys.readouterr().out


def test_a_wrong_loss_is_found_and_named(tiled, tmp_path, monkeypatch):
    def off_by_a_little(*arguments):
        loss = public_loss(*arguments)
        return loss * 1.001 if arguments[4] == "tiled" else loss

    monkeypatch.setattr(smoke_products, "public_loss", off_by_a_little)
    record = run_smoke(tmp_path)
    assert record["correct"] is False
    names = [name.partition(": wrong")[0] for name in record["failed"]]
    # TF32 and bfloat16 gradients bear no closer look; a bfloat16 loss and float32 do.
    assert names == [f"bf16, D = 16, {kind}" for kind in ("bank", "entries", "itself")] + [
        "float32, D = 16, bank, mined"
    ]


def test_other_bits_are_found(tiled, tmp_path, monkeypatch):
    runs = iter(range(10_000))

    def drifting(*arguments):
        return public_loss(*arguments) * (1 + 1e-6 * (next(runs) % 7))

    monkeypatch.setattr(smoke_products, "public_loss", drifting)
    failed = run_smoke(tmp_path)["failed"]
    assert {name.rpartition(": wrong")[0] for name in failed} >= {
        f"{mode}, D = 16, {kind}, the same bits"
        for mode in ("bf16", "tf32") for kind in ("bank", "itself")
    }  # fmt: skip
    assert any("elements differ" in name for name in failed)


def test_other_bits_of_a_step_are_found(tiled, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "manual_seed", lambda seed: torch.seed())
    failed = run_smoke(tmp_path)["failed"]
    assert [name.partition(": ")[0] for name in failed][-2:] == [
        "step, the same bits", "mined step, the same bits"
    ]  # fmt: skip


def test_a_check_that_raises_is_wrong_and_the_others_run(tiled, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("ptxas: no\nand more")

    monkeypatch.setattr(smoke_products, "unit_length_loss", fail)
    record = run_smoke(tmp_path)
    expected = [
        f"{mode}, D = 16, unit length: RuntimeError: ptxas: no" for mode in ("bf16", "tf32")
    ]
    assert (record["correct"], record["failed"]) == (False, expected)


def test_nothing_is_run_on_a_lost_device(tiled, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(smoke_products, "unit_length_loss", fail)
    monkeypatch.setattr(smoke, "_answers", lambda device: False)
    record = run_smoke(tmp_path)
    assert record["correct"] is False
    assert len(record["failed"]) == 1
    statuses = [one["status"] for one in record["checks"].values()]
    assert statuses[0] == "right"
    assert "illegal" in statuses[1]
    assert set(statuses[2:]) == {smoke.NOT_RUN}


def test_without_time_left_nothing_is_known(tiled, tmp_path):
    record = run_smoke(tmp_path, "--budget", "-1")
    assert (record["correct"], record["failed"]) == (None, [])
    assert {one["status"] for one in record["checks"].values()} == {smoke.NO_TIME}


def test_nan_is_an_error():
    nan, one = torch.tensor(float("nan")), torch.ones(())
    with pytest.raises(CheckError, match="loss: relative error nan"):
        compare([nan], [one], [1.0])


def test_a_step_that_replays_need_not_be_right_to_be_skipped():
    with pytest.raises(smoke_steps.SkippedError, match="a CUDA graph needs a CUDA device"):
        smoke_steps.step_checks(TILED)["step, replayed"]()


def test_calls_to_compile_are_those_of_the_stages_the_headlines_first():
    calls = list(launch_calls(rehearse=False))
    assert calls[:2] == [
        "bf16, D = 256, (190000,), info_nce", "bf16, D = 256, (190000,), unit length"
    ]  # fmt: skip
    # The kernels of 4,096 anchors are those of 1,024.
    assert sum(name.startswith("bf16, D = 256, (190000,)") for name in calls) == 2
    for name in smoke.all_checks(Setting.of(rehearse=False)):
        assert f"smoke: {name}" in calls
    assert {
        "step, cityscapes, bank",
        "step, coco-stuff, mining",
        "flex, bf16, 1,024 x 190,000 x 256",
        "compiled, bf16, 1,024 x 190,000 x 64",
    } <= set(calls)


def test_a_call_that_fails_costs_no_other(tmp_path, monkeypatch):
    def fail():
        raise RuntimeError("no")

    calls = {"first": lambda: 1, "bad": fail, "third": lambda: 3, "last": lambda: 4}
    monkeypatch.setattr("benchmarks._gpu.launch_calls.launch_calls", lambda rehearse: calls)
    options = ["--out", str(tmp_path), "--processes", "1", "--part", "0"]
    assert precompile([*options, "--budget", "60"]) == 0
    found = json.loads((tmp_path / "part-0.json").read_text())
    assert list(found) == list(calls)
    assert found.pop("bad") == "RuntimeError: no"
    assert all(seconds >= 0 for seconds in found.values())
    assert precompile([*options, "--budget", "0"]) == 0
    found = json.loads((tmp_path / "part-0.json").read_text())
    assert set(found.values()) == {NOT_FINISHED}
