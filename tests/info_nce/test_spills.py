"""Registers and instructions of the kernels that a loss launches on Hopper; compiled on the CPU."""

import itertools
import os

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
        yield "denominator", {**common, "STRIDED": True}
        yield "denominator", {**common, "IS_ANCHORS": True, "WEIGHTED": False, "largest": None}
        yield "positives", common
        yield "positives", {**common, "STRIDED": True}
        yield "positives", {**common, "IS_ANCHORS": True, "WEIGHTED": False, "largest": None}
        yield "entries", {**common, "largest": None}
        if not bounded:  # of float16
            yield "entries", {**common, "largest": None, "IN_FLOAT32": True}
        yield "entries", {**common, "IS_ANCHORS": False, "BOTH_ROLES": False}
        yield "entries", {**common, "IS_ANCHORS": False, "BOTH_ROLES": False, "STRIDED": True}


def rows():
    """Every variant of every row, as parameters; those of other rows are slow tests."""
    for kind, dim in CHOSEN:
        marks = [] if (kind, dim) == HEADLINES[0] else [pytest.mark.slow]
        for name, constants in variants():
            chosen = [key if value else f"not {key}" for key, value in constants.items()]
            row = (kind, dim, name, constants)
            yield pytest.param(*row, marks=marks, id="-".join([kind, str(dim), name, *chosen]))


@pytest.mark.parametrize(("kind", "dim", "name", "constants"), list(rows()))
def test_no_variant_of_a_loss_spills(kind, dim, name, constants):
    # The anchors themselves have the products' dtype, also beside a float32 bank.
    is_narrow = kind == "mixed" and constants.get("largest", 0) is None
    configuration = getattr(TABLE[CARD][kind][dim], name)
    if "IN_FLOAT32" in constants:
        configuration = configuration._replace(stages=1)
    made = compile_kernel(name, configuration, "16" if is_narrow else kind, dim, CARD, **constants)
    assert made.stack == 0
    assert made.shared <= SHARED_MEMORY[CARD]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "tile", "expected"),
    [(256, (128, 64), 300), (128, (128, 128), 400), (64, (128, 128), 400)],
)
def test_the_loop_without_masks_is_short(dim, tile, expected):
    """Instructions of a warp for a tile of a bank in bfloat16, in the pass over all entries."""
    configuration = TABLE[CARD]["16"][dim].denominator
    assert configuration[:2] == tile
    made = compile_kernel("denominator", configuration, "16", dim, CARD, BOUNDED=True)
    assert min(made.product_loops()) <= expected
