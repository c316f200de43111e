"""Kernels compiled for cards that are not there: Triton needs none of them for that."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pixcontrast._info_nce.fused.configurations import Configuration
from pixcontrast._info_nce.fused.kernels.denominator import denominator_kernel, lse_kernel
from pixcontrast._info_nce.fused.kernels.entries_gradient import entries_gradient_kernel
from pixcontrast._info_nce.fused.kernels.positives import merge_kernel, positives_kernel
from pixcontrast._info_nce.fused.kernels.radix_select import Search, advance_kernel, count_kernel
from pixcontrast._info_nce.fused.kernels.small import small_kernel
from pixcontrast._info_nce.fused.launch import Settings, padded_dim
from pixcontrast._info_nce.fused.layout import Vectors
from pixcontrast._info_nce.fused.passes import DenominatorSums, PositiveSums
from pixcontrast._info_nce.results import AnchorStatistics, ForwardResult
from pixcontrast._info_nce.thresholds import Thresholds

KERNELS = {
    "denominator": denominator_kernel,
    "positives": positives_kernel,
    "entries": entries_gradient_kernel,
    "selection": count_kernel,
    "small": small_kernel,
}
MERGING_KERNELS = {"lse": lse_kernel, "merge": merge_kernel, "advance": advance_kernel}
# Bytes of shared memory that a program may have.
SHARED_MEMORY = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
# Cards of which every variant is compiled, as in PIXCONTRAST_COMPILE=86,120: about an hour for
# each. Without it, tests compile a selection.
COMPLETE_CARDS = {
    int(card) for card in os.environ.get("PIXCONTRAST_COMPILE", "").split(",") if card
}


class Compiled(NamedTuple):
    """What the compiler made of a kernel."""

    shared: int
    stack: int
    ptx: str
    cubin: bytes

    def product_loops(self) -> list[int]:
        """How many instructions each loop with a matrix product has, in the order of the loops.

        The count of a loop includes the loops inside it.
        """
        code = _cuobjdump(self.cubin, "--dump-sass")
        instructions = [
            (int(address, 16), text)
            for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", code)
        ]
        loops = []
        for end, text in instructions:
            branch = re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text)
            if branch is not None and int(branch[1], 16) < end:
                body = [text for at, text in instructions if int(branch[1], 16) <= at <= end]
                if any("MMA" in text for text in body):
                    loops.append(len(body))
        return loops


@dataclass(frozen=True)
class Constant:
    """An argument that is compiled in."""

    value: Any


def compile_kernel(
    name: str, configuration: Configuration, kind: str, dim: int, card: int, **constants: Any
) -> Compiled:
    """A pass with gradients, compiled as it is launched for contiguous vectors of `dim`.

    `constants` replace the flags below; `largest=None` is that of entries which are not converted,
    and `SMALL` compiles the passes over a few anchors against themselves.
    """
    kernel: Any = {**KERNELS, **MERGING_KERNELS}[name]
    flags = {
        "IS_ANCHORS": name in ("entries", "small"),
        "BOTH_ROLES": name == "entries",
        "ALL": False,
        "BOUNDED": False,
        "WEIGHTED": name != "small",
        "MINED": name == "selection",
        "IN_FLOAT32": False,
        "BY_KEY": False,
        "POOLED": False,
        "SMALL": name == "small",
        **({} if kind == "mixed" else {"largest": None}),
        **constants,
    }
    none = Constant(None)
    bits = "*i32" if flags["MINED"] else none
    operand = "*fp32" if kind in ("tf32", "ieee") else "*bf16"
    labels = ("*i64", none, none) if flags["SMALL"] else ("*i32", bits, "*i32")
    anchors = Vectors(operand, *labels, none)
    entries = Vectors(
        "*bf16" if kind == "16" else "*fp32",
        *("*i32", bits, none),
        "fp32" if "largest" not in flags else none,
    )
    if flags["IS_ANCHORS"] and "largest" in flags:
        entries = anchors
    shape = dim, padded_dim(dim), configuration.rows, configuration.columns
    precision = "ieee" if kind == "ieee" else "tf32"
    compiled_in = *shape, precision, *(flags[field] for field in Settings._fields[8:])
    statistics = AnchorStatistics("*fp32", "*fp32", "*fp32")
    sizes = "anchors", "entries", "blocks", "splits", "sums", "weighted", "rows", "columns"
    types = {
        "anchors": anchors,
        "entries": entries,
        "thresholds": Thresholds("*fp32", "*i32", "*fp32", "*i32") if flags["MINED"] else none,
        "statistics": statistics,
        "result": ForwardResult("*fp32", "*i1", "*fp32" if flags["WEIGHTED"] else none, statistics),
        "partials": DenominatorSums("*fp32", "*fp32", "*fp32"),
        "sums": PositiveSums("*i32", "*fp32", "*fp32", "*fp32"),
        "settings": Settings("fp32", "fp32", "fp32", *map(Constant, compiled_in)),
        "min_hardness": "*fp32" if flags["POOLED"] else none,
        "order": "*i64",
        "rows": "*i64",
        "search": Search(*["*i32"] * len(Search._fields)),
        "found": "*i32" if flags["BY_KEY"] else "*fp32",
        **dict.fromkeys(("num_valid", "survey", "requested"), "*i32"),
        **dict.fromkeys(("lse", "upstream", "gradients"), "*fp32"),
        **({"gradients": operand} if flags["SMALL"] else {}),
        **dict.fromkeys(("shrink", "expand", "inverse_temperature"), "fp32"),
        **dict.fromkeys(
            (
                "first_split",
                "stride",
                "most_stored",
                "upstream_stride",
                "of_positives",
                *(f"num_{size}" for size in sizes),
            ),
            "i32",
        ),
    }
    warps = {"num_warps": configuration.warps, "num_stages": configuration.stages}
    if configuration.maxnreg is not None:
        warps["maxnreg"] = configuration.maxnreg
    values = {
        "TILES": 1,
        "SPLITS": 16,
        "COLUMNS": 2048,
        **flags,
        **dict(zip(Settings._fields[3:], compiled_in, strict=True)),
    }
    return compiled(kernel, types, values, set(), card, warps)


def compiled(
    kernel: Any,
    types: dict[str, Any],
    values: dict[str, Any],
    aligned: set[str],
    card: int,
    options: dict[str, int],
) -> Compiled:
    """A kernel compiled for a card, with arguments of these types but for the given `values`.

    A named tuple of types is one argument. `aligned` names integers that are multiples of 16, as
    all addresses are.
    """
    given, attributes = {}, {}

    def signature_of(argument: Any, name: str, place: tuple[int, ...]) -> Any:
        if isinstance(argument, tuple):
            names = type(argument)._fields
            inner = zip(argument, names, itertools.count(), strict=False)
            return type(argument)(*(signature_of(a, n, (*place, i)) for a, n, i in inner))
        if isinstance(argument, Constant):
            given[place] = argument.value
            return "constexpr"
        if argument.startswith("*") or name in aligned:
            attributes[place] = [["tt.divisibility", 16]]
        return argument

    signature = {
        name: signature_of(Constant(values[name]) if name in values else types[name], name, (i,))
        for i, name in enumerate(kernel.arg_names)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a future default of the compiler
        made = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=given, attrs=attributes),
            target=GPUTarget("cuda", card, 32),
            options=options,
        )
    cubin = made.asm["cubin"]
    return Compiled(made.metadata.shared, _stack(cubin), made.asm["ptx"], cubin)


def _stack(cubin: bytes) -> int:
    """Bytes of the stack of each thread: more than none are spilled registers."""
    report = _cuobjdump(cubin, "--dump-resource-usage")
    found = re.search(r"STACK:(\d+)", report)
    assert found is not None, report
    return int(found[1])


def _cuobjdump(cubin: bytes, option: str) -> str:
    program = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
