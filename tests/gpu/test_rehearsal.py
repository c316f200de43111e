"""The GPU tests without a GPU: they run with the tiled form, and their kernels are counted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LEAST = 250
"""Fewest tests that must pass: a run that finds none must fail."""
MOST_KERNELS = 700
"""Of all tests together; each takes a processor one to three seconds."""


def run_pytest(how, *arguments):
    environment = {**os.environ, "PIXCONTRAST_GPU_TESTS_ON_CPU": how, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE)])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-o", "addopts=", "-m", "gpu", *arguments, str(HERE)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_tests_that_need_a_gpu():
    ended = run_pytest("tiled")
    assert ended.returncode == 0, ended.stdout[-5000:]
    passed = re.search(r"(\d+) passed", ended.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST


@pytest.mark.long
@pytest.mark.timeout(600)
def test_few_kernels_are_compiled(tmp_path):
    """All tests together launch no more kernels than there is time to compile."""
    file = tmp_path / "counts.json"
    ended = run_pytest("count", "-p", "kernel_counts", "--kernel-counts", str(file))
    assert ended.returncode == 0, ended.stdout[-5000:]
    kernels = {test: set(found) for test, found in json.loads(file.read_text()).items()}
    assert len(kernels) >= LEAST
    assert len(set().union(*kernels.values())) <= MOST_KERNELS
    # Tests of the equation launch kernels, and other tiles are other kernels.
    for name in ("test_loss_and_gradients", "test_mining", "test_a_large_bank"):
        assert all(kernels[test] for test in kernels if name in test), name
    own = set().union(*(kernels[test] for test in kernels if "test_tiles_of_other" not in test))
    others = [kernels[test] - own for test in kernels if "test_tiles_of_other" in test]
    assert all(others)


def test_cases_of_the_equation_cover_all_pairs():
    from test_equation_on_gpu import COMPLETE_DIMS, DENOMINATORS, KINDS, MODES, OTHER_DIMS, cases

    found = [*cases()]
    assert len(found) == len(set(found))
    for dim in COMPLETE_DIMS:
        assert sum(case[1] == dim for case in found) == len(MODES) * len(KINDS) * len(DENOMINATORS)
    for dim in OTHER_DIMS:
        of_dim = [case for case in found if case[1] == dim]
        assert len({kind for _, _, kind, _ in of_dim}) == len(of_dim) == 2
        assert sum(mode in ("bf16", "fp16") for mode, *_ in of_dim) == 1
    # The sizes used less often do not leave out any mode, kind or denominator either.
    others = [case for case in found if case[1] in OTHER_DIMS]
    for place, values in ((0, MODES), (2, KINDS), (3, DENOMINATORS)):
        assert {case[place] for case in others} == set(values)
