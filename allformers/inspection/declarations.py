"""What a file declares: its functions, classes and imports, and the axes that its annotations give.

    >>> file = File('def scale(x: Float[Tensor, "batch seq"]) -> tuple[Float[Tensor, "batch seq"], int]: ...')
    >>> scale = file.find("scale")
    >>> scale.result()
    Several(parts=(('batch', 'seq'), Number()), names=())

Nothing is imported and nothing runs. A name that a file imports from allformers is found in the file that it comes
from; a name from any other package is unknown.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from allformers.inspection.operations import NUMBER, Axes, Known, Many, Several, Value, common
from allformers.inspection.source import annotated_text

AnyFunction: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef

_PACKAGE = Path(__file__).parents[1]

_CUSTOMARY = {"F": "torch.nn.functional", "nn": "torch.nn", "torch": "torch", "math": "math"}
"""What these names mean in a file that does not import them, such as an example."""

_NUMBER_TYPES = {"bool", "complex", "float", "int", "str", "torch.device", "torch.dtype"}

_COLLECTIONS = {"Iterable", "Iterator", "Sequence", "list", "List"}


class File:
    """A Python file.

    Attributes:
        tree: its syntax tree.
        imports: the full name of each imported name.
        memo: what was found out about its parts, so that it is found out once.
    """

    def __init__(self, source: str) -> None:
        self.tree = ast.parse(source)
        self.imports: dict[str, str] = {}
        self.memo: dict[object, Any] = {}
        self._classes: dict[ast.ClassDef, Class] = {}
        self._definitions: dict[str, AnyFunction | ast.ClassDef | ast.expr] = {}
        for node in _top_level(self.tree.body):
            match node:
                case ast.Import():
                    for one in node.names:
                        self.imports[one.asname or one.name.partition(".")[0]] = (
                            one.name if one.asname else one.name.partition(".")[0]
                        )
                case ast.ImportFrom(module=str(module), level=0):
                    self.imports |= {one.asname or one.name: f"{module}.{one.name}" for one in node.names}
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    self._definitions[node.name] = node
                case ast.Assign(targets=[ast.Name(id=name)], value=ast.expr() as value):
                    self._definitions[name] = value
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    self._definitions[name] = value
                case _:
                    pass
        stored = [
            node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        self._constant = {name for name in self._definitions if stored.count(name) <= 1}

    def defines(self, name: str) -> bool:
        """True if the file itself gives a name its meaning, and does not import it."""
        return name in self._definitions

    def find(self, name: str) -> "Function | Class | ast.expr | None":
        """What a name at the top of the file stands for: a function, a class, or the source of its one value."""
        if name in self.imports:
            module, _, original = self.imports[name].rpartition(".")
            file = package_file(module)
            return file.find(original) if file is not None else None
        node = self._definitions.get(name)
        if isinstance(node, ast.ClassDef):
            return self.class_of(node)
        if isinstance(node, AnyFunction):
            return Function(node, self)
        return node if name in self._constant else None

    def class_of(self, node: ast.ClassDef) -> "Class":
        """The class of a definition."""
        return self._classes.setdefault(node, Class(node, self))

    def origin(self, name: str) -> "File":
        """The file in which a name is given its value."""
        module, _, original = self.imports.get(name, "").rpartition(".")
        file = package_file(module)
        return self if file is None else file.origin(original)

    def full_name(self, node: ast.expr) -> str:
        """The full name that a dotted name has by the file's imports; "" if it is none, or begins with a variable."""
        match node:
            case ast.Name(id=name):
                known = name in self._definitions or name in self.imports
                return self.imports.get(name, "" if known else _CUSTOMARY.get(name, ""))
            case ast.Attribute(value=value, attr=attr):
                owner = self.full_name(value)
                return f"{owner}.{attr}" if owner else ""
            case _:
                return ""


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements at the top of a file, those under `if` and `try` too."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _top_level([*node.body, *node.orelse])


@functools.cache
def package_file(module: str) -> File | None:
    """The file of a module of allformers; None for other modules."""
    first, *parts = module.split(".")
    path = _PACKAGE.joinpath(*parts)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return File(path.read_text(encoding="utf-8")) if first == "allformers" and path.is_file() else None


@dataclass(frozen=True)
class Function(Known):
    """A function or method.

    Attributes:
        node: its definition.
        file: where that is.
        definer: the class that a method is written in.
        owner: the object that a method is taken from.
    """

    node: AnyFunction
    file: File
    definer: "Class | None" = None
    owner: "Object | Class | None" = None

    def decorators(self) -> set[str]:
        """The last parts of its decorators' names."""
        nodes = [one.func if isinstance(one, ast.Call) else one for one in self.node.decorator_list]
        return {node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "") for node in nodes}

    def parameters(self) -> list[ast.arg]:
        """Its arguments in order, without `self`."""
        arguments = self.node.args
        every = [*arguments.posonlyargs, *arguments.args]
        has_self = self.definer is not None and "staticmethod" not in self.decorators()
        return every[1:] if has_self else every

    def annotated(self, argument: ast.arg) -> Value:
        """What an argument's annotation says."""
        return value_of(argument.annotation, self.file)

    def result(self) -> Value:
        """What the annotation of the result says."""
        return None if isinstance(self.node, ast.AsyncFunctionDef) else value_of(self.node.returns, self.file)

    def is_property(self) -> bool:
        """True if it is called when its name is read."""
        return bool(self.decorators() & {"property", "cached_property"})


@dataclass(frozen=True, eq=False)
class Class(Known):
    """A class."""

    node: ast.ClassDef
    file: File

    @functools.cached_property
    def bases(self) -> "list[Class]":
        """The classes that it inherits from, itself first, as far as they are known."""
        found = [self]
        for base in self.node.bases:
            name = base.id if isinstance(base, ast.Name) else ""
            parent = self.file.find(name)
            if isinstance(parent, Class):
                found += [one for one in parent.bases if one not in found]
        return found

    def member(self, name: str, behind: "Class | None" = None) -> "Function | None":
        """The method of a name, or, with `behind`, the one that follows that class's own."""
        bases = self.bases
        for base in bases[bases.index(behind) + 1 if behind in bases else 0 :]:
            for node in base.node.body:
                if isinstance(node, AnyFunction) and node.name == name:
                    return Function(node, base.file, base)
        return None

    def declared(self, name: str) -> "tuple[ast.expr | None, ast.expr | None, File] | None":
        """The annotation and the value of an attribute in the class's body, with their file."""
        for base in self.bases:
            for node in base.node.body:
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
                    return node.annotation, node.value, base.file
                if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
                    return None, node.value, base.file
        return None

    @functools.cached_property
    def assigned_outside_init(self) -> set[str]:
        """The attributes that a method sets other than `__init__` and those that it calls."""
        methods = [node for base in self.bases for node in base.node.body if isinstance(node, AnyFunction)]
        initial, found = {"__init__"}, set[str]()
        while found != initial:
            found = set(initial)
            calls = [part.func for one in methods if one.name in found for part in _calls(one)]
            initial |= {called.attr for called in calls if isinstance(called, ast.Attribute)}
        stored = stored_names(*(one for one in methods if one.name not in initial))
        return {name[1:] for name in stored if name.startswith(".")}


def _calls(node: ast.AST) -> list[ast.Call]:
    return [part for part in ast.walk(node) if isinstance(part, ast.Call)]


@dataclass(frozen=True)
class Object(Known):
    """An object of a class of the file, or of one of this package."""

    cls: Class


def axes_of(annotation: ast.expr | None) -> Axes | None:
    """The axes of the annotation of a tensor; None for another annotation."""
    text = annotated_text(annotation)
    if text is None:
        return None
    words = (word.removeprefix("?").rpartition("=")[2] for word in text.split())
    return tuple("..." if word == "..." or word.startswith("*") else _plain(word) for word in words)


def _plain(word: str) -> str:
    """An axis of an annotation; a sum or another size that is computed has no name."""
    name = word.removeprefix("#")
    return word if name == "1" or (name.isidentifier() and name != "_") else "_"


def value_of(annotation: ast.expr | None, file: File) -> Value:
    """What an annotation says of a value."""
    match annotation:
        case ast.Constant(value=str(text)):
            try:
                return value_of(ast.parse(text, mode="eval").body, file)
            except SyntaxError:
                return None
        case ast.BinOp(op=ast.BitOr()):
            return _one_of([annotation.left, annotation.right], file)
        case ast.Subscript() if (axes := axes_of(annotation)) is not None:
            return axes
        case ast.Subscript(value=generic, slice=inside):
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return _generic(ast.unparse(generic).rpartition(".")[2], parts, file)
        case ast.Name() | ast.Attribute() if ast.unparse(annotation) in _NUMBER_TYPES:
            return NUMBER
        case ast.Name(id=name):
            found = file.find(name)
            if isinstance(found, Class):
                return Object(found)
            return value_of(found, file.origin(name)) if isinstance(found, ast.expr) else None
        case _:
            return None


def _generic(name: str, parts: list[ast.expr], file: File) -> Value:
    """What `name[parts]` says of a value."""
    if name in {"tuple", "Tuple"}:
        if len(parts) == 2 and isinstance(parts[1], ast.Constant) and parts[1].value is ...:
            return Many(value_of(parts[0], file))
        return Several(tuple(value_of(part, file) for part in parts))
    if name in _COLLECTIONS and len(parts) == 1:
        return Many(value_of(parts[0], file))
    if name in {"Annotated", "Final", "ClassVar"}:
        return value_of(parts[0], file)
    if name in {"Optional", "Union"}:
        return _one_of(parts, file)
    if name == "Literal":
        return NUMBER
    if name == "type" and isinstance(parts[0], ast.Name) and isinstance(found := file.find(parts[0].id), Class):
        return found
    return None


def _one_of(choices: list[ast.expr], file: File) -> Value:
    """What is known of a value that is one of several; None as a value is left out."""
    tensors = [one for one in choices if not (isinstance(one, ast.Constant) and one.value is None)]
    values = [value_of(one, file) for one in tensors]
    return functools.reduce(common, values) if values else None


def all_functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, AnyFunction, tuple[ast.AST, ...]]]:
    """All functions of a file with their qualified names and the functions and classes around them."""
    yield from _functions(tree, prefix, ())


def _functions(
    tree: ast.AST, prefix: str, around: tuple[ast.AST, ...]
) -> Iterator[tuple[str, AnyFunction, tuple[ast.AST, ...]]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, AnyFunction):
            yield prefix + node.name, node, around
        if isinstance(node, AnyFunction | ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.", (*around, node))
        else:
            yield from _functions(node, prefix, around)


def stored_names(*nodes: ast.AST) -> set[str]:
    """The variables that are assigned somewhere in a source; attributes are `.name`."""
    found: set[str] = set()
    for part in (part for node in nodes for part in ast.walk(node)):
        match part:
            case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
                found.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store() | ast.Del()):
                found.add(f".{name}")
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.ExceptHandler(name=str(name)):
                found.add(name)
            case _:
                pass
    return found


def axis_names(text: str) -> set[str]:
    """The names in an annotation or a pattern."""
    return set(re.findall(r"[A-Za-z]\w*", text))
