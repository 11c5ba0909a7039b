"""Operations on axes that do not name them: what this package does without, and a learner's code is told of."""

import ast
from collections.abc import Iterator

UNNAMED = frozenset(
    """
    view reshape transpose permute t T mT unsqueeze squeeze flatten unflatten expand repeat repeat_interleave chunk
    split stack hstack vstack swapaxes swapdims movedim matmul bmm mm mv addmm baddbmm tensordot einsum
    scaled_dot_product_attention MultiheadAttention
    """.split()  # noqa: SIM905  (reads better than a list)
)
"""Attributes, of a tensor or of a module, that rearrange, join, split or contract axes by their places."""


def violations(source: ast.AST) -> Iterator[tuple[int, str]]:
    """Every operation on axes that does not name them: its line, and what it is."""
    for node in ast.walk(source):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield node.lineno, "@"
        elif isinstance(node, ast.Attribute) and (node.attr in UNNAMED or node.attr.startswith("Transformer")):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Subscript):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            is_type = isinstance(node.value, ast.Name) and node.value.id[0].isupper()  # such as Callable[..., None]
            if not is_type and any(isinstance(part, ast.Constant) and part.value is None for part in parts):
                yield node.lineno, "[None]"
