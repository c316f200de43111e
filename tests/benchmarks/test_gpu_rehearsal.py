"""The GPU stages as they are really called: their options, and a rehearsal without a card."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import STAGES

ROOT = Path(gpu.__file__).parents[1]
REHEARSED = ("smoke", "headlines", "steps", "launches")
"""Commands of each kind, and what the record of the hot path goes through."""


@pytest.mark.parametrize("rehearse", [False, True], ids=["on a card", "rehearsal"])
@pytest.mark.parametrize("name", [stage.name for stage in STAGES])
def test_a_stage_takes_the_options_that_it_is_given(name, rehearse, tmp_path):
    (stage,) = (one for one in STAGES if one.name == name)
    python, flag, module, *given = stage.arguments(tmp_path, 12.5, rehearse)
    assert (python, flag) == (sys.executable, "-m")
    options = vars(importlib.import_module(module)._parser().parse_args(given))
    assert options["out"] == tmp_path
    assert options["budget"] == 12.5
    assert options["rehearse"] is rehearse


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_rehearsal_goes_through_stages_without_a_card(tmp_path):
    """The commands in processes of their own; other tests run the parts of the other stages."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--out", str(tmp_path / "out"),
         "--budget", "3000", "--stages", *REHEARSED],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == gpu.RIGHT, ended.stdout + ended.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "gpu.log", "hot_path_gpu.json", "launches_gpu.json", "smoke.json", "step_gpu.json",
        "summary.json",
    ]  # fmt: skip
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["correct"] is True
    assert summary["complete"] is True
    assert summary["environment"]["rehearsal"] is True
    assert summary["environment"]["torch"] == torch.__version__
    assert {name: stage["status"] for name, stage in summary["stages"].items()} == dict.fromkeys(
        REHEARSED, "done"
    )
    checks = json.loads((tmp_path / "out" / "smoke.json").read_text())
    assert checks["passed"] > 5
    assert checks["failed"] == []
    record = json.loads((tmp_path / "out" / "hot_path_gpu.json").read_text())
    assert record["environment"]["date"] != summary["environment"]["date"]
    for way in ("info_nce", "square"):
        assert all(row["measured"][way]["seconds"] > 0 for row in record["rows"])
    # On the CPU, FlexAttention is built and then refused.
    assert all("CPU" in row["measured"]["flex"]["status"] for row in record["rows"])
    launches = json.loads((tmp_path / "out" / "launches_gpu.json").read_text())
    assert all(row["measured"]["step"]["extra_mb"] >= 0 for row in launches["steps"])
    printed = ended.stdout
    assert "correct: yes" in printed
    assert "bf16, 40 x 304 x 16" in (tmp_path / "out" / "gpu.log").read_text()
    assert "small, mining" in printed
    assert len(printed) < 12_000


def test_nothing_is_imported_that_a_machine_with_a_gpu_may_lack():
    missing = ["tqdm", "sklearn", "PIL", "matplotlib"]
    modules = sorted({stage.command[0] for stage in STAGES})
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({missing})); import {', '.join(modules)}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
