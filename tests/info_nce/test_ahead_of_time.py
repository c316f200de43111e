"""Every configuration that ships, compiled for its card: it fits, and nothing spills."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from ahead_of_time import KERNELS, SHARED_MEMORY, compile_kernel, compiled  # noqa: E402

from pixcontrast._info_nce.fused.configurations import (  # noqa: E402
    LARGEST_DIM,
    TABLE,
    Configuration,
    configurations_for,
    for_mining,
)

KINDS = ("16", "mixed", "tf32", "ieee")
DIMS = (64, 128, 256, 512)


PASSES = ("denominator", "positives", "entries")
POOL_OF_KEYS = {"BY_KEY": True, "POOLED": True, "POSITIVE": True, "IS_ANCHORS": True}
# Under mining every pass has other code; all of it takes minutes, and is compiled when asked for.
MINED_DIMS = DIMS if os.environ.get("PIXCONTRAST_COMPILE_ALL") == "1" else (256,)


def table():
    """(configurations, kind, D, card) of every row."""
    for card, kinds in TABLE.items():
        for kind, dims in kinds.items():
            for dim, configurations in dims.items():
                yield configurations, kind, dim, card


def plain_rows():
    """(pass, configuration, kind, D, card, constants) of all that ships, without mining."""
    for configurations, *row in table():
        for name in PASSES:
            yield (name, getattr(configurations, name), *row, {})


def mined_rows():
    """The same under mining, where each row has one more tile, and a pass that selects."""
    for configurations, *row in table():
        if row[1] in MINED_DIMS:
            mined = for_mining(configurations)
            for name in PASSES:
                roles = {"BOTH_ROLES": False} if name == "entries" else {}
                yield (name, getattr(mined, name), *row, {"MINED": True, **roles})
            for constants in ({}, POOL_OF_KEYS):
                yield ("selection", mined.mined, *row, constants)


def report(row):
    name, configuration, kind, dim, card, constants = row
    made = compile_kernel(*row[:5], **constants)
    problems = []
    if made.shared > SHARED_MEMORY[card]:
        problems.append(f"{made.shared} bytes of shared memory")
    if kind != "ieee" and made.stack > 0:
        problems.append(f"{made.stack} bytes of stack")
    if card == 90 and kind != "ieee" and configuration.rows >= 64 and "wgmma" not in made.ptx:
        problems.append("no wgmma")
    where = f"sm_{card} {kind} D={dim} {name} {tuple(configuration)} {constants}"
    return f"{where}: {', '.join(problems)}", problems


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rows", [plain_rows, mined_rows])
@pytest.mark.parametrize("card", TABLE)
def test_what_ships_compiles_and_fits(card, rows):
    mine = [row for row in rows() if row[4] == card]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        wrong = [said for said, problems in pool.map(report, mine) if problems]
    assert not wrong, "\n".join(wrong)


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
                assert {*PASSES, "selection"} == set(KERNELS)
                # The first pass's survey of the entries serves the second.
                assert configurations.denominator.columns % configurations.positives.columns == 0
    assert DIMS[-1] == LARGEST_DIM


def test_the_probe_of_auto_compiles():
    from pixcontrast._triton_probe import probe_kernel

    made = compiled(probe_kernel, {"bound": "i32"}, {}, set(), 80, {"num_warps": 4})
    assert made.shared == made.stack == 0


@pytest.mark.parametrize(
    ("capability", "like"), [(80, 80), (87, 86), (89, 89), (90, 90), (103, 100), (121, 120)]
)
def test_a_card_takes_the_row_of_the_nearest_older_one(capability, like):
    assert configurations_for(capability, "16", 256) == TABLE[like]["16"][256]


def test_an_unknown_generation_takes_what_fits_everywhere():
    assert configurations_for(110, "16", 100) == TABLE[120]["16"][128]


def test_any_number_of_components_has_a_row():
    for dim in range(1, LARGEST_DIM + 1):
        chosen = configurations_for(90, "16", dim)
        assert all(isinstance(one, Configuration) for one in chosen)
