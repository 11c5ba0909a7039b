"""Methods with hooks: source rewritten so that each tensor whose axes are stated goes through a hook.

`capture` says which tensors those are, and by which names; here they are found in the syntax tree of each method.
"""

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_JAXTYPING = """Bool BFloat16 Complex Float Float16 Float32 Float64 Inexact Int Int32 Int64 Integer Num Real Shaped
UInt UInt8"""
_DTYPES = frozenset(_JAXTYPING.split())
_EINOPS = {"rearrange", "reduce", "repeat", "einsum"}
_MODEL_PACKAGES = ("allformers.models.", "allformers.practice.", "allformers.experiments.")
_LIBRARIES = {"allformers", "builtins", "torch", "transformers"}
"""Classes in these packages get hooks; all other classes of these libraries do not. A user's own classes do."""


class StatedAxes(NamedTuple):
    """The axes of a tensor, and whether an annotation states them, or else a pattern."""

    axes: tuple[str, ...]
    annotated: bool


class Instrumented(NamedTuple):
    """A method rewritten so that its named tensors go through a hook.

    Attributes:
        name: the method's.
        make: a function from the hook to the method.
        hooked: the names of the tensors that go through it.
    """

    name: str
    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    hooked: tuple[str, ...]


@functools.cache
def hooked_methods(cls: type) -> tuple[Instrumented, ...]:
    """Return a class's methods with hooks: own or inherited ones in a model's file that name a tensor."""
    found: dict[str, Callable[..., Any] | None] = {}
    for base in cls.__mro__:
        is_model = base.__module__.startswith(_MODEL_PACKAGES) or base.__module__.partition(".")[0] not in _LIBRARIES
        for name, member in vars(base).items():
            if inspect.isfunction(member) and not name.startswith("__"):
                found.setdefault(name, member if is_model and _has_source(member) else None)
    methods = {name: method for name, method in found.items() if method is not None}
    trees = {name: _parse(method)[0] for name, method in methods.items()}
    variables = _variables_by_method(trees)
    rewritten = (_instrument(method, variables[name]) for name, method in methods.items())
    return tuple(method for method in rewritten if method.hooked)


def _variables_by_method(trees: Mapping[str, ast.FunctionDef]) -> dict[str, dict[str, StatedAxes]]:
    """Return each method's variables; of a name that several have, only the one that `capture` takes."""
    variables = {name: _variables(function, trees) for name, function in trees.items()}
    results = {name for name, function in trees.items() if _annotated_axes(function.returns)}
    own: dict[str, dict[str, StatedAxes]] = {}
    for name, function in trees.items():
        attributes = (node for node in _walk(*function.body) if isinstance(node, ast.Attribute))
        called = {node.attr for node in attributes if _is_self(node, function)} - {name}
        others = called | {"forward"} if name != "forward" else set()
        taken = results.union(*(variables[other] for other in others if other in variables))
        own[name] = {variable: named for variable, named in variables[name].items() if variable not in taken}
    return own


def _has_source(method: Callable[..., Any]) -> bool:
    """True if a method's source can be read; what was typed at Python's prompt has none."""
    try:
        return bool(inspect.getsource(inspect.unwrap(method)))
    except OSError:
        return False


def _parse(method: Callable[..., Any]) -> tuple[ast.FunctionDef, int]:
    """Parse a method's source; return its syntax tree and the number of the line before it."""
    lines, first = inspect.getsourcelines(inspect.unwrap(method))
    (function,) = ast.parse(textwrap.dedent("".join(lines))).body
    assert isinstance(function, ast.FunctionDef)
    return function, first - 1


def _instrument(method: Callable[..., Any], variables: Mapping[str, StatedAxes]) -> Instrumented:
    """Rewrite a method so that its named tensors go through a hook, which is given later."""
    original: Any = inspect.unwrap(method)
    function, line_before = _parse(method)
    hooked = _insert_hooks(function, variables)
    # The method's closure; `super()` needs the class.
    closure: dict[str, Any] = {"__class__": None}
    for name, cell in zip(original.__code__.co_freevars, original.__closure__ or (), strict=True):
        closure[name] = cell.cell_contents
    factory = ast.parse(f"def factory(__hook__, {', '.join(closure)}): pass").body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body = [function, *ast.parse(f"return {function.name}").body]
    ast.increment_lineno(function, line_before)  # so that tracebacks and traces point to the file
    namespace: dict[str, Any] = {}
    tree = ast.fix_missing_locations(ast.Module([factory], []))
    exec(compile(tree, inspect.getsourcefile(original) or "?", "exec"), original.__globals__, namespace)
    return Instrumented(function.name, lambda hook: namespace["factory"](hook, *closure.values()), hooked)


def _insert_hooks(function: ast.FunctionDef, variables: Mapping[str, StatedAxes]) -> tuple[str, ...]:
    """Insert a call of `__hook__` behind each named tensor: arguments, variables once final, the result."""
    is_forward = function.name == "forward"
    given = _arguments(function) if is_forward else {}  # elsewhere they are another's result
    last = {name: _last_assignment(function, name) for name in variables}
    body: list[ast.stmt] = []
    for index, statement in enumerate(function.body):
        body.append(statement)
        body += [
            _hook_statement(function, name, variables[name], statement) for name in variables if last[name] == index
        ]
    start = 1 if ast.get_docstring(function) is not None else 0
    entering = [_hook_statement(function, name, StatedAxes(axes, True), body[start]) for name, axes in given.items()]
    returned, result = _annotated_axes(function.returns), "" if is_forward else function.name
    if returned:
        for node in _walk(*function.body):
            if isinstance(node, ast.Return) and node.value is not None:
                node.value = ast.copy_location(
                    _hook_call(function, result, StatedAxes(returned, True), node.value), node.value
                )
    function.body = [*body[:start], *entering, *body[start:]]
    return (*given, *variables, *([result] if returned else []))


def _variables(function: ast.FunctionDef, methods: Mapping[str, ast.FunctionDef]) -> dict[str, StatedAxes]:
    """Return the axes of a function's variables, from annotations or else patterns, in the order of last values.

    Args:
        function: its syntax tree.
        methods: those of its class.
    """
    annotated: dict[str, tuple[str, ...]] = {}
    for node in _walk(*function.body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and (axes := _annotated_axes(node.annotation))
        ):
            annotated[node.target.id] = axes
    assigned = set().union(*map(_assigned, function.body))
    found = {name: StatedAxes(axes, True) for name, axes in annotated.items() if name in assigned}
    arguments = _arguments(function)
    for name in assigned - set(annotated):
        if not _always_assigned(function, name) or (name in arguments and function.name == "forward"):
            continue
        last = _last_assignment(function, name)
        reads = [axes for s in function.body[last + 1 :] for axes in _axes_where_read(s, name, function, methods)]
        stated = [*reversed(reads), *_axes_where_made(function.body[last], name), *filter(None, [arguments.get(name)])]
        if stated:
            found[name] = StatedAxes(min(stated, key=lambda axes: any("(" in axis for axis in axes)), False)
    order = list(dict.fromkeys(node.id for node in _walk(*function.body) if isinstance(node, ast.Name)))
    final = sorted(found, key=lambda name: (_last_assignment(function, name), order.index(name)))
    return {name: found[name] for name in final}


def _arguments(function: ast.FunctionDef) -> dict[str, tuple[str, ...]]:
    """Return the axes of a function's arguments that have them in annotations."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return {argument.arg: axes for argument in arguments if (axes := _annotated_axes(argument.annotation))}


def _axes_where_read(
    statement: ast.stmt, name: str, function: ast.FunctionDef, methods: Mapping[str, ast.FunctionDef]
) -> Iterator[tuple[str, ...]]:
    """Yield the axes of a variable where a statement reads it: in a pattern, or as an argument of a method."""
    for node in _walk(statement):
        if isinstance(node, ast.Call):
            inputs, _ = _pattern_axes(node)
            if isinstance(node.func, ast.Attribute) and _is_self(node.func, function) and node.func.attr in methods:
                method = methods[node.func.attr]
                arguments, names_of = _arguments(method), [argument.arg for argument in method.args.args[1:]]
                given = [*zip(names_of, node.args, strict=False), *((word.arg, word.value) for word in node.keywords)]
                inputs = [(value, arguments.get(argument or "")) for argument, value in given]
            for value, axes in inputs:
                if isinstance(value, ast.Name) and value.id == name and axes:
                    yield axes


def _axes_where_made(statement: ast.stmt, name: str) -> Iterator[tuple[str, ...]]:
    """Yield the axes of a variable from the pattern that a statement makes it with."""
    for target in _targets(statement):
        value = statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else None
        axes = _pattern_axes(value)[1] if isinstance(value, ast.Call) else None
        if axes and isinstance(target, ast.Name) and target.id == name:
            yield axes
        elif axes and isinstance(target, ast.Tuple | ast.List) and _assigns(target, name):
            yield axes[1:]


def _pattern_axes(call: ast.Call) -> tuple[list[tuple[ast.expr, tuple[str, ...] | None]], tuple[str, ...] | None]:
    """Return the axes that a call of einops states for its arguments and its result; nothing for another call."""
    pattern = pattern_of(call)
    if pattern is None:
        return [], None
    left, _, right = pattern.partition("->")
    return [(value, _split(side)) for value, side in zip(call.args, left.split(","), strict=False)], _split(right)


def pattern_of(call: ast.Call) -> str | None:
    """Return the pattern of a call of einops; None for another call, or if it has not as many arguments as sides."""
    called = ast.unparse(call.func).removeprefix("einops.")
    text = [argument.value if isinstance(argument, ast.Constant) else None for argument in call.args]
    for number, value in enumerate(text):
        if isinstance(value, str) and "->" in value:
            sides = value.partition("->")[0].split(",")
            return value if called in _EINOPS and len(sides) == number else None
    return None


def _split(side: str) -> tuple[str, ...] | None:
    """Return the axes in one side of a pattern, those in brackets as one; None if it leaves some unnamed."""
    axes = split_side(side)
    return None if any("..." in axis or "\u2026" in axis or axis == "_" for axis in axes) else axes


def split_side(side: str) -> tuple[str, ...]:
    """Return what stands in one side of a pattern, axes in brackets as one."""
    return tuple(" ".join(axis.split()) for axis in re.findall(r"\([^)]*\)|[^\s()]+", side))


def _annotated_axes(annotation: ast.expr | None) -> tuple[str, ...] | None:
    """Return the axes in `Float[Tensor, "batch seq"]`; None for another annotation, or if it leaves some unnamed."""
    text = annotated_text(annotation)
    if text is None:
        return None
    axes = text.split()
    unnamed = any(axis in {"...", "_"} or axis.startswith("*") for axis in axes)
    return None if unnamed else tuple(axis.lstrip("#") for axis in axes)


def annotated_text(annotation: ast.expr | None) -> str | None:
    """Return the text `batch seq` of `Float[Tensor, "batch seq"]`; None for another annotation."""
    if not isinstance(annotation, ast.Subscript):
        return None
    dtype = ast.unparse(annotation.value).removeprefix("jaxtyping.")
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
    if dtype not in _DTYPES or len(parts) != 2 or not isinstance(parts[1], ast.Constant):
        return None
    return str(parts[1].value)


def _walk(*roots: ast.AST) -> Iterator[ast.AST]:
    """Walk the nodes below the roots in the order of the source, without going into functions and classes."""
    for node in roots:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield node
            yield from _walk(*ast.iter_child_nodes(node))


def _is_self(node: ast.Attribute, function: ast.FunctionDef) -> bool:
    """True if a node is an attribute of the method's `self`."""
    arguments = function.args.args
    return isinstance(node.value, ast.Name) and bool(arguments) and node.value.id == arguments[0].arg


def _targets(statement: ast.stmt) -> list[ast.expr]:
    """Return the targets of an assignment; none for any other statement."""
    if isinstance(statement, ast.AnnAssign):
        return [] if statement.value is None else [statement.target]
    return statement.targets if isinstance(statement, ast.Assign) else []


def _assigns(target: ast.expr, name: str) -> bool:
    parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
    return any(isinstance(part, ast.Name) and part.id == name for part in parts)


def _always_assigned(function: ast.FunctionDef, name: str) -> bool:
    """True if a variable is assigned in every branch: by a statement outside of branches and loops."""
    return any(_assigns(target, name) for statement in function.body for target in _targets(statement))


def _last_assignment(function: ast.FunctionDef, name: str) -> int:
    """Return the index of the statement that assigns a variable last."""
    return max(number for number, s in enumerate(function.body) if name in _assigned(s))


def _assigned(statement: ast.stmt) -> set[str]:
    """Return the variables that a statement, or one inside it, assigns."""
    nodes = [*_walk(statement)]
    bare = {node.target for node in nodes if isinstance(node, ast.AnnAssign) and node.value is None}
    stored = (node for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))
    return {node.id for node in stored if node not in bare}


def _hook_call(function: ast.FunctionDef, name: str, named: StatedAxes, value: ast.expr) -> ast.Call:
    """Return the call `__hook__(self, "name", axes, annotated, value)`."""
    axes = ast.Tuple([ast.Constant(axis) for axis in named.axes], ast.Load())
    module = ast.Name(function.args.args[0].arg, ast.Load())
    given = [module, ast.Constant(name), axes, ast.Constant(named.annotated), value]
    return ast.Call(ast.Name("__hook__", ast.Load()), given, [])


def _hook_statement(function: ast.FunctionDef, name: str, named: StatedAxes, after: ast.stmt) -> ast.stmt:
    """Return the statement `name = __hook__(self, "name", axes, annotated, name)`, on the line before it."""
    value = _hook_call(function, name, named, ast.Name(name, ast.Load()))
    call: ast.stmt = ast.Assign([ast.Name(name, ast.Store())], value)
    if name not in _arguments(function) and not _always_assigned(function, name):
        has_value = ast.parse(f"{name!r} in locals()", mode="eval").body
        call = ast.If(has_value, [call], [])
    for node in ast.walk(call):
        ast.copy_location(node, after)
    return call
