"""Every configuration that ships, compiled for its card: it fits, and nothing spills."""

import os
from typing import NamedTuple

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from ahead_of_time import (  # noqa: E402
    COMPLETE_CARDS,
    KERNELS,
    MERGING_KERNELS,
    SHARED_MEMORY,
    Constant,
    compile_kernel,
    compiled,
)
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia.compiler import CUDABackend  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

from pixcontrast._info_nce.fused.configurations import (  # noqa: E402
    TABLE,
    Configuration,
    configurations_for,
    for_keys,
    for_mining,
    small_configuration,
)
from pixcontrast._info_nce.fused.kernels.blocks import index_kernel, survey_kernel  # noqa: E402
from pixcontrast._info_nce.fused.kernels.radix_select import LARGEST_PROGRAM  # noqa: E402
from pixcontrast._info_nce.fused.layout import Labels, Vectors  # noqa: E402
from pixcontrast._info_nce.fused.thresholds import (  # noqa: E402
    COLUMNS,
    COLUMNS_OF_RANKS,
    search_tile,
)
from pixcontrast._triton import MAX_DIM  # noqa: E402

KINDS = ("16", "mixed", "tf32", "ieee")
DIMS = (64, 128, 256, 512)

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
PASSES = ("denominator", "positives", "entries")
POOL_OF_KEYS = {"BY_KEY": True, "POOLED": True, "IS_ANCHORS": True}
# Each card, kind and width once; the other rows are compiled by `pytest -m slow`.
REPRESENTATIVE = {
    (80, "16", 128),
    (86, "tf32", 64),
    (89, "ieee", 64),
    (90, "16", 256),
    (100, "mixed", 512),
    (120, "tf32", 256),
}
# The whole table takes many minutes. Of cards that are not in COMPLETE_CARDS these rows are
# compiled: those of Hopper and of the card with the least shared memory, one of each other card,
# and one width under mining, which compiles other code in every pass.
MINED_DIM = 256
REPRESENTATIVE_MINED = {(90, "16", 256), (120, "tf32", 256)}


class Variant(NamedTuple):
    """One compilation: a row of the table, a pass of it, and the constants of the pass."""

    card: int
    kind: str
    dim: int
    name: str
    configuration: Configuration
    constants: dict[str, bool]


def plain_variants():
    """Every pass of every row, without mining."""
    for row, configurations in table():
        for name in PASSES:
            yield Variant(*row, name, getattr(configurations, name), {})


def mined_variants():
    """The same under mining, which also replaces a tile and adds a pass that selects."""
    for row, configurations in table():
        if row[0] in COMPLETE_CARDS or row[2] == MINED_DIM:
            mined = for_mining(configurations)
            for name in PASSES:
                roles = {"BOTH_ROLES": False} if name == "entries" else {}
                yield Variant(*row, name, getattr(mined, name), {"MINED": True, **roles})
            for constants in ({}, POOL_OF_KEYS):
                yield Variant(*row, "selection", mined.mined, constants)
            yield Variant(*row, "selection", for_keys(mined.mined), {"BY_KEY": True})


def table():
    """((card, kind, dim), configurations) of every row."""
    for card, kinds in TABLE.items():
        for kind, dims in kinds.items():
            for dim, configurations in dims.items():
                yield (card, kind, dim), configurations


def is_chosen(card, kind, dim):
    """Whether a row is compiled. All cards share the rows of "ieee"."""
    own = card in {120, *COMPLETE_CARDS} or (card == 90 and kind != "ieee")
    return own or (card, kind, dim) in REPRESENTATIVE


def variants():
    """Every variant that ships, as parameters; those of other rows are marked as slow."""
    for representative, made in (
        (REPRESENTATIVE, plain_variants()),
        (REPRESENTATIVE_MINED, mined_variants()),
    ):
        for variant in made:
            if not is_chosen(*variant[:3]):
                continue
            marks = [] if variant[:3] in representative else [pytest.mark.slow]
            words = [*map(str, variant[:4]), *variant.constants]
            yield pytest.param(variant, marks=marks, id="-".join(words))


@pytest.mark.parametrize("variant", list(variants()))
def test_what_ships_compiles_and_fits(variant):
    card, kind, dim, name, configuration, constants = variant
    made = compile_kernel(name, configuration, kind, dim, card, **constants)
    assert made.shared <= SHARED_MEMORY[card]
    if kind != "ieee" and VERSION >= (3, 6):  # earlier versions spill a few bytes in four cases
        assert made.stack == 0, "spilled registers"
    if card == 90 and kind != "ieee" and configuration.rows >= 64:
        assert "wgmma" in made.ptx


@pytest.mark.parametrize("name", ["small", "entries"])
@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[] if row in REPRESENTATIVE else [pytest.mark.slow])
        for row, _ in table()
        if row in REPRESENTATIVE or row[0] in {90, 120, *COMPLETE_CARDS}
    ],
    ids=str,
)
def test_a_few_anchors_against_themselves(row, name):
    card, kind, dim = row
    if kind == "mixed":
        pytest.skip("no entries of another dtype than the anchors'")
    configuration = small_configuration(dim * (2 if kind == "16" else 4))
    made = compile_kernel(name, configuration, kind, dim, card, SMALL=True)
    assert made.shared <= SHARED_MEMORY[card]
    if kind != "ieee":
        assert made.stack == 0, "spilled registers"


@pytest.mark.parametrize("name", list(MERGING_KERNELS))
@pytest.mark.parametrize("option", ["WEIGHTED", "BOUNDED", "ALL"])
def test_the_kernels_that_merge_compile(name, option):
    constants = {"WEIGHTED": False, option: True}
    configuration = search_tile(COLUMNS) if name == "advance" else Configuration(32, 16, 4, 3)
    made = compile_kernel(name, configuration, "16", 100, 90, **constants)
    assert made.stack == 0


@pytest.mark.parametrize("by_key", [False, True])
def test_a_search_over_ranks_compiles(by_key):
    configuration, constants = search_tile(COLUMNS_OF_RANKS), {"COLUMNS": COLUMNS_OF_RANKS}
    made = compile_kernel("advance", configuration, "16", 100, 90, BY_KEY=by_key, **constants)
    assert made.stack == 0


@pytest.mark.parametrize("narrow", [True, False], ids=["narrow", "wide"])
def test_the_kernels_of_the_survey_compile(narrow):
    none, labels = Constant(None), Labels("*i64", "*i32", "*i32")
    sizes = "dim", "num_anchors", "own_blocks", "num_steps", "num_entries"
    limit = "fp32" if narrow else none
    types = {
        "source": Vectors("*fp32", "*i64", none, none, limit),
        "order": "*i64",
        "vectors": "*bf16" if narrow else "*fp32",
        "num_valid": "*i32",
        **dict.fromkeys(("own", "other"), labels),
        **dict.fromkeys(sizes, "i32"),
    }
    block, warps = {"BLOCK_N": 128}, {"num_warps": 4}
    made = compiled(survey_kernel, types, block, set(), 90, warps)
    assert made.stack == 0
    index = {"survey": "*i32", "num_blocks": "i32"}
    assert compiled(index_kernel, index, block, set(), 90, warps).stack == 0


@pytest.mark.parametrize("name", [*KERNELS, *MERGING_KERNELS])
def test_a_launch_can_bind_the_arguments(name):
    # Triton writes the function that does so: some names of arguments are its own.
    kernel = {**KERNELS, **MERGING_KERNELS}[name]
    backend = CUDABackend(GPUTarget("cuda", 90, 32))
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    arguments = dict.fromkeys(kernel.arg_names)
    assert binder(**arguments)[0] == arguments


def test_representative_rows_have_every_card_kind_and_width():
    for seen, all_of_them in zip(
        zip(*REPRESENTATIVE, strict=True), (TABLE, KINDS, DIMS), strict=True
    ):
        assert set(seen) == set(all_of_them)
    assert {row for row, _ in table()} >= REPRESENTATIVE_MINED


@pytest.mark.parametrize("option", ["BOUNDED", "ALL", "IN_FLOAT32"])
def test_the_other_forms_of_a_kernel_compile(option):
    configurations = configurations_for(90, "16", 256)
    name = "entries" if option == "IN_FLOAT32" else "denominator"
    chosen = getattr(configurations, name)
    made = compile_kernel(name, chosen, "16", 256, 90, **{option: True})
    assert made.shared <= SHARED_MEMORY[90]


def test_the_table_is_whole():
    assert set(TABLE) == set(SHARED_MEMORY) == {80, 86, 89, 90, 100, 120}
    for kinds in TABLE.values():
        assert set(kinds) == set(KINDS)
        for dims in kinds.values():
            assert tuple(dims) == DIMS
            for configurations in dims.values():
                assert set(configurations._asdict()) == {*PASSES, "mined"}
                assert {*PASSES, "selection", "small"} == set(KERNELS)
                # The first pass's survey of the entries serves the second.
                assert configurations.denominator.columns % configurations.positives.columns == 0
                # An atomic addition needs a number for every thread.
                largest = max(configurations.mined.rows, 32 * configurations.mined.warps)
                assert largest <= LARGEST_PROGRAM.value
    assert DIMS[-1] == MAX_DIM


def test_the_probe_of_auto_compiles():
    from pixcontrast._triton import probe_kernel

    made = compiled(probe_kernel(), {"number": "i32"}, {}, set(), 80, {"num_warps": 4})
    assert made.shared == made.stack == 0


@pytest.mark.parametrize(
    ("capability", "like"), [(80, 80), (87, 86), (89, 89), (90, 90), (103, 100), (121, 120)]
)
def test_a_card_takes_the_row_of_the_nearest_older_one(capability, like):
    assert configurations_for(capability, "16", 256) == TABLE[like]["16"][256]


def test_an_unknown_generation_takes_what_fits_everywhere():
    assert configurations_for(110, "16", 100) == TABLE[120]["16"][128]


def test_any_number_of_components_has_a_row():
    for dim in range(1, MAX_DIM + 1):
        chosen = configurations_for(90, "16", dim)
        assert all(isinstance(one, Configuration) for one in chosen)
