"""Small faults put into the package one at a time, and which of them the tests see.

    python -m benchmarks.reliability.mutants samplers.py --out mutants.jsonl

Each fault (another comparison, another operator, a number one off, a condition turned round) is
written into a copy of the checkout, where a fork of this process runs the tests of that file. What
no test sees is printed, and is to be killed by a new test or explained in docs/reliability.md.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

ROOT = Path(__file__).parents[2]
SECONDS = 400
EQUATION = "test_equation.py test_numerics.py test_equation_properties.py"
BANK = "test_bank.py test_checkpoints.py test_bank_states.py"
TESTS = {
    "samplers.py": "test_samplers.py test_errors.py test_public_api.py",
    "_groups.py": "test_samplers.py test_errors.py",
    "bank.py": BANK,
    "_ring.py": BANK,
    "_bank_state.py": BANK,
    "mining.py": "test_mining.py test_selection.py test_errors.py",
    **{
        f"_equation/{name}.py": EQUATION
        for name in ("reduction", "problem", "coefficients", "dense", "tiled", "partial")
    },
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.Mod: ast.Add,
    ast.FloorDiv: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip
ENDS_OF_RANGE = {"clamp": "abs", "amax": "amin", "maximum": "minimum", "minimum": "maximum"}


def main(arguments: list[str] | None = None) -> int:
    """Every mutant of the files, or as many as asked for, drawn by a fixed seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", choices=sorted(TESTS))
    parser.add_argument("--most", type=int, help="mutants of each file")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    done = _done(options.out)
    import torch  # once for all forks; what pytest rewrites it has to import itself

    torch.set_num_threads(1)
    survived, sound = 0, set[str]()
    for name in options.files:
        source = (ROOT / "pixcontrast" / name).read_text()
        if TESTS[name] not in sound:
            if run_tests(name, ast.unparse(ast.parse(source))) != "survived":
                raise SystemExit(f"{name}: its tests fail without any fault")
            sound.add(TESTS[name])
        found = list(mutants(source))
        if options.most is not None and len(found) > options.most:
            found = sorted(Random(0).sample(found, options.most))
        for line, what, mutated in found:
            if (name, line, what) in done:
                continue
            start = time.monotonic()
            status = run_tests(name, mutated)
            row = {"file": name, "line": line, "what": what, "status": status,
                   "seconds": round(time.monotonic() - start, 1)}  # fmt: skip
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if status == "survived":
                survived += 1
                print(name, line, what, flush=True)
    return 1 if survived else 0


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, what was changed, and the source with that one change."""
    tree = ast.parse(source)
    for number, node in enumerate(ast.walk(tree)):
        for change in range(_changes_of(node)):
            other = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(other)) if i == number)
            before = ast.unparse(target)
            _change(target, change)
            after = ast.unparse(target)
            if before != after:
                yield getattr(node, "lineno", 0), f"{before} -> {after}", ast.unparse(other)


def _changes_of(node: ast.AST) -> int:
    if isinstance(node, ast.Compare):
        return len(node.ops)
    if isinstance(node, (ast.BinOp, ast.AugAssign)):
        # Unions of types are no arithmetic.
        typed = isinstance(node, ast.BinOp) and "None" in ast.unparse(node)
        return int(type(node.op) in OPERATORS and not typed)
    if isinstance(node, (ast.BoolOp, ast.If, ast.IfExp)):
        return 1
    if isinstance(node, ast.UnaryOp):
        return int(isinstance(node.op, (ast.USub, ast.Invert, ast.Not)))
    if isinstance(node, ast.Constant):
        return int(isinstance(node.value, (int, float)))
    if isinstance(node, ast.Attribute):
        return int(node.attr in ENDS_OF_RANGE)
    return 0


def _change(node: ast.AST, number: int) -> None:
    if isinstance(node, ast.Compare):
        node.ops[number] = COMPARISONS[type(node.ops[number])]()
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, (ast.If, ast.IfExp)):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.UnaryOp):
        node.op = ast.UAdd() if not isinstance(node.op, ast.Not) else ast.Not()
        if isinstance(node.op, ast.Not):
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant):
        value = node.value
        node.value = not value if isinstance(value, bool) else value + 1  # type: ignore[operator]
    elif isinstance(node, ast.Attribute):
        node.attr = ENDS_OF_RANGE[node.attr]


def run_tests(name: str, mutated: str) -> str:
    """killed, survived or timed out, of the tests of a file with this text in its place."""
    folder = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        for part in ("pixcontrast", "tests", "benchmarks", "pyproject.toml"):
            source = ROOT / part
            ignored = shutil.ignore_patterns("__pycache__", "results", "*.png", "*.jsonl")
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=ignored)
            else:
                shutil.copy(source, folder / part)
        (folder / "pixcontrast" / name).write_text(mutated)
        return _in_fork(folder, [f"tests/{test}" for test in TESTS[name].split()])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _in_fork(folder: Path, tests: list[str]) -> str:
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        # `pixcontrast` of the copy, and not what this module's package belongs to.
        for module in [m for m in sys.modules if m.split(".")[0] in ("benchmarks", "pixcontrast")]:
            del sys.modules[module]
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        import pytest

        there = [test for test in tests if Path(test).exists()]
        os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *there])))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return "survived" if status == 0 else "killed"
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timed out"


def _done(path: Path) -> set[tuple[str, int, str]]:
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["file"], row["line"], row["what"]) for row in rows}


if __name__ == "__main__":
    raise SystemExit(main())
