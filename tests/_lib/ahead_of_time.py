"""Kernels compiled for cards that are not there: Triton needs none of them for that."""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.kernels.denominator import denominator_kernel
from pixcontrast._info_nce.fused.kernels.entries_gradient import entries_gradient_kernel
from pixcontrast._info_nce.fused.kernels.positives import positives_kernel
from pixcontrast._info_nce.fused.kernels.radix_select import count_kernel
from pixcontrast._info_nce.fused.launch import padded_dim

KERNELS = {
    "denominator": denominator_kernel,
    "positives": positives_kernel,
    "entries": entries_gradient_kernel,
    "selection": count_kernel,
}
# Bytes of shared memory that a program may have.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
FLOATS = (
    "negative_logit",
    "positive_logit",
    "min_hardness",
    "maxima",
    "totals",
    "weighted_sums",
    "lse",
    "losses",
    "weight",
    "weights",
    "positive_sums",
    "inv_num_positives",
    "upstream",
    "gradients",
)
NUMBERS = ("largest", "scale", "limit", "shrink", "inverse_temperature")
SIZES = ("num_entries", "row_stride", "num_blocks", "num_anchors", "shift")


class Compiled(NamedTuple):
    """What the compiler made of a kernel."""

    shared: int
    stack: int
    ptx: str


def compile_kernel(
    name: str, configuration: Configuration, kind: str, dim: int, card: int, **constants: Any
) -> Compiled:
    """A pass with gradients, compiled as it is launched for contiguous vectors of `dim`."""
    kernel: Any = KERNELS[name]
    values = {
        "D": dim,
        "BLOCK_D": padded_dim(dim),
        "BLOCK_M": configuration.rows,
        "BLOCK_N": configuration.columns,
        "TILES": 1,
        "IS_ANCHORS": name == "entries",
        "BOTH_ROLES": name == "entries",
        "ALL": False,
        "BOUNDED": False,
        "WEIGHTED": True,
        "MINED": False,
        "PRECISION": "ieee" if kind == "ieee" else "tf32",
        "IN_FLOAT32": False,
        "POSITIVE": False,
        "BY_KEY": False,
        "POOLED": False,
        "column_stride": 1,
        **({} if kind == "mixed" else {"largest": None}),
        **constants,
    }
    types = {argument: _type(argument, kind) for argument in kernel.arg_names}
    aligned = {name for name, type_ in types.items() if type_.startswith("*")} | {"row_stride"}
    options = {"num_warps": configuration.warps, "num_stages": configuration.stages}
    return compiled(kernel, types, values, aligned, card, options)


def compiled(
    kernel: Any,
    types: dict[str, str],
    values: dict[str, Any],
    aligned: set[str],
    card: int,
    options: dict[str, int],
) -> Compiled:
    """A kernel compiled for a card, with arguments of these types but for the given `values`.

    `aligned` names what is a multiple of 16, of bytes or of elements.
    """
    signature, given, attributes = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        signature[argument] = "constexpr" if argument in values else types[argument]
        if argument in values:
            given[(place,)] = values[argument]
        elif argument in aligned:
            attributes[(place,)] = [["tt.divisibility", 16]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a future default of the compiler
        made = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=given, attrs=attributes),
            target=GPUTarget("cuda", card, 32),
            options=options,
        )
    return Compiled(made.metadata.shared, _stack(made.asm["cubin"]), made.asm["ptx"])


def _type(argument: str, kind: str) -> str:
    if argument == "anchors":
        return "*bf16" if kind in ("16", "mixed") else "*fp32"
    if argument == "entries":
        return "*bf16" if kind == "16" else "*fp32"
    if argument in FLOATS:
        return "*fp32"
    if argument in NUMBERS:
        return "fp32"
    return "i32" if argument in SIZES else "*i32"


def _stack(cubin: bytes) -> int:
    """Bytes of the stack of each thread: more than none are spilled registers."""
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), "--dump-resource-usage", file.name]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1])
