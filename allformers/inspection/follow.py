"""Following a function: what is known of each variable and expression, statement by statement.

    >>> file = File('''
    ... def double_and_sum(x: Float[Tensor, "batch seq"]):
    ...     y = 2 * x
    ...     return y.sum(-1)
    ... ''')
    >>> follower = Follower(file, file.find("double_and_sum"))
    >>> follower.run()
    >>> follower.axes["y"], follower.returned
    (('batch', 'seq'), [('batch',)])

What annotations say is read in `declarations`, and what operations do in `operations`. Where statements are compared
with one another is left to a subclass, in `check`.
"""

import ast
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from allformers.inspection.declarations import AnyFunction, Class, File, Function, Object, stored_names, value_of
from allformers.inspection.operations import (
    ELEMENTWISE,
    INPLACE,
    NOTHING,
    NUMBER,
    SAME_REST,
    Argument,
    Arguments,
    Axes,
    Layer,
    Many,
    Number,
    Several,
    Table,
    Value,
    alike,
    apply_layer,
    behind,
    broadcast,
    built_in,
    common,
    elementwise,
    front,
    indexed,
    is_name,
    is_open,
    library_call,
    library_value,
    matrix_product,
    operation,
    part_of,
    stacked,
    weight_of,
)
from allformers.inspection.source import split_side

_LAST_TWO = Arguments(tuple(Argument(ast.UnaryOp(ast.USub(), ast.Constant(index)), NUMBER) for index in (1, 2)))

_EINOPS = {"einsum", "rearrange", "reduce", "repeat"}


def pattern_text(call: ast.Call) -> str | None:
    """The pattern of a call of einops, whatever else is right or wrong with it; None for another call."""
    name = ast.unparse(call.func).removeprefix("einops.")
    nodes = [*call.args, *(word.value for word in call.keywords if word.arg == "pattern")]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return next((text for text in texts if "->" in text), None) if name in _EINOPS else None


def side_of(text: str) -> Axes:
    """The axes of one side of a pattern."""
    return tuple("1" if axis == "()" else axis for axis in split_side(text.replace("\u2026", "...")))


def variables_of(function: AnyFunction) -> set[str]:
    """The names that are variables of a function: what it assigns and its arguments."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return stored_names(*function.body) | {one.arg for one in every if one is not None}


def aligned(came: Axes, expected: Axes) -> list[tuple[str, str]] | None:
    """The axes that stand for one another in two descriptions of a tensor; None if their numbers differ."""
    if not is_open(came) and not is_open(expected):
        return list(zip(came, expected, strict=True)) if len(came) == len(expected) else None
    closed, opened = (expected, came) if is_open(came) else (came, expected)
    if not is_open(closed) and len(closed) < len(front(opened)) + len(behind(opened)):
        return None
    first = list(zip(front(came), front(expected), strict=False))
    last = list(zip(behind(came)[::-1], behind(expected)[::-1], strict=False))[::-1]
    return [*first, *last]


def attribute_of(owner: Object, name: str) -> Value:
    """An attribute of an object: as it is annotated, or else as `__init__` or the class sets it."""
    annotation, value, file = owner.cls.declared(name) or (None, None, owner.cls.file)
    found = value_of(annotation, file)
    if found is None and name not in owner.cls.assigned_outside_init:
        found = _set_by_init(owner.cls).get(name)
        if found is None and value is not None:
            found = constant(value, file)
    if found is None and (method := owner.cls.member(name)) is not None:
        return result_of(method, Arguments(), set()) if method.is_property() else replace(method, owner=owner)
    return found


def _set_by_init(cls: Class) -> dict[str, Value]:
    """The attributes that `__init__` sets, its own and that of the classes it inherits from."""
    memo = cls.file.memo
    if ("attributes", cls) not in memo:
        found: dict[str, Value] = {}
        memo["attributes", cls] = found
        for base in reversed(cls.bases):
            for node in base.node.body:
                if isinstance(node, AnyFunction) and node.name == "__init__":
                    function = Function(node, base.file, base, Object(cls))
                    follower = Follower(base.file, function)
                    follower.enters = {"__init__"}
                    follower.run()
                    sure = {name: value for name, value in follower.axes.items() if name not in follower.unsure}
                    found |= {name[1:]: value for name, value in sure.items() if name.startswith(".")}
    attributes: dict[str, Value] = memo["attributes", cls]
    return attributes


def definition(file: File, name: str) -> Value:
    """What a name at the top of a file stands for."""
    found = file.find(name)
    return constant(found, file.origin(name)) if isinstance(found, ast.expr) else found


def constant(value: ast.expr, file: File) -> Value:
    """The value of an expression outside of functions."""
    if value not in file.memo:
        file.memo[value] = None  # in case it needs itself
        file.memo[value] = Follower(file).infer(value)
    found: Value = file.memo[value]
    return found


def fixed_axes(cls: Class) -> set[str]:
    """The axes whose sizes an object or its configuration fixes, as its `axes` say: they mean one thing in it."""
    if ("fixed", cls) in cls.file.memo:
        known: set[str] = cls.file.memo["fixed", cls]
        return known
    cls.file.memo["fixed", cls] = set()  # in case it needs itself
    config = attribute_of(Object(cls), "config")
    classes = [*cls.bases, *(config.cls.bases if isinstance(config, Object) else [])]
    functions = [
        node
        for one in classes
        for node in one.node.body
        if isinstance(node, AnyFunction) and node.name in {"axes", "__init__"}
    ]
    tables = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Dict)]
    keys = [key for table in tables for key in table.keys]
    found = {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    cls.file.memo["fixed", cls] = found
    return found


def result_of(function: Function, call: Arguments, fixed: set[str]) -> Value:
    """What a function returns: its annotation, in the names that the axes have in the arguments.

    Args:
        function: a function with annotations.
        call: its arguments.
        fixed: names that mean the same in the function and where it is called.
    """
    stated = function.result()
    bound: dict[str, Axes] = {}
    if not any(isinstance(argument.node, ast.Starred) for argument in call.given):
        parameters = function.parameters()
        pairs = list(zip(parameters, call.given, strict=False))
        pairs += [
            (one, call.named[one.arg]) for one in [*parameters, *function.node.args.kwonlyargs] if one.arg in call.named
        ]
        for parameter, argument in pairs:
            said = function.annotated(parameter)
            if isinstance(said, tuple) and isinstance(argument.value, tuple):
                bind_names(said, argument.value, bound)
    if "..." in bound and not keeps_rest(function):
        del bound["..."]
    for name, axes in [*bound.items()]:
        if sum(axes == others for others in bound.values()) > 1:  # told apart there, and perhaps here
            bound[name] = bound[name] if len(axes) != 1 or axes == ("1",) else ("_",)
    return _in_names_of(stated, bound, fixed)


def keeps_rest(function: Function) -> bool:
    """True if `...` in a function's result stands for the same axes as in its arguments, as its body shows."""
    memo = function.file.memo
    if function.node not in memo:
        memo[function.node] = False  # in case it needs itself
        follower = Follower(function.file, function)
        follower.axes = {name: _with_same_rest(value) for name, value in follower.axes.items()}
        follower.run()
        stated = _with_same_rest(function.result())
        fits = [_has_same_rest(returned, stated) for returned in follower.returned]
        memo[function.node] = bool(fits) and all(fits)
    return bool(memo[function.node])


def _with_same_rest(value: Value) -> Value:
    """Axes with a sign for `...`, which stands for the same axes wherever it comes."""
    if isinstance(value, Several):
        return Several(tuple(map(_with_same_rest, value.parts)))
    return tuple(SAME_REST if axis == "..." else axis for axis in value) if isinstance(value, tuple) else value


def _has_same_rest(came: Value, stated: Value) -> bool:
    """True if a result has that sign where its annotation has it."""
    if isinstance(came, Several) and isinstance(stated, Several) and len(came.parts) == len(stated.parts):
        return all(map(_has_same_rest, came.parts, stated.parts))
    if not isinstance(stated, tuple) or SAME_REST not in stated:
        return True
    return (
        isinstance(came, tuple)
        and SAME_REST in came
        and len(came) == len(stated)
        and came.index(SAME_REST) == stated.index(SAME_REST)
    )


def bind_names(said: Axes, came: Axes, bound: dict[str, Axes]) -> None:
    """Note which axes of a tensor the names in an annotation, or in a pattern, stand for."""
    pairs: list[tuple[str, Axes]] = [(name.removeprefix("#"), (axis,)) for axis, name in aligned(came, said) or []]
    first, last = len(front(said)), len(came) - len(behind(said))
    hides_nothing = len(front(came)) >= first and len(behind(came)) >= len(behind(said))
    if "..." in said and last >= first and hides_nothing:
        pairs.append(("...", came[first:last]))
    for name, axes in pairs:
        before = bound.get(name, axes)
        if before == axes or before in _NAMELESS or before[0].startswith("#"):
            bound[name] = axes
        elif axes not in _NAMELESS:
            bound[name] = ("...",) if name == "..." else ("_",)


_NAMELESS = {("_",), ("1",), ()}


def _in_names_of(stated: Value, bound: Mapping[str, Axes], fixed: set[str]) -> Value:
    """An annotation with other names for its axes; those that are neither bound nor fixed have none."""
    if isinstance(stated, Several):
        return Several(tuple(_in_names_of(part, bound, fixed) for part in stated.parts), stated.names)
    if isinstance(stated, Many):
        return Many(_in_names_of(stated.part, bound, fixed))
    if not isinstance(stated, tuple):
        return stated
    named: list[str] = []
    for axis in stated:
        name = axis.removeprefix("#")
        axes = bound.get(name, (name,) if name in fixed or name in {"...", "1"} else ("_",))
        named += [f"#{one}" if axis.startswith("#") and is_name(one) else one for one in axes]
    return tuple(named)


class Follower:
    """Follows the values in one function, statement by statement.

    Attributes:
        axes: what is known of each variable; the object's own attributes are `.name`.
        unsure: variables that are known in one of two ways only that lead here.
        returned: what is known of each result.
        enters: in `__init__`, the methods that were entered on the way here; elsewhere none is.

    Args:
        file: the file that the function is in.
        function: None for the statements outside of functions.
        hidden: variables of functions around it, whose values are not known here.
    """

    def __init__(self, file: File, function: Function | None = None, hidden: Iterable[str] = ()) -> None:
        self.file, self.function = file, function
        self.axes: dict[str, Value] = {}
        self.unsure: set[str] = set()
        self.returned: list[Value] = []
        self.enters: set[str] = set()
        self.local, self.shared = set(hidden), set[str]()
        self.owner = function.owner if function is not None else None
        if function is not None:
            arguments = function.node.args
            for one in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                self.axes[one.arg] = function.annotated(one)
            if arguments.vararg is not None:
                self.axes[arguments.vararg.arg] = Many(function.annotated(arguments.vararg))
            if function.owner is not None and function.definer is not None and arguments.args:
                is_plain = not function.decorators() & {"staticmethod", "classmethod"}
                self.axes[arguments.args[0].arg] = function.owner if is_plain else None
            self.local |= variables_of(function.node)
            inner = [one for one in ast.walk(function.node) if isinstance(one, ast.Nonlocal)]
            self.shared = {name for one in inner for name in one.names}

    def run(self) -> None:
        """Follow the whole body."""
        self.follow(self.file.tree.body if self.function is None else self.function.node.body)

    # -- What a subclass compares --------------------------------------------------------------------------------------

    def meets_annotation(self, node: ast.stmt, what: str, value: Value, annotation: ast.expr, source: ast.expr) -> None:
        """Called where a value gets an annotation: a variable's, or that of the result."""

    def meets_tensor(self, node: ast.AST, left: ast.expr, one: Axes, right: ast.expr, other: Axes) -> None:
        """Called where two tensors that meet in an element-wise operation have different names for an axis."""

    def meets_pattern(self, node: ast.Call, name: str, pattern: str | None, tensors: Sequence[Argument]) -> None:
        """Called where tensors meet a pattern of einops; None for one that cannot be read."""

    # -- Statements ----------------------------------------------------------------------------------------------------

    def follow(self, body: Iterable[ast.stmt]) -> None:
        """Follow statements one after the other."""
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        """Note what a statement assigns."""
        match node:
            case ast.AnnAssign():
                found = self.infer(node.value) if node.value is not None else None
                if node.value is not None:
                    what = f"variable `{ast.unparse(node.target)}`"
                    self.meets_annotation(node, what, found, node.annotation, node.value)
                stated = value_of(node.annotation, self.file)
                self.assign(node.target, stated if stated is not None else found)
            case ast.Assign():
                found = self.infer(node.value)
                for target in node.targets:
                    self.assign(target, found)
            case ast.AugAssign():
                found = self.binary(node, node.target, node.op, node.value)
                if isinstance(node.target, ast.Name):
                    self.assign(node.target, found)
            case ast.Return():
                found = self.infer(node.value) if node.value is not None else None
                self.returned.append(found)
                returns = self.function.node.returns if self.function is not None else None
                if returns is not None and node.value is not None:
                    self.meets_annotation(node, "the result", found, returns, node.value)
            case ast.If():
                self.infer(node.test)
                self.branches(node.body, node.orelse)
            case ast.Match():
                self.infer(node.subject)
                captured = [_unknown(stored_names(case.pattern)) for case in node.cases]
                self.branches(*([lost, *case.body] for lost, case in zip(captured, node.cases, strict=True)), [])
            case ast.For() | ast.AsyncFor():
                self.assign(node.target, part_of(self.infer(node.iter)))
                self.loop(node.body, node.orelse)
            case ast.While():
                self.infer(node.test)
                self.loop(node.body, node.orelse)
            case ast.With() | ast.AsyncWith():
                for item in node.items:
                    self.infer(item.context_expr)
                    if item.optional_vars is not None:
                        self.assign(item.optional_vars, None)
                self.follow(node.body)
            case ast.Try() | ast.TryStar():
                # What a body assigned before it failed is unknown in its handlers.
                lost = _unknown(stored_names(*node.body, *node.handlers))
                self.branches([*node.body, *node.orelse], *([lost, *handler.body] for handler in node.handlers))
                self.follow(node.finalbody)
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name)) as call) if self.enters:
                self.infer(call)
                self.enter(name, call)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self.axes[node.name] = None
            case ast.Delete():
                for target in node.targets:
                    self.assign(target, None)
            case _:
                for part in ast.iter_child_nodes(node):
                    if isinstance(part, ast.expr):
                        self.infer(part)

    def enter(self, name: str, call: ast.Call) -> None:
        """Follow a method of the object that `__init__` calls, for the attributes that it sets."""
        method = self.infer(call.func)
        if isinstance(method, Function) and method.owner == self.owner and name not in self.enters:
            inner = Follower(method.file, method)
            inner.enters = self.enters | {name}
            inner.run()
            self.axes |= {key: value for key, value in inner.axes.items() if key.startswith(".")}

    def assign(self, target: ast.expr, value: Value) -> None:
        """Note the value of a variable, of an attribute of the object, or of each of several."""
        match target:
            case ast.Name(id=name):
                self.axes[name] = value
                self.unsure.discard(name)
            case ast.Attribute(value=ast.Name(id=name), attr=attr) if self.owner and self.axes.get(name) == self.owner:
                self.axes[f".{attr}"] = value
                self.unsure.discard(f".{attr}")
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                starred = any(isinstance(part, ast.Starred) for part in targets)
                known = isinstance(value, Several) and len(value.parts) == len(targets) and not starred
                for index, part in enumerate(targets):
                    self.assign(part, value.parts[index] if isinstance(value, Several) and known else part_of(value))
            case ast.Starred(value=inner):
                self.assign(inner, None)
            case ast.Subscript():
                self.infer(target.value)
                self.infer(target.slice)
            case _:
                pass

    def branches(self, *bodies: Sequence[ast.stmt]) -> None:
        """Follow each of several bodies from the same start.

        What follows has to fit each of the ways to it. So afterwards a variable has the axes that some of them know,
        unless two know different ones. But what follows under another condition may be reached by one of the ways
        alone: there, and behind a way that has ended, such a variable is unknown.
        """
        before, hidden = dict(self.axes), self.unsure
        ends: list[dict[str, Value]] = []
        unsure: set[str] = set()
        for body in bodies:
            self.axes, self.unsure = before | dict.fromkeys(hidden), set()
            self.follow(body)
            if not _ends(body):
                untouched = hidden - stored_names(*body)
                ends.append(self.axes | {name: before[name] for name in untouched})
                unsure |= self.unsure | untouched
        self.axes = ends[0] if ends else before
        for end in ends[1:]:
            for name in {*self.axes, *end}:
                self.axes[name], sure = _either(self.axes.get(name, NOTHING), end.get(name, NOTHING))
                unsure |= set() if sure else {name}
        self.unsure = unsure
        if len(ends) < len(bodies):
            self.axes |= dict.fromkeys(unsure)
            self.unsure = set()

    def loop(self, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> None:
        """Follow a loop's body once; afterwards what it assigns is known only if it is the same before and behind."""
        before, hidden = dict(self.axes), self.unsure
        self.axes |= dict.fromkeys(hidden)
        self.follow(body)
        leaves = any(isinstance(part, ast.Break | ast.Continue) for node in body for part in ast.walk(node))
        for name in stored_names(*body):
            if leaves or before.get(name, self.axes.get(name)) != self.axes.get(name):
                self.axes[name] = None
        untouched = hidden - stored_names(*body)
        self.axes |= {name: before[name] for name in untouched}
        self.unsure = untouched
        self.follow(orelse)

    # -- Expressions ---------------------------------------------------------------------------------------------------

    def infer(self, node: ast.expr) -> Value:
        """What is known of an expression; patterns inside it are compared on the way."""
        match node:
            case ast.Name(id=name):
                return self.variable(name, node)
            case ast.Constant():
                return NOTHING if node.value is None else NUMBER if isinstance(node.value, int | float) else None
            case ast.Call():
                return self.call(node)
            case ast.BinOp():
                return self.binary(node, node.left, node.op, node.right)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                found = self.elementwise(node, left, right)
                return NUMBER if isinstance(op, ast.Is | ast.IsNot | ast.In | ast.NotIn) else found
            case ast.UnaryOp():
                found = self.infer(node.operand)
                return NUMBER if isinstance(node.op, ast.Not) else found
            case ast.IfExp():
                self.infer(node.test)
                return common(self.infer(node.body), self.infer(node.orelse))
            case ast.BoolOp():
                values = [self.infer(part) for part in node.values]
                return values[0] if all(value == values[0] for value in values) else None
            case ast.Tuple() | ast.List():
                parts = tuple(self.infer(part) for part in node.elts)
                return Several(parts) if not any(isinstance(part, ast.Starred) for part in node.elts) else None
            case ast.Dict():
                for key in node.keys:
                    self.infer(key) if key is not None else None
                return Table(alike([self.infer(value) for value in node.values]))
            case ast.Attribute():
                return self.attribute(node)
            case ast.Subscript():
                return self.subscript(node)
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp():
                return self.comprehension(node.generators, node.elt)
            case ast.DictComp():
                self.comprehension(node.generators, node.key)
                found = self.comprehension(node.generators, node.value)
                return Table(found.part) if isinstance(found, Many) else None
            case ast.NamedExpr():
                found = self.infer(node.value)
                self.assign(node.target, found)
                return found
            case ast.Lambda():
                inner = {one.arg: None for one in [*node.args.args, *node.args.posonlyargs, *node.args.kwonlyargs]}
                self.inside(inner, lambda: self.infer(node.body))
                return None
            case _:
                for part in ast.iter_child_nodes(node):
                    if isinstance(part, ast.expr):
                        self.infer(part)
                return None

    def variable(self, name: str, node: ast.expr) -> Value:
        """The value of a variable, or of what the file defines under this name."""
        if name in self.shared:
            return None
        if name in self.axes or name in self.local:
            return self.axes.get(name)
        full = self.file.full_name(node)
        if full.startswith("torch"):
            return library_value(full)
        return definition(self.file, name)

    def inside(self, names: Mapping[str, Value], infer: Callable[[], Value]) -> Value:
        """The value of an expression with variables of its own."""
        before = self.axes
        self.axes = {**before, **names}
        found = infer()
        self.axes = before
        return found

    def comprehension(self, generators: Sequence[ast.comprehension], element: ast.expr) -> Value:
        """The list that a comprehension makes."""
        before = self.axes
        self.axes = dict(before)
        for generator in generators:
            self.assign(generator.target, part_of(self.infer(generator.iter)))
            for condition in generator.ifs:
                self.infer(condition)
        found = self.infer(element)
        self.axes = before
        return Many(found)

    def attribute(self, node: ast.Attribute) -> Value:
        """The value of an attribute."""
        full = self.full_name(node)
        if full:
            return library_value(full)
        owner, name = self.infer(node.value), node.attr
        match owner:
            case tuple():
                if name == "shape":
                    return Many(NUMBER)
                if name in {"T", "mT", "H", "mH"}:
                    whole = len(owner) == 2 and not is_open(owner)
                    return operation("transpose", owner, _LAST_TWO) if whole or name.startswith("m") else None
                return owner if name in {"data", "grad", "real"} else NUMBER if name == "ndim" else None
            case Several(names=names) if name in names:
                return owner.parts[names.index(name)]
            case Layer():
                return weight_of(owner, name)
            case Number():
                return NUMBER
            case Object():
                if owner == self.owner and f".{name}" in self.axes:
                    return self.axes[f".{name}"]
                return attribute_of(owner, name)
            case Class():
                found = attribute_of(Object(owner), name)
                is_method = isinstance(found, Function) and not found.decorators() & {"staticmethod", "classmethod"}
                return None if is_method else found
            case _:
                return None

    def full_name(self, node: ast.expr) -> str:
        """The full name of something of a library; "" for anything else."""
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        is_variable = isinstance(root, ast.Name) and (root.id in self.local or root.id in self.axes)
        full = "" if is_variable else self.file.full_name(node)
        return full if full.startswith(("torch.", "math.")) else ""

    def subscript(self, node: ast.Subscript) -> Value:
        """The value of `value[index]`."""
        owner = self.infer(node.value)
        nodes = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        indices = [Argument(one, None if isinstance(one, ast.Slice) else self.index(one)) for one in nodes]
        for one in nodes:
            if isinstance(one, ast.Slice):
                for part in (one.lower, one.upper, one.step):
                    self.infer(part) if part is not None else None
        match owner:
            case tuple():
                return indexed(owner, indices)
            case Several(parts=parts):
                try:
                    place = ast.literal_eval(node.slice)
                    return parts[place] if isinstance(place, int) else None
                except (ValueError, IndexError):
                    return alike(parts) if not isinstance(node.slice, ast.Slice) else None
            case Many():
                return owner if isinstance(node.slice, ast.Slice) else owner.part
            case Table():
                return owner.part
            case _:
                return None

    def index(self, node: ast.expr) -> Value:
        """The value of an index. One that may be a mask is only known to have one axis, if it has one."""
        found = self.infer(node)
        if not isinstance(found, tuple) or self.is_whole(node):
            return found
        return ("_",) if len(found) == 1 and not is_open(found) else None

    def is_whole(self, node: ast.expr) -> bool:
        """True for a variable that is annotated with whole numbers, and so no mask."""
        if not (isinstance(node, ast.Name) and self.function is not None):
            return False
        arguments = self.function.node.args
        annotations = [one.annotation for one in [*arguments.args, *arguments.kwonlyargs] if one.arg == node.id]
        return any(isinstance(one, ast.Subscript) and ast.unparse(one.value).startswith("Int") for one in annotations)

    def binary(self, node: ast.expr | ast.stmt, left: ast.expr, op: ast.operator, right: ast.expr) -> Value:
        """The value of an operation with a sign."""
        if isinstance(op, ast.MatMult):
            return matrix_product(self.infer(left), self.infer(right))
        return self.elementwise(node, left, right)

    def elementwise(self, node: ast.expr | ast.stmt, left: ast.expr, right: ast.expr) -> Value:
        """The value of an element-wise operation; two tensors are compared on the way."""
        one, other = self.infer(left), self.infer(right)
        return self.both(node, left, one, right, other)

    def both(self, node: ast.AST, left: ast.expr, one: Value, right: ast.expr, other: Value) -> Value:
        """Likewise, of two values."""
        if isinstance(one, Several | Many) or isinstance(other, Several | Many):  # lists are put together
            return None
        if not isinstance(one, tuple) or not isinstance(other, tuple):
            return elementwise(one, other)
        if any(_differ(*pair) for pair in zip(behind(one)[::-1], behind(other)[::-1], strict=False)):
            self.meets_tensor(node, left, one, right, other)
            return None
        return broadcast(one, other)

    # -- Calls ---------------------------------------------------------------------------------------------------------

    def call(self, node: ast.Call) -> Value:
        """The value of a call."""
        values = [self.infer(argument) for argument in node.args]
        given = tuple(Argument(*pair) for pair in zip(node.args, values, strict=True))
        named = {word.arg or "**": Argument(word.value, self.infer(word.value)) for word in node.keywords}
        call = Arguments(given, named)
        if self.is_einops(node):
            return self.pattern(node, call)
        full = self.full_name(node.func)
        if full:
            name = full.rpartition(".")[2]
            if name == "where":
                return self.where(node, node.args, values)
            if name in ELEMENTWISE and len(values) > 1 and not full.startswith("math."):
                return self.both(node, node.args[0], values[0], node.args[1], values[1])
            return library_call(full, call)
        if isinstance(node.func, ast.Name):
            if node.func.id not in self.local and node.func.id not in self.axes:
                if node.func.id == "super" and not node.args:
                    return None
                if (built := built_in(node.func.id, call)) is not None:
                    return built
            return self.apply(self.infer(node.func), call)
        if not isinstance(node.func, ast.Attribute):
            return self.apply(self.infer(node.func), call)
        if self.is_super(node.func.value):
            return self.apply(self.of_super(node.func.attr), call)
        owner, name = self.infer(node.func.value), node.func.attr
        if isinstance(owner, tuple):
            if name in INPLACE and isinstance(node.func.value, ast.Name):
                self.axes[node.func.value.id] = None
            if name == "where":
                return self.where(
                    node, [node.args[0], node.func.value, *node.args[1:]], [values[0], owner, *values[1:]]
                )
            return operation(name, owner, call)
        if isinstance(owner, Table):
            return {"get": owner.part, "values": Many(owner.part), "items": Many(Several((None, owner.part)))}.get(name)
        if owner == self.owner and name in {"register_buffer", "register_parameter"} and len(given) > 1:
            key = given[0].node
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                self.axes[f".{key.value}"] = values[1]
            return None
        return self.apply(self.attribute(node.func), call)

    def is_super(self, node: ast.expr) -> bool:
        """True for `super()`."""
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"

    def of_super(self, name: str) -> Value:
        """The method that follows this class's own."""
        if self.function is None or self.function.definer is None or not isinstance(self.owner, Object):
            return None
        method = self.owner.cls.member(name, behind=self.function.definer)
        return replace(method, owner=self.owner) if method is not None else None

    def apply(self, called: Value, call: Arguments) -> Value:
        """The value of a call of a known function, class, layer or module."""
        match called:
            case Function():
                owner = self.owner if called.owner == self.owner else None
                return result_of(called, call, fixed_axes(owner.cls) if isinstance(owner, Object) else set())
            case Class():
                return Object(called)
            case Layer(name="Sequential", parts=parts):
                found = call.given[0].value if call.given else None
                for part in parts:
                    found = self.apply(part, Arguments((Argument(call.given[0].node, found),))) if call.given else None
                return found
            case Layer():
                return apply_layer(called, call)
            case Object():
                method = called.cls.member("forward") or called.cls.member("__call__")
                return result_of(replace(method, owner=called), call, set()) if method is not None else None
            case Number():
                return NUMBER
            case _:
                return None

    def where(self, node: ast.Call, nodes: Sequence[ast.expr], values: Sequence[Value]) -> Value:
        """The value of `torch.where` with three arguments."""
        if len(values) != 3:
            return None
        chosen = self.both(node, nodes[1], values[1], nodes[2], values[2])
        return self.both(node, nodes[1], chosen, nodes[0], values[0])

    # -- Patterns ------------------------------------------------------------------------------------------------------

    def is_einops(self, node: ast.Call) -> bool:
        """True for a call of einops."""
        name = ast.unparse(node.func)
        root = name.partition(".")[0]
        is_other = root in self.local or self.file.defines(root)
        origin = self.file.imports.get(root, "einops")
        return name.removeprefix("einops.") in _EINOPS and not is_other and origin.partition(".")[0] == "einops"

    def pattern(self, node: ast.Call, call: Arguments) -> Value:
        """The result of einops: it has the axes of the pattern's right side."""
        name, pattern = ast.unparse(node.func).removeprefix("einops."), pattern_text(node)
        is_tensor = [not (isinstance(one.node, ast.Constant) and isinstance(one.node.value, str)) for one in call.given]
        count = next((index for index, tensor in enumerate(is_tensor) if not tensor), len(is_tensor))
        tensors = call.given[: count if name == "einsum" else 1]
        if any(isinstance(one.node, ast.Starred) for one in tensors):
            pattern = None
        self.meets_pattern(node, name, pattern, tensors)
        if pattern is None:
            return None
        left, _, right = pattern.partition("->")
        bound: dict[str, Axes] = {}
        for one, side in zip(tensors, left.split(",") if name == "einsum" else [left], strict=False):
            if (axes := stacked(one.value)) is not None:
                bind_names(side_of(side), axes, bound)
        rest = bound.get("...", ("...",))
        return tuple(itertools.chain.from_iterable(rest if axis == "..." else (axis,) for axis in side_of(right)))


def _differ(one: str, other: str) -> bool:
    """True for different names of axes that meet in an element-wise operation."""
    mine, theirs = one.removeprefix("#"), other.removeprefix("#")
    return mine != theirs and is_name(mine) and is_name(theirs)


def _unknown(names: Iterable[str]) -> ast.stmt:
    """A statement after which variables are unknown."""
    return ast.Delete([ast.Name(name, ast.Del()) for name in sorted(names)])


def _ends(body: Sequence[ast.stmt]) -> bool:
    """True if nothing follows a body: it returns, raises, or leaves the loop."""
    last = body[-1] if body else None
    if isinstance(last, ast.If):
        return _ends(last.body) and _ends(last.orelse)
    return isinstance(last, ast.Return | ast.Raise | ast.Continue | ast.Break)


def _either(one: Value, other: Value) -> tuple[Value, bool]:
    """What must hold of a value that is one of two for what follows to fit both, and whether both say so."""
    if isinstance(one, tuple) and isinstance(other, tuple) and is_open(one) != is_open(other):
        opened, closed = (one, other) if is_open(one) else (other, one)
        if len(closed) < len(front(opened)) + len(behind(opened)):
            return None, False
        hidden = closed[len(front(opened)) : len(closed) - len(behind(opened))]
        return common(closed, (*front(opened), *hidden, *behind(opened))), False
    if one is None or other is None:
        return other if one is None else one, False
    return common(one, other), True
