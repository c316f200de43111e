"""The kernel that sums regions, compiled for every card: it fits, twice, and nothing spills."""

import os

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("interpreted kernels cannot be compiled", allow_module_level=True)

from ahead_of_time import SHARED_MEMORY, compiled  # noqa: E402

from pixcontrast._pixels import region_kernel  # noqa: E402

VERSION = tuple(int(part) for part in triton.__version__.split(".")[:2])
TYPES = {"maps": "*fp32", "slots": "*i64", "usable": "*i1", "sums": "*fp32", "counts": "*i32",
         "smallest": "fp32"}  # fmt: skip


@pytest.mark.parametrize(
    ("card", "dim", "map_type"),
    [*((card, 256, "*fp32") for card in SHARED_MEMORY), (90, 64, "*bf16"), (90, 512, "*fp32")],
)
def test_it_compiles_and_fits(card, dim, map_type):
    block_dim, block_pixels = region_kernel.tile_shape(dim)
    values = {"D": dim, "BLOCK_D": block_dim, "BLOCK_P": block_pixels,
              "BLOCK_R": region_kernel.BLOCK_REGIONS, "pixel_stride": 1}  # fmt: skip
    types = {**TYPES, "maps": map_type}
    made = compiled(
        region_kernel.region_kernel,
        {name: types.get(name, "i32") for name in region_kernel.region_kernel.arg_names},
        values,
        {"maps", "slots", "usable", "sums", "counts", "component_stride", "image_stride"},
        card,
        {"num_warps": region_kernel.NUM_WARPS, "num_stages": region_kernel.NUM_STAGES},
    )
    assert 2 * made.shared <= SHARED_MEMORY[card]
    if VERSION >= (3, 6):  # earlier versions spill a few bytes
        assert made.stack == 0
