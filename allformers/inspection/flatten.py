"""A model as one file: each class with all its methods, wherever in the family they are written.

A later model holds what it added and inherits the rest, so that reading all of it means following methods through
several files. `flatten` writes the methods that Python finds into one class for each role:

    >>> from allformers import Qwen2
    >>> source = flatten(Qwen2)
    >>> "class Qwen2Attention(nn.Module):" in source
    True

The file can be run. Written to a module and imported, it has the same state dict and gives the same logits.
"""

import ast
import builtins
import importlib
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from torch import nn

BOOK = "allformers.models."
"""The package whose classes are written out. What comes from elsewhere is imported."""


@dataclass(frozen=True)
class Member:
    """A piece of source: a method, a field or a class attribute, or a function or constant of a module.

    Attributes:
        name: what it defines.
        module: the module in which it is written.
        line: its first line there.
        text: its source, without indentation.
    """

    name: str
    module: str
    line: int
    text: str

    @property
    def place(self) -> str:
        """The file and the line, as a comment."""
        return f"# {self.module.removeprefix(BOOK).replace('.', '/')}.py, line {self.line}"

    def placed(self) -> str:
        """The source with its place behind the first line, or above it where that is a comment or too long."""
        first, *rest = self.text.split("\n")
        if first.startswith("#") or len(first) + len(self.place) > 110:
            return f"{self.place}\n{self.text}"
        return "\n".join([f"{first}  {self.place}", *rest])


def flatten(model_class: type[Any]) -> str:
    """The source of one file that defines a model without inheriting from any other.

    Args:
        model_class: a model of this package, or a class that extends one.

    Raises:
        ValueError: it is no model of this package, or two of its files call different things by one name.
    """
    if not model_class.__module__.startswith(BOOK):
        raise ValueError(
            f"{model_class.__qualname__} is not a model of {BOOK.rstrip('.')}, so it cannot be written out"
        )
    config_class = model_class.checkpoint_format().config_class
    roles = _roles(model_class, config_class)
    renamed = {base.__name__: role.__name__ for role in roles for base in _bases(role) if base is not role}
    # A parent may have the name of another role: two files may each have a Block.
    renamed = {old: new for old, new in renamed.items() if old not in {role.__name__ for role in roles}}
    definitions = {role.__name__: _class_source(role, renamed) for role in roles}
    for member in _globals_of(roles):
        if member.name in definitions:
            raise ValueError(f"{model_class.__name__} cannot be written as one file: two files define {member.name}")
        definitions[member.name] = _rename(member.placed(), renamed) + "\n"
    body = "\n\n".join(definitions[name] for name in _order(definitions))
    about = (_module(model_class.__module__)[0].__doc__ or "").strip()
    files = sorted(
        {base.__module__.removeprefix(BOOK).replace(".", "/") + ".py" for role in roles for base in _bases(role)}
    )
    made = f"One file, written by `allformers show` from {', '.join(files)}."
    return f'"""{about}\n\n{textwrap.fill(made, 120)}\n"""\n\n{_imports(body, roles)}\n\n{body}'


def classes(source: str) -> dict[str, str]:
    """The source of each class of a file, by name."""
    lines = source.splitlines(keepends=True)
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = "".join(lines[_first_line(node) - 1 : node.end_lineno])
    return found


def _bases(cls: type[Any]) -> list[type[Any]]:
    """A class and those that it extends, as far as they belong to the models."""
    return [base for base in cls.__mro__ if base.__module__.startswith(BOOK)]


def _outside(cls: type[Any]) -> type[Any]:
    """The first class that it extends and that does not belong to the models."""
    return next(base for base in cls.__mro__ if not base.__module__.startswith(BOOK))


@cache
def _module(name: str) -> tuple[ModuleType, ast.Module, list[str]]:
    module = importlib.import_module(name)
    source = inspect.getsource(module)
    return module, ast.parse(source), source.splitlines()


def _name_of(node: ast.stmt) -> str | None:
    """The name that a statement of a class or a module defines; None for docstrings, imports and the like."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    target = (
        node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else None
    )
    return target.id if isinstance(target, ast.Name) else None


def _first_line(node: ast.stmt) -> int:
    """The first line of a statement, its decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", []))])


def _member(module: str, node: ast.stmt, name: str) -> Member:
    """A statement with its decorators, the comments above it and the one behind it."""
    lines = _module(module)[2]
    first = _first_line(node)
    while lines[first - 2].lstrip().startswith("#"):
        first -= 1
    text = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))
    return Member(name, module, first, text)


def _own(cls: type[Any]) -> dict[str, Member]:
    """The members that are written in a class itself."""
    return _written_in(cls.__module__, cls.__name__)


@cache
def _written_in(module: str, class_name: str) -> dict[str, Member]:
    """The members that are written in a class of a module."""
    _, tree, _ = _module(module)
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name)
    named = [(_name_of(statement), statement) for statement in node.body]
    return {name: _member(module, statement, name) for name, statement in named if name is not None}


def _members(role: type[Any]) -> dict[str, Member]:
    """All members of a class as Python finds them, and beside each the parents' methods that it calls by `super()`."""
    bases = _bases(role)
    found: dict[str, Member] = {}
    for base in reversed(bases):
        for name, member in _own(base).items():
            # The presets of a parent are other models; one that is called by a preset of this class comes back below.
            if base is not role and _is_class_method(member):
                continue
            found[name] = member
    for name, member in list(found.items()):
        del found[name]
        found.update(_with_parents(role, bases, member))
    asked = re.findall(r"\bcls\.(\w+)\(", "\n".join(member.text for member in found.values()))
    for name in asked:
        if name not in found:
            found.update(_with_parents(role, bases, next(own[name] for base in bases if name in (own := _own(base)))))
    return found


def _is_class_method(member: Member) -> bool:
    return re.match(r"(?:#.*\n)*@classmethod\n", member.text) is not None


def _with_parents(role: type[Any], bases: list[type[Any]], member: Member) -> dict[str, Member]:
    """A member, and the methods that it reaches by `super()`, each under a name of its own."""
    found: dict[str, Member] = {}
    name, text = member.name, member.text
    start = next(place for place, base in enumerate(bases) if _own(base).get(member.name) == member)
    above = [base for base in bases[start + 1 :] if member.name in _own(base)]
    call = f"super().{member.name}"
    if call in text and above:
        parent = _own(above[0])[member.name]
        family = above[0].__module__.split(".")[-2]
        beside = f"{member.name.strip('_')}_of_{family}"
        owner = "cls" if _is_class_method(member) else "self"
        text = text.replace(call, f"{owner}.{beside}")
        for part in _with_parents(role, bases, parent).values():
            if part.name == parent.name:
                renamed = re.sub(rf"\bdef {re.escape(parent.name)}\(", f"def {beside}(", part.text, count=1)
                found[beside] = Member(beside, part.module, part.line, renamed)
            else:
                found[part.name] = part
    return {**found, name: Member(name, member.module, member.line, text)}


@cache
def _names(text: str) -> set[str]:
    """The names that a piece of source uses."""
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _roles(model_class: type[Any], config_class: type[Any]) -> list[type[Any]]:
    """The classes that a model consists of: one for each role, and none that another of them extends."""
    roles = [config_class, model_class]
    while True:
        members = [member for role in roles for member in _members(role).values()]
        used = {
            found
            for member in [*members, *_globals_of(roles)]
            for name in _names(member.text)
            if isinstance(found := vars(_module(member.module)[0]).get(name), type)
            and found.__module__.startswith(BOOK)
        }
        every = [*roles, *sorted(used - set(roles), key=lambda cls: (cls.__module__, cls.__name__))]
        leaves = [one for one in every if not any(other is not one and issubclass(other, one) for other in every)]
        if leaves == roles:
            return roles
        roles = leaves


def _globals_of(roles: Iterable[type[Any]]) -> list[Member]:
    """The functions and constants of the models' files that classes use, and those that these use."""
    found: dict[tuple[str, str], Member] = {}
    waiting = [member for role in roles for member in _members(role).values()]
    while waiting:
        member = waiting.pop(0)
        for name in sorted(_names(member.text)):
            definition = _definition(member.module, name)
            if definition is not None and (definition.module, definition.name) not in found:
                found[definition.module, definition.name] = definition
                waiting.append(definition)
    return list(found.values())


def _definition(module: str, name: str) -> Member | None:
    """The function or constant of the models' files that a name stands for in one of them; None for all else."""
    for node in _module(module)[1].body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(BOOK):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module or "", alias.name)
        elif _name_of(node) == name and not isinstance(node, ast.ClassDef):
            return _member(module, node, name)
    return None


def _rename(text: str, names: Mapping[str, str]) -> str:
    """Rename classes in code; comments and strings stay."""
    lines = text.splitlines(keepends=True)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type == tokenize.NAME]
    for token in reversed(tokens):
        if token.string in names:
            row, column = token.start[0] - 1, token.start[1]
            lines[row] = lines[row][:column] + names[token.string] + lines[row][column + len(token.string) :]
    return "".join(lines)


def _class_source(role: type[Any], renamed: Mapping[str, str]) -> str:
    """A class with all its members; a comment says where those of other files are written."""
    _, tree, lines = _module(role.__module__)
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == role.__name__)
    outside = _outside(role)
    base = "nn.Module" if outside is nn.Module else outside.__name__
    decorators = [f"@{ast.unparse(decorator)}" for decorator in node.decorator_list]
    head = [*decorators, f"class {role.__name__}({base}):"]
    docstring = node.body[0] if isinstance(node.body[0], ast.Expr) else None
    if docstring is not None:
        head += lines[docstring.lineno - 1 : docstring.end_lineno]
    own_names = {name: new for name, new in renamed.items() if name != role.__name__}
    assigned: list[str] = []
    methods: list[str] = []
    for member in _members(role).values():
        is_method = re.search(r"^(?:@|def )", member.text, re.MULTILINE) is not None
        inherited = is_method and member.module != role.__module__
        text = _rename(member.placed() if inherited else member.text, own_names)
        (methods if is_method else assigned).append(textwrap.indent(text, "    "))
    parts = ["\n".join(head), *(["\n".join(assigned)] if assigned else []), *methods]
    return "\n\n".join(parts) + "\n"


def _order(definitions: Mapping[str, str]) -> list[str]:
    """The definitions in an order in which each comes after those that its class body and its annotations use."""
    done: list[str] = []

    def add(name: str) -> None:
        if name in done:
            return
        for used in sorted(_names(definitions[name]) & definitions.keys() - {name}):
            if used not in waiting:
                waiting.append(used)
                add(used)
                waiting.pop()
        done.append(name)

    for name in definitions:
        waiting = [name]
        add(name)
    return done


def _imports(body: str, roles: Iterable[type[Any]]) -> str:
    """The imports that a file needs, from those of the files that it was made of."""
    tree = ast.parse(body)
    defined = {_name_of(node) for node in tree.body}
    local = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    wanted = _names(body) - defined - local - arguments - set(vars(builtins))
    wanted |= {"nn"} if "(nn.Module)" in body else set()
    modules = dict.fromkeys(base.__module__ for role in roles for base in _bases(role))
    plain: set[str] = set()
    froms: dict[str, set[str]] = {}
    for name in sorted(wanted):
        module, statement = _import_of(name, modules)
        if module is None:
            plain.add(statement)
        else:
            froms.setdefault(module, set()).add(statement)
    for role in roles:
        outside = _outside(role)
        if outside is not nn.Module:
            froms.setdefault(outside.__module__, set()).add(outside.__name__)
    imports = [(name.partition(" ")[0], f"import {name}") for name in plain]
    imports += [(module, f"from {module} import {', '.join(sorted(names))}") for module, names in froms.items()]
    groups: list[list[str]] = [[], [], []]  # the standard library, other packages, this package
    for module, line in sorted(imports, key=lambda item: (item[1].startswith("from "), item[0])):
        top = module.partition(".")[0]
        groups[0 if top in sys.stdlib_module_names else 2 if top == "allformers" else 1].append(line)
    return "\n\n".join("\n".join(group) for group in groups if group) + "\n"


def _import_of(name: str, modules: Iterable[str]) -> tuple[str | None, str]:
    """The import that binds a name in one of several modules: the module that it is taken from, and what is taken."""
    for one in modules:
        imports = [node for node in _module(one)[1].body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in imports:
            for alias in node.names:
                if (alias.asname or alias.name.partition(".")[0]) == name:
                    taken = alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"
                    return (node.module, taken) if isinstance(node, ast.ImportFrom) else (None, taken)
    raise ValueError(f"{name} is used, and no file imports it")
