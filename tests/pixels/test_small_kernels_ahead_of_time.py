"""The kernels that replace sequences of small operations, compiled for every card: none spills."""

import os

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from ahead_of_time import SHARED_MEMORY, Constant, compiled  # noqa: E402

from pixcontrast._bank import ring_kernels as rings  # noqa: E402
from pixcontrast._info_nce import key_kernel  # noqa: E402
from pixcontrast._pixels import group_kernels as groups  # noqa: E402
from pixcontrast._pixels import map_kernel as maps  # noqa: E402
from pixcontrast._pixels import region_kernel as regions  # noqa: E402
from pixcontrast._pixels import row_kernels as rows  # noqa: E402

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
LONG = "*i64"
KEYS = {"labels": LONG, "draw": LONG, "keys": LONG}
MEASURED = dict.fromkeys(("order", "start", "size", "num_first", "labels"), LONG)
ANCHORS = {"indices": LONG, "taken_labels": LONG}
RING = {"vectors": "*bf16", "counts": LONG, "next_positions": LONG, "new": "*fp32", "valid": "*i1"}
ROWS = {"maps": "*bf16", "indices": LONG, "labels": LONG, "unit": "*fp32", "smallest": "fp32"}
MAPS = dict.fromkeys(("labels", "marked", "classes"), LONG)
# A kernel, the types of its tensors, and its constants; None is a tensor that is not given.
CASES = {
    "keys of halves": (
        groups.keys_kernel,
        {**KEYS, "other": LONG, "usable": None},
        {"BLOCK": groups.BLOCK},
    ),
    "keys of groups": (
        groups.keys_kernel,
        {**KEYS, "other": LONG, "usable": "*i1"},
        {"BLOCK": groups.BLOCK},
    ),
    "priorities": (
        groups.priorities_kernel,
        {"keys": LONG, "draw": LONG, "priorities": LONG},
        {"BLOCK": groups.BLOCK},
    ),
    "measured": (
        groups.measure_kernel,
        {"keys": LONG, **MEASURED},
        {"BLOCK": groups.GROUPS},
    ),
    "taken": (
        groups.take_kernel,
        {**MEASURED, **ANCHORS, "share": LONG, "chance": "*fp64"},
        {"CHUNK": groups.BLOCK, "BLOCK": groups.GROUPS, "VIEWS": groups.VIEWS},
    ),
    "first": (
        groups.first_kernel,
        {"keys": LONG, "order": LONG, "indices": LONG, "valid": "*i1"},
        {"BLOCK": groups.GROUPS, "VIEWS": groups.VIEWS},
    ),
    "anchors": (
        rows.gather_kernel,
        {**ROWS, "marked": LONG, "inverse_length": "*fp32", "keys": LONG},
        {"BLOCK_D": 512, "ROWS": rows.ROWS},
    ),
    "entries": (
        rows.gather_kernel,
        {**ROWS, "marked": "*i1", "inverse_length": None, "keys": None},
        {"BLOCK_D": 256, "ROWS": rows.ROWS},
    ),
    "gradient": (
        rows.scatter_kernel,
        {
            "upstream": "*bf16",
            "unit": "*fp32",
            "inverse_length": "*fp32",
            "maps": "*bf16",
            "ascending": LONG,
            "order": LONG,
        },
        {"BLOCK_D": 512},
    ),
    "logits": (
        maps.maps_kernel,
        {**MAPS, "preds": "*fp32", "weight": "*fp32"},
        {"BLOCK": maps.BLOCK},
    ),
    "classes": (maps.maps_kernel, {**MAPS, "preds": LONG, "weight": None}, {"BLOCK": maps.BLOCK}),
    "regions": (
        regions.merge_kernel,
        {"sums": "*fp32", "counts": "*i32", "means": "*fp32", "present": "*i1", "smallest": "fp32"},
        {"BLOCK_D": 512, "ROWS": regions.MERGED_ROWS},
    ),
    "appended": (
        rings.append_kernel,
        {**RING, **{f"last_{name}": kind for name, kind in RING.items()}, "previous": LONG},
        {"BLOCK": rings.BLOCK, "BLOCK_D": rings.BLOCK_D, "ENTRIES": rings.ENTRIES},
    ),
    "bits": (
        key_kernel.bits_kernel,
        {"seed": LONG, "ids": LONG, "bits": "*i32"},
        {"BLOCK": key_kernel.BLOCK},
    ),
    "labels": (rings.labels_kernel, {"counts": LONG, "labels": LONG}, {"BLOCK": rings.BLOCK}),
}


@pytest.mark.parametrize("card", SHARED_MEMORY)
@pytest.mark.parametrize("case", CASES)
def test_it_compiles_without_a_spill(case, card):
    kernel, tensors, constants = CASES[case]
    types = {param.name: param.annotation_type or "i32" for param in kernel.params}
    types |= {name: Constant(None) if kind is None else kind for name, kind in tensors.items()}
    options = {"num_warps": rows.WARPS if kernel is rows.gather_kernel else 4, "num_stages": 3}
    if kernel is groups.take_kernel:  # as PyTorch, which rounds a product before it adds
        options["enable_fp_fusion"] = False
    made = compiled(kernel, types, constants, set(), card, options)
    assert "fma.rn.f64" not in made.ptx
    if VERSION >= (3, 6):  # earlier versions spill a few bytes
        assert made.stack == 0
