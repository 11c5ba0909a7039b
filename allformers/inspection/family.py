"""The family tree, read off the imports of the model files."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

from allformers.models.registry import READING_ORDER, Entry


class Member(NamedTuple):
    """A model's place in the family.

    Attributes:
        entry: the model.
        parent: the name of the model that its class extends, or, if it extends none, of the latest that it takes from.
        takes_from: the names of the other models that it imports parts from.
        added: what it is, or what it added, in a sentence: the beginning of its module's docstring.
        modules: lines of new code in its file that say what it computes: classes and functions.
        configuration: lines that say of which sizes it may be, and is.
        tables: lines of `checkpoint.py` beside it, that say how checkpoints call all that.
    """

    entry: Entry
    parent: str | None
    takes_from: tuple[str, ...]
    added: str
    modules: int
    configuration: int
    tables: int

    @property
    def lines(self) -> int:
        """Lines of new code: no empty ones, no comments, no docstrings, no imports."""
        return self.modules + self.configuration + self.tables


def family() -> list[Member]:
    """All models in reading order, each with its ancestors, read off the imports of their files."""
    names = {entry.module: entry.name for entry in READING_ORDER}
    members = []
    for entry in READING_ORDER:
        path = Path(__file__).parents[2] / f"{entry.module.replace('.', '/')}.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        origin = {
            alias.asname or alias.name: names[node.module]
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and node.module in names
            for alias in node.names
        }
        (own,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == entry.class_name)
        extended = [origin[base.id] for base in own.bases if isinstance(base, ast.Name) and base.id in origin]
        taken = [other.name for other in READING_ORDER if other.name in origin.values()]
        parent = next(iter(extended), taken[-1] if taken else None)
        text = re.sub(r"\s+", " ", (ast.get_docstring(tree) or "").partition("\n\n")[0])
        others = tuple(name for name in taken if name != parent)
        added = text.partition(": ")[2] or text
        members.append(Member(entry, parent, others, added, **_lines_by_part(path, tree)))
    return members


def _lines_by_part(path: Path, tree: ast.Module) -> dict[str, int]:
    """The lines of code of each part of a model; a constant belongs to the part that it stands before."""
    code = _code_lines(path, tree)
    counted = {"modules": 0, "configuration": 0, "tables": 0}
    part = "modules"
    for node in reversed(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            part = "configuration" if node.name.endswith("Config") else "modules"
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        counted[part] += len(code & {*range(first, (node.end_lineno or node.lineno) + 1)})
    beside = path.with_name("checkpoint.py")
    counted["tables"] = len(_code_lines(beside, ast.parse(beside.read_text(encoding="utf-8"))))
    return counted


def _code_lines(path: Path, tree: ast.Module) -> set[int]:
    """Which lines of a file hold code of its own."""

    def is_other(node: ast.AST) -> bool:
        is_told = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        return is_told or isinstance(node, ast.Import | ast.ImportFrom)

    others = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and is_other(node)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return {number for number, line in lines if line.strip() and not line.lstrip().startswith("#")} - others
