"""Every tensor that a model's code names, while the model runs: to look at, or to change.

    >>> import allformers, torch
    >>> model = allformers.load("bundled")
    >>> with capture(model, "blocks.*.attention.weights") as seen:
    ...     logits = model(torch.tensor([list(b"The for statement")]))
    >>> seen["blocks.3.attention.weights"].axes
    ('batch', 'heads', 'seq', 'seq_k')

What can be captured is what the model's own methods annotate with named axes:

- an argument of `forward`: `blocks.3.x`, the residual stream as it enters block 3;
- a variable: `blocks.3.between`, the stream after attention; `blocks.3.attention.queries`, `.keys`, `.values`,
  `.scores` (masked, before softmax), `.weights` (after), `.mixed`; `blocks.3.mlp.active`; `logits`;
- a result: `blocks.3`, the stream as it leaves block 3; `blocks.3.attention` and `blocks.3.mlp`, what each adds to it;
  of a method other than `forward`, its name: `embed`.

How it works: the source of those methods is read, a call is put behind each annotated tensor, and the result takes the
method's place in this one model until the block ends. So a model that nobody looks into runs the code that is in its
file, at its speed, and nothing of this is in it.
"""

import ast
import contextlib
import fnmatch
import functools
import inspect
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from allformers.nn.shapes import ShapeError

Edit = Callable[[Tensor], Tensor]
"""Something that takes a captured tensor and gives the one to go on with, of the same shape."""

_KINDS = {"Float", "Int", "Integer", "Bool", "Shaped"}
_OF_MODELS = ("allformers.models.", "allformers.practice.")
_OF_LIBRARIES = {"allformers", "builtins", "torch", "transformers"}
"""Modules whose classes are looked into, and libraries whose others are not; somebody's own model is."""


class NamedTensor(NamedTuple):
    """A tensor with the names that the model's code gives it and its axes.

    Attributes:
        name: where it was seen: the module's path, then the variable.
        values: the tensor.
        axes: the name of each axis; "1" for one that only broadcasts.
    """

    name: str
    values: Tensor
    axes: tuple[str, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each axis, by name."""
        return dict(zip(self.axes, self.values.shape, strict=True))


class Seen(Mapping[str, NamedTensor]):
    """What was captured, by name, in the order in which it came; of a name that came again, the last."""

    def __init__(self) -> None:
        self._found: dict[str, NamedTensor] = {}

    def __getitem__(self, name: str) -> NamedTensor:
        """A tensor by its name; the error for an unknown one says which there are."""
        if name not in self._found:
            near = [known for known in self._found if known.rpartition(".")[2] == name.rpartition(".")[2]]
            raise KeyError(f"{name} was not captured; there are: {', '.join(near or self._found) or 'none'}")
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def by_layer(self, suffix: str) -> list[Tensor]:
        """One tensor of each block, such as "attention.weights", in the order of the blocks.

        Raises:
            KeyError: no block has one that was captured.
        """
        found = {name: seen.values for name, seen in self._found.items() if _in_block(name) == suffix}
        if not found:
            raise KeyError(f"no block's {suffix or 'result'} was captured")
        return [found[name] for name in sorted(found, key=lambda name: int(name.split(".")[1]))]


def _in_block(name: str) -> str | None:
    """The part of a name after `blocks.3.`; empty for the block itself, None for what is in no block."""
    parts = name.split(".")
    return ".".join(parts[2:]) if len(parts) > 1 and parts[0] == "blocks" and parts[1].isdigit() else None


def names(model: nn.Module) -> list[str]:
    """Everything that can be captured in a model, in the order of its modules."""
    found = []
    for path, module in model.named_modules():
        for method in _methods(module.__class__):
            for variable, _ in _instrumented(method).tapped:
                name = _join(path, variable)
                if name and name not in found:  # what the model's own forward returns has a name already: logits
                    found.append(name)
    return found


@contextlib.contextmanager
def capture(model: nn.Module, *wanted: str, edits: Mapping[str, Edit] | None = None) -> Iterator[Seen]:
    """Keep, and perhaps change, what a model computes while the block lasts.

    Args:
        model: any model of this package, or one that is written like them. Its results stay the same unless something
            is edited, to the bit.
        wanted: the names to keep, where `*` stands for one part (`blocks.*.attention.weights`); all if none is given.
            The rest takes no memory.
        edits: by name or pattern, functions whose result takes a tensor's place. See `without_heads`, `replaced_by`.

    Yields:
        What was captured so far. The tensors are cut off from the graph of gradients.

    Raises:
        ValueError: the model has nothing of such a name.
        ShapeError: (while the model runs) an edit has given a tensor of another shape.
    """
    edits = dict(edits or {})
    known = names(model)
    for pattern in (*wanted, *edits):
        if not _matching(known, pattern):
            raise ValueError(f"this model has nothing called {pattern}; {_suggest(pattern, known)}")
    keep = {name for pattern in wanted for name in _matching(known, pattern)} if wanted else set(known)
    change = {name: edit for pattern, edit in edits.items() for name in _matching(known, pattern)}
    seen = Seen()

    def tap(path: str, variable: str, axes: tuple[str, ...], value: Any) -> Any:
        name = _join(path, variable)
        if not isinstance(value, Tensor):
            return value
        if len(axes) != value.ndim:
            raise ShapeError(f"{name} has {value.ndim} axes, but its annotation names {len(axes)}: {' '.join(axes)}")
        if name in change:
            edited = change[name](value)
            if edited.shape != value.shape:
                raise ShapeError(
                    f"the edit of {name} gave the shape {tuple(edited.shape)}, expected {tuple(value.shape)}: "
                    f"axes {' '.join(axes)}"
                )
            value = edited
        if name in keep:
            seen._found.pop(name, None)
            seen._found[name] = NamedTensor(name, value.detach(), axes)
        return value

    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            for method in _methods(module.__class__):
                made = _instrumented(method).make(functools.partial(tap, path))
                stack.callback(_put, module, method.__name__, vars(module).get(method.__name__))
                _put(module, method.__name__, types.MethodType(made, module))
        yield seen


def without_heads(*heads: int) -> Edit:
    """An edit of `mixed` (or of `weights`) that silences attention heads: what they would pass on becomes zero."""

    def edit(values: Tensor) -> Tensor:
        silenced = values.clone()
        silenced[:, list(heads)] = 0
        return silenced

    return edit


def replaced_by(values: Tensor) -> Edit:
    """An edit that patches in a tensor of another run."""
    return lambda original: values.to(original)


def _matching(known: Sequence[str], pattern: str) -> list[str]:
    """The names that a pattern stands for, part by part."""
    parts = pattern.split(".")
    split = [(name, name.split(".")) for name in known]
    return [name for name, own in split if len(own) == len(parts) and all(map(fnmatch.fnmatchcase, own, parts))]


def _join(path: str, variable: str) -> str:
    return ".".join(part for part in (path, variable) if part)


def _put(module: nn.Module, name: str, method: Any) -> None:
    """Give one module a method of its own, or take it away again."""
    if method is None:
        vars(module).pop(name, None)
    else:
        vars(module)[name] = method


def _suggest(pattern: str, known: Sequence[str]) -> str:
    last = pattern.rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2] == last]
    endings = sorted({name.rpartition(".")[2] for name in known if not name.rpartition(".")[2].isdigit()})
    return f"there is {', '.join(near[:4])}" if near else f"names end in: {', '.join(endings)}"


class _Instrumented(NamedTuple):
    """A method whose annotated tensors go through a function.

    Attributes:
        make: from that function to the method.
        tapped: what goes through it: names and axes.
    """

    make: Callable[[Callable[..., Any]], Callable[..., Any]]
    tapped: tuple[tuple[str, tuple[str, ...]], ...]


@functools.cache
def _methods(kind: type) -> tuple[Callable[..., Any], ...]:
    """The methods of a class, its own and inherited, that are written in a model's file and name a tensor."""
    found: dict[str, Callable[..., Any]] = {}
    for base in kind.__mro__:
        if base.__module__.startswith(_OF_MODELS) or base.__module__.partition(".")[0] not in _OF_LIBRARIES:
            for name, member in vars(base).items():
                if inspect.isfunction(member) and not name.startswith("__"):
                    found.setdefault(name, member)
    return tuple(method for method in found.values() if _has_source(method) and _instrumented(method).tapped)


def _has_source(method: Callable[..., Any]) -> bool:
    """Whether what a method was written as can be read; what was typed at a prompt of Python cannot."""
    try:
        return bool(inspect.getsource(inspect.unwrap(method)))
    except OSError:
        return False


@functools.cache
def _instrumented(method: Callable[..., Any]) -> _Instrumented:
    original: Any = inspect.unwrap(method)
    lines, first = inspect.getsourcelines(original)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    (function,) = tree.body
    assert isinstance(function, ast.FunctionDef)
    tapped = _tap(function, "" if function.name == "forward" else function.name)
    factory = ast.parse("def factory(__tap__, __class__): pass").body[0]
    assert isinstance(factory, ast.FunctionDef)
    factory.body = [function, ast.parse(f"return {function.name}").body[0]]
    ast.increment_lineno(function, first - 1)  # so that tracebacks and traces point to the file
    tree.body = [factory]
    made: dict[str, Any] = {}
    code = compile(ast.fix_missing_locations(tree), inspect.getsourcefile(original) or "?", "exec")
    exec(code, original.__globals__, made)
    # What `super()` needs to know: the class in which the method stands.
    free = dict(zip(original.__code__.co_freevars, original.__closure__ or (), strict=True))
    owner = free["__class__"].cell_contents if "__class__" in free else None
    return _Instrumented(lambda tap: made["factory"](tap, owner), tuple(tapped))


def _tap(function: ast.FunctionDef, result: str) -> list[tuple[str, tuple[str, ...]]]:
    """Send a function's annotated tensors through `__tap__`: arguments first, variables once final, then the result."""
    arguments = function.args.args if function.name == "forward" else []  # elsewhere they are another's result
    given = [(argument.arg, axes) for argument in arguments if (axes := _axes(argument.annotation))]
    variables: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and (axes := _axes(node.annotation)):
            variables[node.target.id] = axes
    body: list[ast.stmt] = []
    last = {name: max(i for i, s in enumerate(function.body) if name in _assigned(s)) for name in variables}
    for index, statement in enumerate(function.body):
        body.append(statement)
        body += [_call(name, variables[name], statement) for name in variables if last[name] == index]
    start = 1 if ast.get_docstring(function) is not None else 0
    function.body = [*body[:start], *(_call(name, axes, body[start]) for name, axes in given), *body[start:]]
    tapped = given + list(variables.items())
    returned = _axes(function.returns)
    if returned:
        for node in ast.walk(function):
            if isinstance(node, ast.Return) and node.value is not None:
                node.value = ast.copy_location(_through(result, returned, node.value), node.value)
        tapped.append((result, returned))
    return tapped


def _axes(annotation: ast.expr | None) -> tuple[str, ...] | None:
    """The axes that `Float[Tensor, "batch seq"]` names; None for any other annotation, or if it leaves some unnamed."""
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name)):
        return None
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
    if annotation.value.id not in _KINDS or len(parts) != 2 or not isinstance(parts[1], ast.Constant):
        return None
    axes = str(parts[1].value).split()
    return None if {"...", "_"} & set(axes) else tuple(axis.lstrip("#") for axis in axes)


def _assigned(statement: ast.stmt) -> set[str]:
    """The variables that a statement, or one inside it, gives a value."""
    bare = {n.target for n in ast.walk(statement) if isinstance(n, ast.AnnAssign) and n.value is None}
    stored = (n for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    return {node.id for node in stored if node not in bare}


def _through(name: str, axes: tuple[str, ...], value: ast.expr) -> ast.Call:
    names_of_axes = ast.Tuple([ast.Constant(axis) for axis in axes], ast.Load())
    return ast.Call(ast.Name("__tap__", ast.Load()), [ast.Constant(name), names_of_axes, value], [])


def _call(name: str, axes: tuple[str, ...], after: ast.stmt) -> ast.stmt:
    """`name = __tap__("name", axes, name)`, on the line of the statement that it follows."""
    value = _through(name, axes, ast.Name(name, ast.Load()))
    return ast.copy_location(ast.Assign([ast.Name(name, ast.Store())], value), after)
