"""The fused kernels on a machine without a GPU: in Triton's interpreter, in their own process."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
LEAST_TESTS = 90


@pytest.mark.timeout(280)
def test_the_kernels_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", str(HERE / "interpreted")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(HERE)}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, cwd=HERE.parent
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST_TESTS
    assert "skipped" not in result.stdout
