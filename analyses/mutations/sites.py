"""Where a small change can be planted in a file, and its text after the change."""

from __future__ import annotations

import ast
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", ">="),
    ast.LtE: ("<=", ">"),
    ast.Gt: (">", "<="),
    ast.GtE: (">=", "<"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.Pow: ("**", "*"),
}
LOGIC: dict[type[ast.boolop], tuple[str, str]] = {ast.And: ("and", "or"), ast.Or: ("or", "and")}


@dataclass(frozen=True)
class Site:
    """A change of one token: ``old`` becomes ``new`` from a character of the text on."""

    kind: str
    line: int
    start: int
    old: str
    new: str

    def planted(self, text: str) -> str:
        """Return the text with the change."""
        assert text.startswith(self.old, self.start)
        return text[: self.start] + self.new + text[self.start + len(self.old) :]


def sites_in(text: str) -> list[Site]:
    """Return every operator, constant and index of a file that can be changed.

    Left out is what computes nothing: messages of exceptions and of the log, annotations, docstrings.
    """
    found: list[Site] = []
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(line: int, column: int) -> int:
        row = text[starts[line - 1] : starts[line]]
        return starts[line - 1] + len(row.encode()[:column].decode())

    def between(left: ast.AST, right: ast.AST, old: str, new: str, kind: str) -> None:
        first, last = place(left.end_lineno, left.end_col_offset), place(right.lineno, right.col_offset)
        at = text.find(old, first, last)
        if at >= 0 and text.count(old, first, last) == 1:
            found.append(Site(kind, text.count("\n", 0, at) + 1, at, old, new))

    def number(node: ast.Constant, kind: str) -> None:
        old = text[place(node.lineno, node.col_offset) : place(node.end_lineno or 0, node.end_col_offset or 0)]
        value = node.value
        new = str(value + 1) if isinstance(value, int) else repr(2 * value if value else 1.0)
        found.append(Site(kind, node.lineno, place(node.lineno, node.col_offset), old, new))

    def visit(node: ast.AST, is_index: bool = False) -> None:
        if isinstance(node, (ast.Raise, ast.JoinedStr)) or _is_log(node):
            return
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            number(node, "index" if is_index else "constant")
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
            between(node.left, node.comparators[0], *COMPARISONS[type(node.ops[0])], "operator")
        if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
            between(node.left, node.right, *ARITHMETIC[type(node.op)], "operator")
        if isinstance(node, ast.BoolOp):
            between(node.values[0], node.values[1], *LOGIC[type(node.op)], "operator")
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_comment", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    visit(child, is_index or (isinstance(node, ast.Subscript) and name == "slice"))

    visit(ast.parse(text))
    return sorted(found, key=lambda site: site.start)


def _is_log(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    return isinstance(node.func.value, ast.Name) and node.func.value.id in ("logger", "_LOG", "warnings")
