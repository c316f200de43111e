"""Registers and instructions of the kernels that a loss launches; compiled on the CPU."""

import itertools
import os

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from ahead_of_time import COMPLETE_CARDS, SHARED_MEMORY, compile_kernel  # noqa: E402

from pixcontrast._info_nce.fused.configurations import (  # noqa: E402
    DIMS,
    TABLE,
    for_float32_product,
    for_keys,
    for_mining,
)

KINDS = ("16", "mixed", "tf32")
# Of Hopper without mining. Other rows take minutes and are compiled on request.
HEADLINES = [(90, "16", 256), (90, "mixed", 256)]
ROWS = [*HEADLINES, *itertools.product(sorted(COMPLETE_CARDS), KINDS, DIMS)]

BANK = {"IS_ANCHORS": False}
ANCHORS = {"IS_ANCHORS": True, "largest": None}


def variants():
    """(pass, constants) of a loss: a bank, the batch itself, and entries with a gradient."""
    for tensor, bounded, everything in itertools.product(
        (BANK, ANCHORS), (False, True), (False, True)
    ):
        common = {"BOUNDED": bounded, "ALL": everything, **tensor}
        # The gradient of the anchors themselves is left to the backward.
        yield from forward_variants(common, (False,) if tensor is ANCHORS else (True, False))
        yield from entries_variants({**common, "BOTH_ROLES": tensor is ANCHORS})


def mined_variants():
    """The same under mining, and the pass that selects."""
    for tensor, bounded in itertools.product((BANK, ANCHORS), (False, True)):
        for everything in (False, True):
            common = {"MINED": True, "BOUNDED": bounded, "ALL": everything, **tensor}
            yield from forward_variants(common, (True, False))
            yield from entries_variants({**common, "BOTH_ROLES": False})
        for rule in ({}, {"BY_KEY": True}, {"BY_KEY": True, "POOLED": True}):
            yield "selection", {"BOUNDED": bounded, **tensor, **rule}


def forward_variants(common, weighted):
    """The passes of the forward, with a gradient and without one."""
    for name, is_weighted in itertools.product(("denominator", "positives"), weighted):
        yield name, {**common, "WEIGHTED": is_weighted}


def entries_variants(common):
    """Both dtypes of the second product; that of float16 is float32."""
    yield "entries", common
    if not common["BOUNDED"]:
        yield "entries", {**common, "IN_FLOAT32": True}


def rows():
    """Every variant of every row, as parameters; those of other rows are slow tests."""
    for row in dict.fromkeys(ROWS):
        marks = [] if row == HEADLINES[0] else [pytest.mark.slow]
        mined = mined_variants() if row[0] in COMPLETE_CARDS else ()
        for name, constants in (*variants(), *mined):
            if row[1] == "tf32" and "IN_FLOAT32" in constants:
                continue
            chosen = [key if value else f"not {key}" for key, value in constants.items()]
            words = *map(str, row), name, *chosen
            yield pytest.param(*row, name, constants, marks=marks, id="-".join(words))


@pytest.mark.parametrize(("card", "kind", "dim", "name", "constants"), list(rows()))
def test_no_variant_of_a_loss_spills(card, kind, dim, name, constants):
    # The anchors themselves have the products' dtype, also beside a float32 bank.
    is_narrow = kind == "mixed" and constants["IS_ANCHORS"]
    configurations = TABLE[card][kind][dim]
    if name == "selection" or "MINED" in constants:
        configurations = for_mining(configurations)
    configuration = getattr(configurations, "denominator" if name == "selection" else name)
    if "BY_KEY" in constants and "POOLED" not in constants:
        configuration = for_keys(configuration)
    if "IN_FLOAT32" in constants and "MINED" not in constants:
        configuration = for_float32_product(configuration)
    made = compile_kernel(name, configuration, "16" if is_narrow else kind, dim, card, **constants)
    assert made.stack == 0
    assert made.shared <= SHARED_MEMORY[card]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "tile", "expected"),
    [(256, (128, 64), 300), (128, (128, 128), 400), (64, (128, 128), 400)],
)
def test_the_loop_without_masks_is_short(dim, tile, expected):
    """Instructions of a warp for a tile of a bank in bfloat16, in the pass over all entries."""
    configuration = TABLE[90]["16"][dim].denominator
    assert configuration[:2] == tile
    made = compile_kernel("denominator", configuration, "16", dim, 90, BOUNDED=True)
    assert min(made.product_loops()) <= expected
