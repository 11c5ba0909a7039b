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
    of_text = {id(node.func) for node in ast.walk(source) if isinstance(node, ast.Call) and _splits_text(node)}
    for node in ast.walk(source):
        if id(node) in of_text:
            continue
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield node.lineno, "@"
        elif isinstance(node, ast.Attribute) and (node.attr in UNNAMED or node.attr.startswith("Transformer")):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Subscript):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            is_type = isinstance(node.value, ast.Name) and node.value.id[0].isupper()  # such as Callable[..., None]
            if not is_type and any(isinstance(part, ast.Constant) and part.value is None for part in parts):
                yield node.lineno, "[None]"


def _splits_text(call: ast.Call) -> bool:
    """True if a call of `split` is a string's: it takes nothing, or a separator, and a tensor's takes sizes."""
    is_split = isinstance(call.func, ast.Attribute) and call.func.attr == "split"
    return is_split and all(isinstance(a, ast.Constant) and isinstance(a.value, str) for a in call.args)
