"""Small faults of a source: another comparison, another operator, a number one off, and so on."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import NamedTuple

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


class Fault(NamedTuple):
    """A source with one change.

    Attributes:
        line: of the change, from 1.
        lines: which ones are executed where the change is.
        what: before -> after.
        source: the whole text.
    """

    line: int
    lines: frozenset[int]
    what: str
    source: str


def faults_of(source: str) -> Iterator[Fault]:
    """Every change there is, one at a time."""
    tree = ast.parse(source)
    first_lines, annotations = _first_lines(tree), _annotations(tree)
    for number, node in enumerate(ast.walk(tree)):
        if node in annotations:
            continue
        for change in range(_changes_of(node)):
            other = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(other)) if i == number)
            before = ast.unparse(target)
            _change(target, change)
            after = ast.unparse(target)
            if before != after:
                line = getattr(node, "lineno", 0)
                lines = {line, getattr(node, "end_lineno", line), first_lines.get(node, line)}
                yield Fault(line, frozenset(lines), f"{before} -> {after}", ast.unparse(other))


def _first_lines(tree: ast.AST) -> dict[ast.AST, int]:
    """Of every node, the line at which its statement starts."""
    found: dict[ast.AST, int] = {}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.stmt):
            # Inner statements come later in the walk, and have the last word.
            found |= dict.fromkeys(ast.walk(statement), statement.lineno)
    return found


def _annotations(tree: ast.AST) -> set[ast.AST]:
    """The types that are written beside names, which nothing executes."""
    types: list[ast.AST | None] = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)):
            types.append(node.annotation)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            types.append(node.returns)
    return {part for written in types if written is not None for part in ast.walk(written)}


def _changes_of(node: ast.AST) -> int:
    if isinstance(node, ast.Compare):
        return len(node.ops)
    if isinstance(node, (ast.BinOp, ast.AugAssign)):
        # A union that has a name is no arithmetic.
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
    # What is done for its effect; a docstring is no call.
    return int(isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))


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
    elif isinstance(node, ast.Expr):
        node.value = ast.Constant(None)
