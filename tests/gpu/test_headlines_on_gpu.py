"""What the benchmark times, at its sizes: right, and compiled by the time that it is timed."""

import itertools

import pytest
import torch
from internals import matmul_precision
from on_gpu import BACKEND, COUNTING, DEVICE, REHEARSAL, needs_gpu

from benchmarks._ways.batches import SHAPES, STEP_SHAPES
from benchmarks._ways.formulas import relative_error, truth_of
from benchmarks._ways.problem import HEADLINES, MODES, Problem
from benchmarks._ways.steps import CASES, StepCase
from benchmarks._ways.ways import COMPILED_WAYS, make_runs

pytestmark = needs_gpu


def loss_and_truth(case, way):
    """Run a way of the benchmark once; smaller in a rehearsal, also to a multiple of 16."""
    if REHEARSAL:
        case = case._replace(anchors=48, entries=case.entries and 304)
    with matmul_precision(MODES[case.mode].precision):
        drawn = Problem.draw(case, DEVICE)
        found = make_runs(case, drawn, (way,), backend=BACKEND)[way]()
        return found, None if COUNTING else truth_of(drawn)


@pytest.mark.parametrize("way", ["info_nce", "unit length"])
@pytest.mark.parametrize("case", HEADLINES, ids=str)
def test_loss_of_a_headline(case, way):
    found, truth = loss_and_truth(case, way)
    assert COUNTING or relative_error(found, truth) <= MODES[case.mode].tolerance


@pytest.mark.parametrize(("shape", "case"), [*itertools.product(STEP_SHAPES, CASES)])
def test_step_of_a_headline(shape, case):
    step = StepCase(SHAPES["small" if REHEARSAL else shape], case, DEVICE, as_on_gpu=True)
    (gradient,) = step.way("step")()
    assert torch.isfinite(gradient).all()


@pytest.mark.ungated("inductor")
@pytest.mark.timeout(90)
@pytest.mark.plain_empty
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(bool(REHEARSAL), reason="torch.compile of these takes long")
@pytest.mark.parametrize("way", COMPILED_WAYS)
@pytest.mark.parametrize("case", HEADLINES[:3], ids=str)
def test_compiled_rival_of_a_headline(case, way):
    found, truth = loss_and_truth(case, way)
    assert relative_error(found, truth) <= MODES[case.mode].tolerance
