"""The text of an exercise: the file that a learner begins with, and the solution. Both come from one place."""

import ast
import difflib
import importlib
import inspect
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType

from allformers.practice.course import entry_of
from allformers.practice.exercise import Exercise

NOT_WRITTEN = "not written yet"
"""The message that a body which is left to write raises."""

_HERE = "allformers.practice."


def stub(exercise: Exercise) -> str:
    """The file that a learner begins with: the task, the imports, signatures without bodies, or code with a bug."""
    entry = entry_of(exercise)
    told = f"{entry.title}: {entry.teaches}"
    check = f"    allformers practice check {entry.name}"
    docstring = "\n\n".join([textwrap.fill(told, 120, initial_indent='"""').strip(), entry.task, check])
    return f'{docstring}\n"""\n\n{code(exercise, solved=False)}'


def answer(exercise: Exercise) -> str:
    """The answer for a learner who gives up: the code with its bodies, or, of a hunt, the lines to change."""
    solved = code(exercise, solved=True)
    if exercise.bug is None:
        return solved
    before, after = (code(exercise, solved=done).splitlines() for done in (False, True))
    changes = list(difflib.unified_diff(before, after, lineterm="", n=2))
    return "\n".join(line for line in changes if not line.startswith(("---", "+++"))) + "\n"


def code(exercise: Exercise, *, solved: bool) -> str:
    """The imports and the code, with the solution's bodies or as a learner begins."""
    module = sys.modules[exercise.main.__module__]
    own = module.__name__ == exercise.module
    names = {thing.__name__ for thing in exercise.solution}
    defined = dict(_definitions(ast.parse(inspect.getsource(module))))
    lines = inspect.getsource(module).splitlines()
    wanted, waiting = set(names), list(names)
    while own and waiting:  # what the solution uses of its own file is given
        new = (_names(defined[waiting.pop()]) & set(defined)) - wanted
        wanted |= new
        waiting += new
    used = set().union(*(_names(defined[name]) for name in wanted))
    if not solved and exercise.bug is None:
        used.add("torch")  # a learner may go another way than the solution, and reach for it

    pieces = [_imports(module, used, set(defined) - wanted)]
    for name, node in defined.items():
        if name in wanted:
            text = "\n".join(lines[_first_line(node) - 1 : node.end_lineno])
            is_blank = name in names and not solved and exercise.bug is None
            pieces.append(_without_bodies(text) if is_blank else text)
    text = pieces[0] + "\n\n\n" + "\n\n\n".join(pieces[1:]) + "\n"
    if exercise.bug is None or solved:
        return text
    count = text.count(exercise.bug.replace)
    if count != 1:
        raise ValueError(f"the source has {exercise.bug.replace!r} {count} times, expected once")
    before, after = text.split(exercise.bug.replace)
    return _without_comment(before) + exercise.bug.by + after


def _without_comment(before: str) -> str:
    """The text before a mistake, without the comment above its line, which says how it should be."""
    *lines, begun = before.split("\n")
    while lines and lines[-1].lstrip().startswith("#"):
        lines.pop()
    return "\n".join([*lines, begun])


def checked_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The functions and methods of a file that are `@checked`, by name."""
    for node in tree.body:
        owner = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for function in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(function, ast.FunctionDef) and any(
                isinstance(d, ast.Name) and d.id == "checked" for d in function.decorator_list
            ):
                yield owner + function.name, function


def is_stub(function: ast.FunctionDef) -> bool:
    """True if a function has no body yet."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return all(isinstance(s, ast.Raise | ast.Pass) or _is_ellipsis(s) for s in body) and (
        not body or not isinstance(body[0], ast.Raise) or "NotImplementedError" in ast.unparse(body[0])
    )


def _is_ellipsis(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and statement.value.value is ...
    )


def _without_bodies(text: str) -> str:
    """A piece of source in which what is `@checked` has its signature and docstring only."""
    lines = text.splitlines()
    for _, function in reversed(list(checked_functions(ast.parse(text)))):
        first = function.body[0]
        documented = ast.get_docstring(function) is not None
        end = (first.end_lineno or 0) if documented else first.lineno - 1
        rest = f'{" " * first.col_offset}raise NotImplementedError("{NOT_WRITTEN}")'
        lines[end : function.end_lineno] = [rest]
    return "\n".join(lines)


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    """The definitions of a module, by name."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name):
                yield target.id, node


def _first_line(node: ast.stmt) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _imports(module: ModuleType, used: set[str], left_behind: set[str]) -> str:
    """The imports that some code of a module needs elsewhere: as in the module, and what it defines itself.

    What comes from another exercise comes from the learner's own file.
    """
    groups: dict[int, list[str]] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        kept = [alias for alias in node.names if (alias.asname or alias.name).partition(".")[0] in used]
        if not kept:
            continue
        if isinstance(node, ast.Import):
            groups.setdefault(_group(kept[0].name), []).append(ast.unparse(ast.Import(kept)))
        else:
            source = (node.module or "").removeprefix(f"{_HERE}exercises.")
            groups.setdefault(_group(source), []).append(ast.unparse(ast.ImportFrom(source, kept, 0)))
    if used & left_behind:
        line = f"from {module.__name__} import {', '.join(sorted(used & left_behind))}"
        groups.setdefault(_group(module.__name__), []).append(line)
    for ours in (2, 3):
        groups.get(ours, []).sort()
    return "\n\n".join("\n".join(groups[number]) for number in sorted(groups))


def _group(name: str) -> int:
    """The group that an import belongs to: the standard library, other packages, this one, the learner's own files."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names:
        return 0
    if root == "allformers":
        return 2
    is_exercise = importlib.util.find_spec(f"{_HERE}exercises.{name}") is not None if "." not in name else False
    return 3 if is_exercise else 1
