"""The named tensors of a model's source: which variables have axes that are stated, and methods that show them.

`capture` says what can be found, and by which names; here it is read off the syntax tree of each method.
"""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_KINDS = {"Float", "Int", "Integer", "Bool", "Shaped"}
_EINOPS = {"rearrange", "reduce", "repeat", "einsum"}
_OF_MODELS = ("allformers.models.", "allformers.practice.", "allformers.experiments.")
_OF_LIBRARIES = {"allformers", "builtins", "torch", "transformers"}
"""Modules whose classes are looked into, and libraries whose others are not; somebody's own model is."""


class Named(NamedTuple):
    """The axes of a tensor, and whether an annotation says so, or else a pattern."""

    axes: tuple[str, ...]
    annotated: bool


class Instrumented(NamedTuple):
    """A method whose named tensors go through a function.

    Attributes:
        name: the method's.
        make: from that function to the method.
        hooked: the names of what goes through it.
    """

    name: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    hooked: tuple[str, ...]


@functools.cache
def hooked_methods(kind: type) -> tuple[Instrumented, ...]:
    """The methods of a class, its own and inherited, that are written in a model's file and name a tensor."""
    found: dict[str, Callable[..., Any] | None] = {}
    for base in kind.__mro__:
        is_model = base.__module__.startswith(_OF_MODELS) or base.__module__.partition(".")[0] not in _OF_LIBRARIES
        for name, member in vars(base).items():
            if inspect.isfunction(member) and not name.startswith("__"):
                found.setdefault(name, member if is_model and _has_source(member) else None)
    methods = {name: method for name, method in found.items() if method is not None}
    written = {name: _written(method)[0] for name, method in methods.items()}
    variables = _by_method(written)
    made = (_instrumented(method, variables[name]) for name, method in methods.items())
    return tuple(method for method in made if method.hooked)


def _by_method(written: Mapping[str, ast.FunctionDef]) -> dict[str, dict[str, Named]]:
    """The variables of each method of a class; of one that several methods have, the one that `capture` speaks of."""
    variables = {name: _variables(function, written) for name, function in written.items()}
    results = {name for name, function in written.items() if _axes(function.returns)}
    own: dict[str, dict[str, Named]] = {}
    for name, function in written.items():
        attributes = (node for node in _nodes(*function.body) if isinstance(node, ast.Attribute))
        called = {node.attr for node in attributes if _is_self(node, function)} - {name}
        others = called | {"forward"} if name != "forward" else set()
        taken = results.union(*(variables[other] for other in others if other in variables))
        own[name] = {variable: named for variable, named in variables[name].items() if variable not in taken}
    return own


def _has_source(method: Callable[..., Any]) -> bool:
    """Whether what a method was written as can be read; what was typed at a prompt of Python cannot."""
    try:
        return bool(inspect.getsource(inspect.unwrap(method)))
    except OSError:
        return False


def _written(method: Callable[..., Any]) -> tuple[ast.FunctionDef, int]:
    """A method as it is written, and the line before it in its file."""
    lines, first = inspect.getsourcelines(inspect.unwrap(method))
    (function,) = ast.parse(textwrap.dedent("".join(lines))).body
    assert isinstance(function, ast.FunctionDef)
    return function, first - 1


def _instrumented(method: Callable[..., Any], variables: Mapping[str, Named]) -> Instrumented:
    """Write a method anew, with its named tensors sent through a function that is yet to be given."""
    original: Any = inspect.unwrap(method)
    function, before = _written(method)
    hooked = _insert_hooks(function, variables)
    # What the method knows from where it stands; `super()` needs the class.
    free: dict[str, Any] = {"__class__": None}
    for name, cell in zip(original.__code__.co_freevars, original.__closure__ or (), strict=True):
        free[name] = cell.cell_contents
    factory = ast.parse(f"def factory(__hook__, {', '.join(free)}): pass").body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body = [function, *ast.parse(f"return {function.name}").body]
    ast.increment_lineno(function, before)  # so that tracebacks and traces point to the file
    made: dict[str, Any] = {}
    tree = ast.fix_missing_locations(ast.Module([factory], []))
    exec(compile(tree, inspect.getsourcefile(original) or "?", "exec"), original.__globals__, made)
    return Instrumented(function.name, lambda hook: made["factory"](hook, *free.values()), hooked)


def _insert_hooks(function: ast.FunctionDef, variables: Mapping[str, Named]) -> tuple[str, ...]:
    """Send a function's named tensors through `__hook__`: arguments first, variables once final, then the result."""
    is_forward = function.name == "forward"
    given = _arguments(function) if is_forward else {}  # elsewhere they are another's result
    last = {name: _last(function, name) for name in variables}
    body: list[ast.stmt] = []
    for index, statement in enumerate(function.body):
        body.append(statement)
        body += [_call(function, name, variables[name], statement) for name in variables if last[name] == index]
    start = 1 if ast.get_docstring(function) is not None else 0
    entering = [_call(function, name, Named(axes, True), body[start]) for name, axes in given.items()]
    returned, result = _axes(function.returns), "" if is_forward else function.name
    if returned:
        for node in _nodes(*function.body):
            if isinstance(node, ast.Return) and node.value is not None:
                node.value = ast.copy_location(_through(result, Named(returned, True), node.value), node.value)
    function.body = [*body[:start], *entering, *body[start:]]
    return (*given, *variables, *([result] if returned else []))


def _variables(function: ast.FunctionDef, methods: Mapping[str, ast.FunctionDef]) -> dict[str, Named]:
    """The axes of a function's variables as its annotations or its patterns state them, in the order of last values.

    Args:
        function: as it is written.
        methods: those of its class.
    """
    annotated: dict[str, tuple[str, ...]] = {}
    for node in _nodes(*function.body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and (axes := _axes(node.annotation)):
            annotated[node.target.id] = axes
    assigned = set().union(*map(_assigned, function.body))
    found = {name: Named(axes, True) for name, axes in annotated.items() if name in assigned}
    arguments = _arguments(function)
    for name in assigned - set(annotated):
        if not _is_bound(function, name) or (name in arguments and function.name == "forward"):
            continue
        last = _last(function, name)
        reads = [axes for s in function.body[last + 1 :] for axes in _read(s, name, function, methods)]
        stated = [*reversed(reads), *_made(function.body[last], name), *filter(None, [arguments.get(name)])]
        if stated:
            found[name] = Named(min(stated, key=lambda axes: any("(" in axis for axis in axes)), False)
    order = list(dict.fromkeys(node.id for node in _nodes(*function.body) if isinstance(node, ast.Name)))
    return {name: found[name] for name in sorted(found, key=lambda name: (_last(function, name), order.index(name)))}


def _arguments(function: ast.FunctionDef) -> dict[str, tuple[str, ...]]:
    """The axes of a function's arguments, as far as annotations name them."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {argument.arg: axes for argument in arguments if (axes := _axes(argument.annotation))}


def _read(
    statement: ast.stmt, name: str, function: ast.FunctionDef, methods: Mapping[str, ast.FunctionDef]
) -> Iterator[tuple[str, ...]]:
    """The axes that a statement says a variable has where it reads it: in patterns, and as an argument of methods."""
    for node in _nodes(statement):
        if isinstance(node, ast.Call):
            inputs, _ = _pattern(node)
            if isinstance(node.func, ast.Attribute) and _is_self(node.func, function) and node.func.attr in methods:
                method = methods[node.func.attr]
                arguments, names_of = _arguments(method), [argument.arg for argument in method.args.args[1:]]
                given = [*zip(names_of, node.args, strict=False), *((word.arg, word.value) for word in node.keywords)]
                inputs = [(value, arguments.get(argument or "")) for argument, value in given]
            for value, axes in inputs:
                if isinstance(value, ast.Name) and value.id == name and axes:
                    yield axes


def _made(statement: ast.stmt, name: str) -> Iterator[tuple[str, ...]]:
    """The axes that a variable has by the pattern which a statement makes it with."""
    for target in _targets(statement):
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        axes = _pattern(value)[1] if isinstance(value, ast.Call) else None
        if axes and isinstance(target, ast.Name) and target.id == name:
            yield axes
        elif axes and isinstance(target, ast.Tuple | ast.List) and _names_one(target, name):
            yield axes[1:]


def _pattern(call: ast.Call) -> tuple[list[tuple[ast.expr, tuple[str, ...] | None]], tuple[str, ...] | None]:
    """What a call of einops says of its arguments, and of its result; of another call, nothing."""
    called = ast.unparse(call.func).removeprefix("einops.")
    text = [argument.value if isinstance(argument, ast.Constant) else None for argument in call.args]
    place = next((number for number, value in enumerate(text) if isinstance(value, str) and "->" in value), 0)
    left, _, right = str(text[place] if place else "").partition("->")
    inputs = left.split(",")
    if called not in _EINOPS or len(inputs) != place:
        return [], None
    return [(value, _split(side)) for value, side in zip(call.args, inputs, strict=False)], _split(right)


def _split(side: str) -> tuple[str, ...] | None:
    """The axes in one side of a pattern, those in brackets as one; None if it leaves some unnamed."""
    axes = tuple(" ".join(axis.split()) for axis in re.findall(r"\([^)]*\)|[^\s()]+", side))
    return None if any("..." in axis or "\u2026" in axis or axis == "_" for axis in axes) else axes


def _axes(annotation: ast.expr | None) -> tuple[str, ...] | None:
    """The axes that `Float[Tensor, "batch seq"]` names; None for any other annotation, or if it leaves some unnamed."""
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name)):
        return None
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
    if annotation.value.id not in _KINDS or len(parts) != 2 or not isinstance(parts[1], ast.Constant):
        return None
    axes = str(parts[1].value).split()
    unnamed = any(axis in {"...", "_"} or axis.startswith("*") for axis in axes)
    return None if unnamed else tuple(axis.lstrip("#") for axis in axes)


def _nodes(*roots: ast.AST) -> Iterator[ast.AST]:
    """Statements and all parts of them, as they are written; functions and classes inside them are none of theirs."""
    for node in roots:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield node
            yield from _nodes(*ast.iter_child_nodes(node))


def _is_self(node: ast.Attribute, function: ast.FunctionDef) -> bool:
    """Whether an attribute is one of the object that a method is called on."""
    arguments = function.args.args
    return isinstance(node.value, ast.Name) and bool(arguments) and node.value.id == arguments[0].arg


def _targets(statement: ast.stmt) -> list[ast.expr]:
    """What an assignment gives a value; nothing for any other statement."""
    if isinstance(statement, ast.AnnAssign):
        return [] if statement.value is None else [statement.target]
    return statement.targets if isinstance(statement, ast.Assign) else []


def _names_one(target: ast.expr, name: str) -> bool:
    parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return any(isinstance(part, ast.Name) and part.id == name for part in parts)


def _is_bound(function: ast.FunctionDef, name: str) -> bool:
    """Whether a variable has a value whatever branch is taken: a statement outside of branches and loops gives it."""
    return any(_names_one(target, name) for statement in function.body for target in _targets(statement))


def _last(function: ast.FunctionDef, name: str) -> int:
    """The number of the statement that gives a variable its last value."""
    return max(number for number, s in enumerate(function.body) if name in _assigned(s))


def _assigned(statement: ast.stmt) -> set[str]:
    """The variables that a statement, or one inside it, gives a value."""
    nodes = [*_nodes(statement)]
    bare = {node.target for node in nodes if isinstance(node, ast.AnnAssign) and node.value is None}
    stored = (node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {node.id for node in stored if node not in bare}


def _through(name: str, named: Named, value: ast.expr) -> ast.Call:
    axes = ast.Tuple([ast.Constant(axis) for axis in named.axes], ast.Load())
    given = [ast.Constant(name), axes, ast.Constant(named.annotated), value]
    return ast.Call(ast.Name("__hook__", ast.Load()), given, [])


def _call(function: ast.FunctionDef, name: str, named: Named, after: ast.stmt) -> ast.stmt:
    """`name = __hook__("name", axes, annotated, name)`, on the line of the statement that it follows."""
    value = _through(name, named, ast.Name(name, ast.Load()))
    call: ast.stmt = ast.Assign([ast.Name(name, ast.Store())], value)
    if name not in _arguments(function) and not _is_bound(function, name):
        has_value = ast.parse(f"{name!r} in locals()", mode="eval").body
        call = ast.If(has_value, [call], [])
    for node in ast.walk(call):
        ast.copy_location(node, after)
    return call
