"""Triton kernels that gather pixels of a map as unit vectors, and scatter their gradient.

They compute in float32, with the formula of `_tensors.unit_length`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixcontrast._launch import launch_on
from pixcontrast._tensors import IGNORED, SMALLEST
from pixcontrast._triton import ceil_div, next_power_of_2

ROWS, WARPS = 4, 2
"""Pixels of a program that gathers, and its warps."""
MAX_DIM, LEAST_BLOCK = 4096, 256
"""A program holds complete vectors, in a block of components."""


class UnitRows(NamedTuple):
    """K pixels, of which those with an ignored label are zeros; and what their gradient needs."""

    unit: Tensor  # unit vectors in float32, (K, D)
    labels: Tensor  # int64 labels, `IGNORED` where ignored, (K,)
    inverse_length: Tensor  # 1 / length before scaling, 0 of a zero vector, (K,)
    keys: Tensor  # flat index of each pixel, B·P where ignored, (K,)


def supports(emb_map: Tensor) -> bool:
    """Return whether the kernels support a map (B, D, *S): its dtype, sizes and strides."""
    is_flat = all(
        emb_map.stride(dim) == emb_map.stride(dim + 1) * emb_map.shape[dim + 1]
        for dim in range(2, emb_map.ndim - 1)
    )
    is_small = emb_map.shape[1] <= MAX_DIM and emb_map[:, 0].numel() < 1 << 31
    return is_flat and is_small and emb_map.dtype != torch.float64


def gather_rows(emb_map: Tensor, indices: Tensor, labels: Tensor, ignore_index: int) -> UnitRows:
    """Gather the pixels at flat indices (K,), with integer labels (K,)."""
    indices = indices.to(torch.int64)
    unit = emb_map.new_empty(len(indices), emb_map.shape[1], dtype=torch.float32)
    marked, keys = torch.empty_like(indices), torch.empty_like(indices)
    inverse_length = torch.empty_like(indices, dtype=torch.float32)
    outputs = unit, marked, inverse_length, keys
    _launch_gather(emb_map, indices, labels, outputs, ignore_index)
    return UnitRows(unit, marked, inverse_length, keys)


def gather_usable_rows(emb_map: Tensor, indices: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Gather n pixels in float32, and return which of the `valid` (n,) have a direction."""
    unit = emb_map.new_empty(len(indices), emb_map.shape[1], dtype=torch.float32)
    usable = torch.empty_like(valid)
    _launch_gather(emb_map, indices, valid, (unit, usable, None, None), 0)
    return unit, usable


def _launch_gather(
    emb_map: Tensor,
    indices: Tensor,
    labels: Tensor,
    outputs: tuple[Tensor | None, ...],
    ignore_index: int,
) -> None:
    num_pixels = emb_map.shape[2:].numel()
    if len(indices) > 0:
        launch_on(
            emb_map,
            gather_kernel,
            (ceil_div(len(indices), ROWS),),
            *(emb_map, indices.contiguous(), labels.contiguous(), *outputs, len(indices)),
            *(num_pixels, emb_map.shape[0] * num_pixels, *_strides(emb_map)),
            *(emb_map.shape[1], ignore_index, IGNORED, SMALLEST),
            BLOCK_D=padded(emb_map.shape[1]),
            ROWS=ROWS,
            num_warps=WARPS,
        )


def scatter_gradient(
    upstream: Tensor, rows: Sequence[Tensor], shape: Sequence[int], strides: Sequence[int]
) -> Tensor:
    """Return the gradient of a map with this shape and these strides.

    `upstream` (K, D) is the gradient of the vectors; `rows` are unit vectors, inverse lengths and
    keys of `UnitRows`. Pixels that occur more than once get the sum in a fixed order.
    """
    unit, inverse_length, keys = rows
    emb_map = upstream.new_empty_strided(shape, strides).zero_()
    ascending, order = keys.sort(stable=True)
    num_pixels = emb_map.shape[2:].numel()
    if len(keys) > 0:
        launch_on(
            emb_map,
            scatter_kernel,
            (len(keys),),
            *(upstream.contiguous(), unit, inverse_length, ascending, order, emb_map),
            *(len(keys), num_pixels, shape[0] * num_pixels, *_strides(emb_map), shape[1]),
            BLOCK_D=padded(shape[1]),
        )
    return emb_map


def padded(dim: int) -> int:
    """Return the number of components of a block. Few different ones need few compilations."""
    return max(LEAST_BLOCK, next_power_of_2(dim))


def _strides(emb_map: Tensor) -> tuple[int, int, int]:
    """Return the strides of images, components and pixels."""
    return emb_map.stride(0), emb_map.stride(1), emb_map.stride(-1)


STRIDES = ("image_stride", "component_stride", "pixel_stride")


@triton.jit(
    do_not_specialize=[
        *("num_rows", "num_pixels", "num_keys", "dim", "ignore_index", "ignored"),
        *STRIDES,
    ]
)
def gather_kernel(
    maps, indices, labels, unit, marked, inverse_length, keys, num_rows, num_pixels,
    num_keys: tl.int64, image_stride: tl.int64, component_stride: tl.int64, pixel_stride: tl.int64,
    dim, ignore_index: tl.int64, ignored, smallest, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write ROWS pixels. Without `keys`, `marked` is whether a pixel has a direction."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < num_rows
    index = tl.load(indices + rows, mask=inside, other=0)
    label = tl.load(labels + rows, mask=inside, other=0).to(tl.int64)
    # As PyTorch's indexing, count negative indices from the end; never read beyond the map.
    index = tl.where(index < 0, index + num_keys, index)
    valid = inside & (label >= 0) & (label != ignore_index) & (index >= 0) & (index < num_keys)
    components = tl.arange(0, BLOCK_D)
    in_vector = (components < dim)[None, :]
    image = index.to(tl.int32) // num_pixels
    pixel = image * image_stride + (index - image * num_pixels) * pixel_stride
    pointers = maps + pixel[:, None] + components.to(tl.int64)[None, :] * component_stride
    # Ignored pixels may contain NaN.
    given = tl.load(pointers, mask=valid[:, None] & in_vector, other=0.0).to(tl.float32)
    finite = tl.min((tl.abs(given) < float("inf")).to(tl.int32), axis=1) > 0
    given = tl.where(finite[:, None], given, 0.0)
    largest = tl.max(tl.abs(given), axis=1)
    has_direction = finite & (largest > smallest)
    # Once the largest component is 1, squares and their sum do not overflow or underflow.
    scaled = given / tl.where(has_direction, largest, float("inf"))[:, None]
    norm = tl.maximum(tl.sqrt(tl.sum(scaled * scaled, axis=1)), 1.0)
    made = scaled / norm[:, None]
    stored = rows[:, None] * dim + components[None, :]
    if keys is None:
        tl.store(marked + rows, valid & has_direction, mask=inside)
    else:
        # An embedding that has diverged stays visible.
        made = tl.where(finite[:, None], made, float("nan"))
        inverse = 1.0 / tl.where(has_direction, largest, float("inf")) / norm
        tl.store(inverse_length + rows, inverse, mask=inside)
        tl.store(marked + rows, tl.where(valid, label, ignored), mask=inside)
        tl.store(keys + rows, tl.where(valid, index, num_keys), mask=inside)
    tl.store(unit + stored, made, mask=inside[:, None] & in_vector)


@triton.jit(do_not_specialize=["num_rows", "num_pixels", "num_keys", "dim", *STRIDES])
def scatter_kernel(
    upstream, unit, inverse_length, ascending, order, maps, num_rows, num_pixels,
    num_keys: tl.int64, image_stride: tl.int64, component_stride: tl.int64, pixel_stride: tl.int64,
    dim, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program p writes the pixel of sorted row p, if it is the first row of its pixel."""
    position = tl.program_id(0)
    key = tl.load(ascending + position)
    before = tl.load(ascending + position - 1, mask=position > 0, other=-1)
    if (key < num_keys) & (key != before):
        components = tl.arange(0, BLOCK_D)
        in_vector = components < dim
        total = tl.zeros([BLOCK_D], dtype=tl.float32)
        next_key = key
        while next_key == key:
            row = tl.load(order + position)
            own = row * dim + components
            given = tl.load(upstream + own, mask=in_vector, other=0.0).to(tl.float32)
            made = tl.load(unit + own, mask=in_vector, other=0.0)
            tangential = given - made * tl.sum(made * given, axis=0)
            total += tangential * tl.load(inverse_length + row)
            position += 1
            next_key = tl.load(ascending + position, mask=position < num_rows, other=-1)
        image = key.to(tl.int32) // num_pixels
        pixel = image * image_stride + (key - image * num_pixels) * pixel_stride
        pointers = maps + pixel + components.to(tl.int64) * component_stride
        tl.store(pointers, total.to(maps.dtype.element_ty), mask=in_vector)
