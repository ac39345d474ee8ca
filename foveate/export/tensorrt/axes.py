"""Free axes of a graph: their names, which may be sums and quotients of others, as sizes."""

import ast
import operator
from collections.abc import Callable, Mapping

OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def axis_size(axis: int | str, sizes: Mapping[str, int]) -> int:
    """The size of an axis where its parts have `sizes`: "text + u0" at text 3, u0 4 is 7.

    Raises:
        ValueError: It is made of something else than sizes, or of one that is not given.
    """
    if isinstance(axis, int):
        return axis
    if axis in sizes:
        return sizes[axis]

    def value(node: ast.expr) -> int:
        """What part of the expression comes to."""
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in sizes:
            return sizes[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(f"the axis '{axis}' has no known size")

    try:
        return value(ast.parse(axis, mode="eval").body)
    except (SyntaxError, RecursionError, ZeroDivisionError, MemoryError):
        raise ValueError(f"the axis '{axis}' has no known size") from None
