"""The fused kernels without a GPU: in Triton's interpreter, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
FILES = {
    "test_fused.py": 60,
    "test_fused_behaviour.py": 40,
    "test_fused_parts.py": 17,
    "test_fused_steps.py": 30,
    "test_region_kernel.py": 26,
    "test_selection_by_kernels.py": 11,
    "test_tune.py": 4,
}
"""How many tests each holds, at the least: a run that finds none must not pass."""


@pytest.mark.timeout(600)
def test_the_kernels_in_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    running = [
        subprocess.Popen(
            [*command, str(HERE / file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=HERE.parents[1],
        )
        for file in FILES
    ]
    said = [process.communicate()[0] for process in running]
    for process, output, least in zip(running, said, FILES.values(), strict=True):
        assert process.returncode == 0, output[-5000:]
        passed = re.search(r"(\d+) passed", output)
        assert passed is not None
        assert int(passed[1]) >= least
        assert "skipped" not in output
