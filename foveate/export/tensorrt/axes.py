"""Computes the sizes of a graph's named axes; a name may be an expression of other names."""

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
    """The size of an axis, given the `sizes` of names: "text + u0" is 7 where text is 3 and u0 is 4.

    Raises:
        ValueError: It is no such expression, or has a name without a size.
    """
    if isinstance(axis, int):
        return axis
    if axis in sizes:
        return sizes[axis]

    def value(node: ast.expr) -> int:
        """The value of a part of the expression."""
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
