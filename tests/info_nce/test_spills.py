"""No kernel variant that a loss launches on Hopper spills registers; compiled ahead of time."""

import itertools
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from ahead_of_time import SHARED_MEMORY, compile_kernel  # noqa: E402

from pixcontrast._info_nce.fused.configurations import TABLE  # noqa: E402

CARD = 90
# The others take minutes and are compiled on request.
EVERYTHING = [(kind, dim) for kind in ("16", "mixed", "tf32") for dim in (64, 128, 256, 512)]
HEADLINES = [("16", 256), ("mixed", 256)]
CHOSEN = EVERYTHING if os.environ.get("PIXCONTRAST_COMPILE_ALL") == "1" else HEADLINES


def variants():
    """(pass, constants) of a loss: a bank, the batch itself, and entries with a gradient."""
    for bounded, everything in itertools.product((True, False), repeat=2):
        common = {"BOUNDED": bounded, "ALL": everything}
        yield "denominator", common
        yield "denominator", {**common, "IS_ANCHORS": True, "WEIGHTED": False, "NARROWS": False}
        yield "positives", common
        yield "positives", {**common, "IS_ANCHORS": True, "WEIGHTED": False, "NARROWS": False}
        yield "entries", {**common, "NARROWS": False}
        yield "entries", {**common, "IS_ANCHORS": False, "BOTH_ROLES": False}


def compiled(row):
    name, constants, kind, dim = row
    # The anchors themselves have the products' dtype, also beside a float32 bank.
    is_narrow = kind == "mixed" and constants.get("NARROWS") is False
    configuration = getattr(TABLE[CARD][kind][dim], name)
    made = compile_kernel(name, configuration, "16" if is_narrow else kind, dim, CARD, **constants)
    return row, made.shared, made.stack


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "dim"), CHOSEN)
def test_no_variant_of_a_loss_spills(kind, dim):
    rows = [(name, constants, kind, dim) for name, constants in variants()]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        results = list(pool.map(compiled, rows))
    assert [row for row, _, stack in results if stack > 0] == []
    assert [row for row, shared, _ in results if shared > SHARED_MEMORY[CARD]] == []
