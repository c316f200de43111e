"""Triton kernel that resizes labels and predictions to the size of an embedding map."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from pixcontrast._launch import launch_on
from pixcontrast._tensors import IGNORED
from pixcontrast._triton import ceil_div

BLOCK = 256
NO_LIMIT = (1 << 63) - 1


def resize_maps(
    labels: Tensor,
    preds: Tensor | None,
    weight: Tensor | None,
    size: Sequence[int],
    ignore_index: int,
    num_classes: int | None,
) -> tuple[Tensor, Tensor | None]:
    """Compute `maps.flat_maps`, for tensors that are not empty.

    Labels have shape (B, *S_any), predictions (B, *S_any) or (B, C, *S_any), and the weight has
    the size (B, P) of the embedding.
    """
    marked = labels.new_empty(labels.shape[0], math.prod(size), dtype=torch.int64)
    classes = None if preds is None else torch.empty_like(marked)
    weight = None if weight is None else weight.contiguous()
    has_logits = preds is not None and preds.is_floating_point()
    num_logits, logit_stride = 1, 0
    if preds is not None and has_logits:
        num_logits, logit_stride = preds.shape[1], preds.stride(1)
    launch_on(
        labels,
        maps_kernel,
        (ceil_div(marked.shape[1], BLOCK), len(marked)),
        *(_as_numbers(labels), _as_numbers(preds), _as_numbers(weight), marked, classes),
        *(*_layout(labels, len(size)), *_layout(preds, len(size)), logit_stride, num_logits),
        *([1, 1, *size][-3:]),
        *(ignore_index, NO_LIMIT if num_classes is None else num_classes, IGNORED),
        BLOCK=BLOCK,
    )
    return marked, classes


def _as_numbers(pixel_map: Tensor | None) -> Tensor | None:
    if pixel_map is None or pixel_map.dtype != torch.bool:
        return pixel_map
    return pixel_map.view(torch.uint8)


def _layout(pixel_map: Tensor | None, num_dims: int) -> tuple[int, ...]:
    """Return the sizes of three spatial dimensions, and the strides of images and dimensions."""
    if pixel_map is None:
        return (1, 1, 1, 0, 0, 0, 0)
    missing = 3 - num_dims
    sizes = (*missing * (1,), *pixel_map.shape[-num_dims:])
    return (*sizes, pixel_map.stride(0), *missing * (0,), *pixel_map.stride()[-num_dims:])


DIMS = ("depth", "height", "width")
NUMBERS = [
    *(f"{tensor}_{dim}" for tensor in ("label", "pred") for dim in DIMS),
    *(f"{tensor}_{dim}_stride" for tensor in ("label", "pred") for dim in ("image", *DIMS)),
    *("logit_stride", "num_logits", *DIMS, "ignore_index", "num_classes", "ignored"),
]


@triton.jit(do_not_specialize=NUMBERS)
def maps_kernel(
    labels, preds, weight, marked, classes,
    label_depth, label_height, label_width,
    label_image_stride: tl.int64, label_depth_stride: tl.int64, label_height_stride: tl.int64,
    label_width_stride: tl.int64,
    pred_depth, pred_height, pred_width,
    pred_image_stride: tl.int64, pred_depth_stride: tl.int64, pred_height_stride: tl.int64,
    pred_width_stride: tl.int64,
    logit_stride: tl.int64, num_logits, depth, height, width,
    ignore_index: tl.int64, num_classes: tl.int64, ignored, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (j, b) writes block j of the pixels of image b."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    num_pixels = depth * height * width
    inside = pixel < num_pixels
    row = pixel // width
    slab = row // height
    column = pixel - row * width
    row -= slab * height
    source = image * label_image_stride
    source += _nearest(slab, label_depth, depth) * label_depth_stride
    source += _nearest(row, label_height, height) * label_height_stride
    source += _nearest(column, label_width, width) * label_width_stride
    label = tl.load(labels + source, mask=inside, other=0).to(tl.int64)
    is_ignored = (label < 0) | (label == ignore_index) | (label >= num_classes)
    target = image * num_pixels + pixel
    if weight is not None:
        is_ignored |= tl.load(weight + target, mask=inside, other=0) == 0
    tl.store(marked + target, tl.where(is_ignored, ignored, label), mask=inside)
    if preds is not None:
        source = image * pred_image_stride
        source += _nearest(slab, pred_depth, depth) * pred_depth_stride
        source += _nearest(row, pred_height, height) * pred_height_stride
        source += _nearest(column, pred_width, width) * pred_width_stride
        value = tl.load(preds + source, mask=inside, other=0)
        if preds.dtype.element_ty.is_floating():
            largest = _wide(value)
            best = pixel * 0
            for index in range(1, num_logits):
                value = _wide(tl.load(preds + source + index * logit_stride, mask=inside, other=0))
                # As `max` of PyTorch: the first of equal values, and NaN is the largest.
                better = (value > largest) | ((value != value) & (largest == largest))
                largest = tl.where(better, value, largest)
                best = tl.where(better, index, best)
            tl.store(classes + target, best.to(tl.int64), mask=inside)
        else:
            tl.store(classes + target, value.to(tl.int64), mask=inside)


@triton.jit
def _wide(value):
    if value.dtype == tl.float64:
        return value
    return value.to(tl.float32)


@triton.jit
def _nearest(pixel, old, new):
    """Return the pixel of a dimension of `old` pixels for each of `new` pixels, in float32."""
    scale = tl.div_rn(old.to(tl.float32), new.to(tl.float32))
    return tl.minimum((pixel.to(tl.float32) * scale).to(tl.int32), old - 1).to(tl.int64)
