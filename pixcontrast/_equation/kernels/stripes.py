"""Whole rows of similarities written out, a few rows at a time: what mining selects from."""

from __future__ import annotations

import triton
import triton.language as tl

from pixcontrast._equation.kernels.similarity import fetch, similarities


@triton.jit(do_not_specialize=["first_row", "last_row", "num_entries", "logits_stride"])
def stripe_kernel(
    rows,
    first_row,
    last_row,
    entries,
    entry_classes,
    num_entries,
    row_stride,
    column_stride,
    largest,
    logits,
    logits_stride,
    scale,
    limit,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BOUNDED: tl.constexpr,
    NARROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Program (j, i): the similarities of an anchor block with entry block j.

    Blocks stand as in the other passes, the i-th from that of `first_row`: a product's last bit
    may depend on where in a tile it stands.
    """
    first_block = first_row // BLOCK_M
    row_numbers = (first_block + tl.program_id(1)) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row_numbers < last_row
    numbers = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    within = numbers < num_entries
    there = tl.load(entry_classes + numbers, mask=within, other=-1) >= 0
    anchors = fetch(rows, row_numbers, inside, D, 1, largest, rows, D, BLOCK_D, False)
    columns = fetch(
        entries, numbers, there, row_stride, column_stride, largest, rows, D, BLOCK_D, NARROWS
    )
    made = similarities(anchors, columns, scale, limit, BOUNDED, PRECISION, WIDEN)
    places = (row_numbers - first_row).to(tl.int64)[:, None] * logits_stride + numbers[None, :]
    tl.store(
        logits + places, made, mask=(inside & (row_numbers >= first_row))[:, None] & within[None, :]
    )
