"""The family tree, read off the imports of the model files."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

from allformers.models.registry import READING_ORDER, Entry


class Member(NamedTuple):
    """A model's position in the family tree, and its lines of new code.

    Attributes:
        entry: the model.
        parent: the name of the model that its class extends, or, if it extends none, of the latest that it takes from.
        takes_from: the names of the other models that it imports parts from.
        added: a sentence on what is new since its parent: the beginning of its module's docstring.
        modules: lines of new classes and functions in its file.
        configuration: lines of its configuration class.
        tables: lines of `checkpoint.py` beside it, which maps the names in checkpoints.
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
    """Return all models in reading order, each with its ancestors, read off the imports of their files."""
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
        (model_class,) = (
            node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == entry.class_name
        )
        extended = [origin[base.id] for base in model_class.bases if isinstance(base, ast.Name) and base.id in origin]
        taken = [other.name for other in READING_ORDER if other.name in origin.values()]
        parent = next(iter(extended), taken[-1] if taken else None)
        text = re.sub(r"\s+", " ", (ast.get_docstring(tree) or "").partition("\n\n")[0])
        others = tuple(name for name in taken if name != parent)
        added = text.partition(": ")[2] or text
        members.append(Member(entry, parent, others, added, **_lines_by_part(path, tree)))
    return members


def _lines_by_part(path: Path, tree: ast.Module) -> dict[str, int]:
    """Count the lines of code of each part of a model; a constant belongs to the part that follows it."""
    code = _code_lines(path, tree)
    counted = {"modules": 0, "configuration": 0, "tables": 0}
    part = "modules"
    for node in reversed(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            part = "configuration" if node.name.endswith("Config") else "modules"
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
        counted[part] += len(code & {*range(first, (node.end_lineno or node.lineno) + 1)})
    checkpoint = path.with_name("checkpoint.py")
    counted["tables"] = len(_code_lines(checkpoint, ast.parse(checkpoint.read_text(encoding="utf-8"))))
    return counted


def _code_lines(path: Path, tree: ast.Module) -> set[int]:
    """Return the numbers of lines with code: no blank lines, comments, docstrings and imports."""

    def is_excluded(node: ast.AST) -> bool:
        is_docstring = (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        )
        return is_docstring or isinstance(node, ast.Import | ast.ImportFrom)

    excluded = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt) and is_excluded(node)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    return {number for number, line in lines if line.strip() and not line.lstrip().startswith("#")} - excluded
