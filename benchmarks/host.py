"""Host time of the fused form: `info_nce`, forward and backward, with kernels that do nothing.

    python -m benchmarks.host
    python -m benchmarks.host --before CHECKOUT --out benchmarks/results

Needs no GPU. Triton binds the arguments of every launch as for an H100, but neither compiles nor
runs a kernel. With `--before`, processes of that checkout of pixcontrast and of this one alternate,
and `--out` writes `host.json`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure.arguments import command_parser
from benchmarks._measure.command import write_record
from benchmarks._measure.timers import now

HERE = Path(__file__).parents[1]
CASES = ("the bank", "the anchors", "both")
WARM_UP, CALLS, PROCESSES = 30, 300, 5


def main(arguments: list[str] | None = None) -> None:
    """Print the median time and the number of launches of each case, or compare two checkouts."""
    parser = command_parser("host", __doc__)
    add = parser.add_argument
    add("--package", type=Path, default=HERE, metavar="CHECKOUT", help="what to measure")
    add("--before", type=Path, metavar="CHECKOUT", help="what to compare with")
    add("--out", type=Path, metavar="FOLDER", help="with --before: where to write host.json")
    options = parser.parse_args(arguments)
    if options.before is None:
        _measure(options.package)
        return
    # It imports pixcontrast, which `_measure` has to import from another checkout.
    from benchmarks._measure.environment import describe_environment

    environment, rows = describe_environment(), []
    found: dict[Path, list[list[float]]] = {options.before: [], options.package: []}
    for _ in range(PROCESSES):
        for checkout, runs in found.items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.host",
                "--package",
                str(checkout.resolve()),
            ]
            printed = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE).stdout
            runs.append([float(line.split()[0]) for line in printed.splitlines()])
    for index, case in enumerate(CASES):
        before, after = ([run[index] for run in runs] for runs in found.values())
        slow, fast = statistics.median(before), statistics.median(after)
        ratio = fast / slow
        rows.append({"case": case, "before": before, "after": after, "ratio_of_medians": ratio})
        print(f"{slow:.3f} ms before, {fast:.3f} ms after, {ratio:.2f}, against {case}")
    if options.out is not None:
        commit = _commit_of(options.before)
        record = {"environment": environment, "before": commit, "unit": "ms", "rows": rows}
        write_record(options.out / "host.json", record)


def _commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def _measure(package: Path) -> None:
    sys.path.insert(0, str(package))
    import pixcontrast

    assert package.resolve() in Path(pixcontrast.__file__).resolve().parents
    torch.set_num_threads(1)
    launches = pretend_h100()
    for case, run in zip(CASES, _runs(), strict=True):
        seconds = []
        for _ in range(WARM_UP + CALLS):
            launches.clear()
            start = now()
            run()
            seconds.append(now() - start)
        milliseconds = 1e3 * statistics.median(seconds[WARM_UP:])
        print(f"{milliseconds:.3f} ms, {len(launches)} launches, against {case}")


def pretend_h100() -> list[Any]:
    """Let `info_nce` launch kernels on CPU tensors; returns a list that gets every launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import CompiledKernel
    from triton.runtime.jit import JITFunction

    from pixcontrast import functional

    launches: list[Any] = []

    class NoKernel(CompiledKernel):  # type: ignore[misc]
        """A compiled kernel that does nothing but what the host does to launch it."""

        name = src = function = packed_metadata = None

        def __init__(self) -> None: ...

        def _init_handles(self) -> None: ...

        def run(self, *arguments: Any) -> None:
            launches.append(arguments[:3])

    kernel = NoKernel()

    def compile_nothing(self: Any, key: Any, signature: Any, device: Any, *_: Any) -> Any:
        return self.device_caches[device][0].setdefault(key, kernel)

    driver = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda _: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    triton.runtime.driver.set_active(driver)
    JITFunction._do_compile = compile_nothing
    properties = SimpleNamespace(multi_processor_count=132)
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.get_device_properties = lambda *_: properties  # type: ignore[assignment]
    vars(functional)["choose"] = lambda backend, _: backend
    return launches


def _runs() -> list[Callable[[], object]]:
    """Return a small call of each case: the host's time does not depend on the sizes."""
    from pixcontrast.functional import info_nce

    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(64, 64, generator=generator).requires_grad_()
    labels = torch.randint(0, 19, (64,), generator=generator)
    bank, bank_labels = torch.randn(380, 64, generator=generator), torch.arange(380) // 20

    def run(contrast: list[Tensor | None], names: list[Tensor | None]) -> Callable[[], object]:
        def call() -> object:
            loss = info_nce(anchors, labels, contrast, names, backend="triton")
            return torch.autograd.grad(loss, anchors)

        return call

    return [run([bank], [bank_labels]), run([None], [None]), run([None, bank], [None, bank_labels])]


if __name__ == "__main__":
    main()
