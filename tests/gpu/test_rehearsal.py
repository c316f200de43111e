"""The tests that need a GPU, tested: on the CPU, with the tiled form in place of the fused one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LEAST = 500
"""How many there are at the least: a run that finds none must not pass."""


@pytest.mark.timeout(600)
def test_the_tests_that_need_a_gpu():
    environment = {**os.environ, "PIXCONTRAST_GPU_TESTS_ON_CPU": "tiled", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            str(HERE),
            f"--ignore={__file__}",
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE.parents[1],
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-5000:]
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST
