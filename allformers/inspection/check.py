"""Named axes, checked without running: a file's annotated tensors are followed through its einops patterns.

    >>> wrong = '''
    ... def scores(queries: Float[Tensor, "batch heads seq head_dim"]) -> Float[Tensor, "batch seq heads head_dim"]:
    ...     return rearrange(queries, "batch seq heads head_dim -> batch heads seq head_dim")
    ... '''
    >>> print(check(wrong).findings[0])
    line 3: scores: argument `queries` of rearrange has axis `heads`, expected `seq`
      came:     batch heads seq head_dim
      expected: batch seq heads head_dim
      pattern:  batch seq heads head_dim -> batch heads seq head_dim

A tensor's axes are known from an annotation, from the right side of a pattern, or from the operation that makes it. What
annotations say is read in `declarations`, and what operations do in `operations`; here a function's statements are
followed one by one, and what is known is compared with what is expected. Where axes are not known, nothing is claimed,
and the report says so.
"""

import ast
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from allformers.inspection.declarations import (
    AnyFunction,
    Class,
    File,
    Function,
    Object,
    all_functions,
    axis_names,
    stored_names,
    value_of,
)
from allformers.inspection.operations import (
    ELEMENTWISE,
    INPLACE,
    KEEPING,
    KEEPING_LAYERS,
    MAKING,
    NOTHING,
    NUMBER,
    SAME_REST,
    WITH_ONE_AXIS,
    Argument,
    Arguments,
    Axes,
    Layer,
    Many,
    Number,
    Several,
    Table,
    Value,
    apply_layer,
    behind,
    broadcast,
    common,
    elementwise,
    front,
    indexed,
    is_name,
    is_open,
    matrix_product,
    new_tensor,
    operation,
    put_together,
    replaced,
    weight_of,
)
from allformers.inspection.source import annotated_text, split_side


class Finding(NamedTuple):
    """A contradiction between two statements about a tensor's axes.

    Attributes:
        line: where it is.
        message: what contradicts what.
    """

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


@dataclass
class Report:
    """The result of `check`.

    Attributes:
        findings: contradictions, in the order of lines.
        renamed: axes that get a second name, which contradicts nothing but is hard to follow.
        hints: axes that the vocabulary does not have, each where it first comes.
        followed: the number of tensors in patterns whose axes were known, and so compared.
        unknown: the line and the source of each tensor in a pattern whose axes were not known.
    """

    findings: list[Finding] = field(default_factory=list)
    renamed: list[Finding] = field(default_factory=list)
    hints: list[Finding] = field(default_factory=list)
    followed: int = 0
    unknown: list[tuple[int, str]] = field(default_factory=list)


def check(source: str, vocabulary: Iterable[str] | None = None) -> Report:
    """Follow the annotated tensors of a file through its einops patterns.

    Args:
        source: the file's text.
        vocabulary: names of axes; others are hints in the report. None for no hints.

    Raises:
        SyntaxError: the text is not Python.
    """
    file, report, objects = File(source), Report(), _Objects()
    _Follower(objects, file, report).follow(file.tree.body)
    for name, node, around in all_functions(file.tree):
        definer = Class(around[-1], file) if around and isinstance(around[-1], ast.ClassDef) else None
        function = Function(node, file, definer, Object(definer) if definer is not None else None)
        hidden = {name for outer in around if isinstance(outer, AnyFunction) for name in _variables(outer)}
        _Follower(objects, file, report, function, name, hidden).run()
    if vocabulary is not None:
        known = set(vocabulary)
        for line, text in sorted(_all_axes(file.tree)):
            for axis in sorted(axis_names(text) - known, key=text.index):
                known.add(axis)
                report.hints.append(Finding(line, f"axis `{axis}` is not in the vocabulary"))
    report.findings.sort()
    report.renamed.sort()
    report.unknown.sort()
    return report


def summary(report: Report, name: str) -> str:
    """A report as text: findings, hints, and what could not be followed."""
    lines = [f"{name}, {finding}" for finding in report.findings]
    lines += [f"{name}, {hint} (a hint)" for hint in [*report.renamed, *report.hints]]
    if not report.followed and not report.unknown:
        lines.append(f"{name}: no einops pattern, so there is nothing to follow")
        return "\n".join(lines) + "\n"
    total = report.followed + len(report.unknown)
    lines.append(f"{name}: {report.followed} of {total} tensors in patterns followed, {len(report.unknown)} unknown")
    by_line: dict[int, list[str]] = {}
    for line, text in report.unknown:
        by_line.setdefault(line, []).append(text)
    lines += [f"  line {line}: {', '.join(texts)}" for line, texts in by_line.items()]
    return "\n".join(lines) + "\n"


def _all_axes(tree: ast.AST) -> Iterable[tuple[int, str]]:
    """The text of every annotation and pattern, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and (text := annotated_text(node)) is not None:
            yield node.lineno, text
        if isinstance(node, ast.Call) and (text := _pattern_text(node)) is not None:
            yield node.lineno, text


_LAST_TWO = Arguments(tuple(Argument(ast.UnaryOp(ast.USub(), ast.Constant(index)), NUMBER) for index in (1, 2)))

_EINOPS = {"einsum", "rearrange", "reduce", "repeat"}


def _pattern_text(call: ast.Call) -> str | None:
    """The pattern of a call of einops, whatever else is right or wrong with it; None for another call."""
    name = ast.unparse(call.func).removeprefix("einops.")
    nodes = [*call.args, *(word.value for word in call.keywords if word.arg == "pattern")]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return next((text for text in texts if "->" in text), None) if name in _EINOPS else None


def _side(text: str) -> Axes:
    """The axes of one side of a pattern."""
    return tuple("1" if axis == "()" else axis for axis in split_side(text.replace("\u2026", "...")))


def _variables(function: AnyFunction) -> set[str]:
    """The names that are variables of a function: what it assigns and its arguments."""
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return stored_names(*function.body) | {one.arg for one in every if one is not None}


def _same(came: str, expected: str) -> bool:
    """True if an axis of this name may stand where that one is expected."""
    if came == expected or "_" in (came, expected) or came.startswith("(") or expected.startswith("("):
        return True
    if expected == "1":
        return came.startswith("#") or not (is_name(came))
    one, other = came.removeprefix("#"), expected.removeprefix("#")
    return one == other or not (is_name(one) and is_name(other))


def _aligned(came: Axes, expected: Axes) -> list[tuple[str, str]] | None:
    """The axes that stand for one another in two descriptions of a tensor; None if their numbers differ."""
    if not is_open(came) and not is_open(expected):
        return list(zip(came, expected, strict=True)) if len(came) == len(expected) else None
    closed, opened = (expected, came) if is_open(came) else (came, expected)
    if not is_open(closed) and len(closed) < len(front(opened)) + len(behind(opened)):
        return None
    first = list(zip(front(came), front(expected), strict=False))
    last = list(zip(behind(came)[::-1], behind(expected)[::-1], strict=False))[::-1]
    return [*first, *last]


class _Objects:
    """What is known of the objects of a file's classes, found when it is first needed."""

    def __init__(self) -> None:
        self._attributes: dict[Class, dict[str, Value]] = {}
        self._keeps_rest: dict[AnyFunction, bool] = {}
        self._constants: dict[ast.expr, Value] = {}

    def attribute(self, owner: Object, name: str) -> Value:
        """An attribute of an object: as it is annotated, or else as `__init__` or the class sets it."""
        annotation, value, file = owner.cls.declared(name) or (None, None, owner.cls.file)
        found = value_of(annotation, file)
        if found is None and name not in owner.cls.assigned_outside_init():
            found = self._set_by_init(owner.cls).get(name)
            if found is None and value is not None:
                found = self.constant(value, file)
        if found is None and (method := owner.cls.member(name)) is not None:
            bound = Function(method.node, method.file, method.definer, owner)
            return self.result(bound, Arguments(), set()) if bound.is_property() else bound
        return found

    def _set_by_init(self, cls: Class) -> dict[str, Value]:
        """The attributes that `__init__` sets, its own and that of the classes it inherits from."""
        if cls not in self._attributes:
            found = self._attributes[cls] = {}
            for base in reversed(cls.bases()):
                for node in base.node.body:
                    if isinstance(node, AnyFunction) and node.name == "__init__":
                        function = Function(node, base.file, base, Object(cls))
                        follower = _Follower(self, base.file, Report(), function)
                        follower.run()
                        sure = {name: value for name, value in follower.axes.items() if name not in follower.unsure}
                        found |= {name[1:]: value for name, value in sure.items() if name.startswith(".")}
        return self._attributes[cls]

    def definition(self, file: File, name: str) -> Value:
        """What a name at the top of a file stands for."""
        found = file.find(name)
        return self.constant(found, file.origin(name)) if isinstance(found, ast.expr) else found

    def constant(self, value: ast.expr, file: File) -> Value:
        """The value of an expression outside of functions."""
        if value not in self._constants:
            self._constants[value] = None
            self._constants[value] = _Follower(self, file, Report()).infer(value)
        return self._constants[value]

    def fixed_axes(self, cls: Class) -> set[str]:
        """The axes whose sizes an object or its configuration fixes, as its `axes` say: they mean one thing in it."""
        config = self.attribute(Object(cls), "config")
        classes = [*cls.bases(), *(config.cls.bases() if isinstance(config, Object) else [])]
        functions = [
            node
            for one in classes
            for node in one.node.body
            if isinstance(node, AnyFunction) and node.name in {"axes", "__init__"}
        ]
        tables = [node for function in functions for node in ast.walk(function) if isinstance(node, ast.Dict)]
        keys = [key for table in tables for key in table.keys]
        return {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}

    def result(self, function: Function, call: Arguments, fixed: set[str]) -> Value:
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
            pairs += [(one, call.named[one.arg]) for one in [*parameters, *function.node.args.kwonlyargs] if one.arg in call.named]
            for parameter, argument in pairs:
                said = function.annotated(parameter)
                if isinstance(said, tuple) and isinstance(argument.value, tuple):
                    _bind(said, argument.value, bound)
        if "..." in bound and not self.keeps_rest(function):
            del bound["..."]
        for name, axes in [*bound.items()]:
            if sum(axes == others for others in bound.values()) > 1:  # told apart there, and perhaps here
                bound[name] = bound[name] if len(axes) != 1 or axes == ("1",) else ("_",)
        return _in_names_of(stated, bound, fixed)

    def keeps_rest(self, function: Function) -> bool:
        """True if `...` in a function's result stands for the same axes as in its arguments, as its body shows."""
        if function.node not in self._keeps_rest:
            self._keeps_rest[function.node] = False
            follower = _Follower(self, function.file, Report(), function)
            follower.axes = {name: _with_same_rest(value) for name, value in follower.axes.items()}
            follower.run()
            stated = _with_same_rest(function.result())
            fits = [_has_same_rest(returned, stated) for returned in follower.returned]
            self._keeps_rest[function.node] = bool(fits) and all(fits)
        return self._keeps_rest[function.node]


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


def _bind(said: Axes, came: Axes, bound: dict[str, Axes]) -> None:
    """Note which axes of an argument the names in its annotation stand for."""
    pairs = [(name, (axis,)) for axis, name in _aligned(came, said) or []]
    if is_open(said) and (not is_open(came) or len(front(came)) >= len(front(said))):
        first, last = len(front(said)), len(came) - len(behind(said))
        if last >= first and len(behind(came)) >= len(behind(said)):
            pairs.append(("...", came[first:last]))
    for name, axes in pairs:
        name = name.removeprefix("#")
        before = bound.get(name, axes)
        weak = before in {("_",), ("1",)} or before[0:1] and before[0].startswith("#")
        bound[name] = axes if before == axes or weak else before if axes in {("_",), ("1",)} else ("_",)
        if name == "..." and before != axes:
            bound[name] = ("...",)


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


class _Follower:
    """Follows the values in one function, statement by statement.

    Args:
        objects: what is known of objects.
        file: the file that the function is in.
        report: gets what is found.
        function: None for the statements outside of functions.
        name: the function's name in messages.
        hidden: variables of functions around it, whose values are not known here.
    """

    def __init__(
        self,
        objects: _Objects,
        file: File,
        report: Report,
        function: Function | None = None,
        name: str = "",
        hidden: Iterable[str] = (),
    ) -> None:
        self.objects, self.file, self.report, self.function, self.name = objects, file, report, function, name
        self.axes: dict[str, Value] = {}
        self.unsure: set[str] = set()
        self.returned: list[Value] = []
        self.local, self.shared = set(hidden), set[str]()
        self.owner = function.owner if function is not None else None
        node: ast.AST = file.tree if function is None else function.node
        if function is not None:
            arguments = function.node.args
            for one in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
                self.axes[one.arg] = function.annotated(one)
            if arguments.vararg is not None:
                self.axes[arguments.vararg.arg] = Many(function.annotated(arguments.vararg))
            if function.owner is not None and function.definer is not None and arguments.args:
                is_plain = not function.decorators() & {"staticmethod", "classmethod"}
                self.axes[arguments.args[0].arg] = function.owner if is_plain else None
            self.local |= _variables(function.node)
            inner = [one for one in ast.walk(function.node) if isinstance(one, ast.Nonlocal)]
            self.shared = {name for one in inner for name in one.names}
        self.together, self.crossed = _pairs(node)
        self.fixed = objects.fixed_axes(self.owner.cls) if isinstance(self.owner, Object) else set[str]()

    def run(self) -> None:
        """Follow the whole body."""
        assert self.function is not None
        self.follow(self.function.node.body)

    # -- Comparisons ---------------------------------------------------------------------------------------------------

    def compare(
        self, node: ast.AST, what: str, came: Axes, expected: Axes, says: str, again: Iterable[str] = (), pattern: str = ""
    ) -> None:
        """Compare two statements about one tensor, and report a contradiction.

        Args:
            node: where it is.
            what: the tensor, in words.
            came: its axes.
            expected: those that a pattern or an annotation gives it.
            says: the words for what is expected.
            again: axes that another tensor of the pattern has too: then this tensor's may need a second name, as the
                positions of keys do beside those of queries.
            pattern: the whole pattern.
        """
        fault = self.fault(came, expected, set(again))
        if fault is None:
            return
        line = getattr(node, "lineno", 0)
        pair = frozenset(part.removeprefix("#") for part in fault)
        prefix = f"{self.name}: " if self.name else ""
        if fault and "1" not in pair and pair not in self.together:
            self.add(self.report.renamed, line, f"{prefix}{what} gives axis `{fault[0]}` a second name, `{fault[1]}`")
            return
        reason = f"has axis `{fault[0]}`, expected `{fault[1]}`" if fault else _counts(came, expected)
        message = f"{prefix}{what} {reason}\n  came:     {' '.join(came)}\n  expected: {says}"
        self.add(self.report.findings, line, message + (f"\n  pattern:  {pattern}" if pattern else ""))

    def fault(self, came: Axes, expected: Axes, again: set[str]) -> tuple[str, str] | tuple[()] | None:
        """The first two axes that cannot be one; () if their numbers differ; None if all fit."""
        pairs = _aligned(came, expected)
        if pairs is None:
            return ()
        stands_for = dict(pairs)
        for one, other in pairs:
            is_swapped = stands_for.get(other, other) != other
            is_again = (one in again or frozenset((one, other)) in self.crossed) and not is_swapped
            if not _same(one, other) and not is_again:
                return one, other
        return None

    def add(self, findings: list[Finding], line: int, message: str) -> None:
        """Report something once."""
        finding = Finding(line, message)
        if finding not in findings:
            findings.append(finding)

    def compare_with(self, node: ast.AST, what: str, came: Value, annotation: ast.expr | None, value: ast.expr) -> None:
        """Compare a value with an annotation, part by part."""
        stated = value_of(annotation, self.file)
        pattern = _pattern_text(value) if isinstance(value, ast.Call) else None
        if isinstance(came, tuple) and isinstance(stated, tuple) and annotation is not None:
            says = ast.unparse(annotation).replace("'", '"')
            self.compare(node, what, came, stated, says, pattern=pattern or "")
        if isinstance(came, Several) and isinstance(stated, Several) and len(came.parts) == len(stated.parts):
            inside = annotation.slice if isinstance(annotation, ast.Subscript) else None
            for index, (part, its) in enumerate(zip(came.parts, getattr(inside, "elts", []), strict=False)):
                self.compare_with(node, f"{what}[{index}]", part, its, value)

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
                if node.value is not None and isinstance(node.target, ast.Name):
                    self.compare_with(node, f"variable `{node.target.id}`", found, node.annotation, node.value)
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
                if self.function is not None and node.value is not None:
                    self.compare_with(node, "the result", found, self.function.node.returns, node.value)
            case ast.If():
                self.infer(node.test)
                self.branches(node.body, node.orelse)
            case ast.Match():
                self.infer(node.subject)
                self.branches(*(case.body for case in node.cases), [])
            case ast.For() | ast.AsyncFor():
                self.assign(node.target, _part_of(self.infer(node.iter)))
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
                lost = ast.Delete([ast.Name(name, ast.Del()) for name in sorted(stored_names(*node.body))])
                self.branches([*node.body, *node.orelse], *([lost, *handler.body] for handler in node.handlers))
                self.follow(node.finalbody)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self.axes[node.name] = None
            case ast.Delete():
                for target in node.targets:
                    self.assign(target, None)
            case _:
                for part in ast.iter_child_nodes(node):
                    if isinstance(part, ast.expr):
                        self.infer(part)

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
                    self.assign(part, value.parts[index] if isinstance(value, Several) and known else _part_of(value))
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
            self.axes, self.unsure = before | {name: None for name in hidden}, set()
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
            self.axes |= {name: None for name in unsure}
            self.unsure = set()

    def loop(self, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]) -> None:
        """Follow a loop's body once; afterwards what it assigns is known only if it is the same before and behind."""
        before, hidden = dict(self.axes), self.unsure
        self.axes |= {name: None for name in hidden}
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
                return Table(_alike([self.infer(value) for value in node.values]))
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
            return _library_value(full)
        return self.objects.definition(self.file, name)

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
            self.assign(generator.target, _part_of(self.infer(generator.iter)))
            for condition in generator.ifs:
                self.infer(condition)
        found = self.infer(element)
        self.axes = before
        return Many(found)

    def attribute(self, node: ast.Attribute) -> Value:
        """The value of an attribute."""
        full = self.full_name(node)
        if full:
            return _library_value(full)
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
                return self.objects.attribute(owner, name)
            case Class():
                return self.objects.attribute(Object(owner), name)
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
                    return _alike(parts) if not isinstance(node.slice, ast.Slice) else None
            case Many(part=part):
                return owner if isinstance(node.slice, ast.Slice) else part
            case Table(part=part):
                return part
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
        return self.meet(node, left, one, right, other)

    def meet(self, node: ast.AST, left: ast.expr, one: Value, right: ast.expr, other: Value) -> Value:
        """Likewise, of two values."""
        if isinstance(one, Several | Many) or isinstance(other, Several | Many):  # lists are put together
            return None
        if not isinstance(one, tuple) or not isinstance(other, tuple):
            return elementwise(one, other)
        count = min(len(behind(one)), len(behind(other)))
        pairs = list(zip(one[len(one) - count :], other[len(other) - count :], strict=True))
        for mine, theirs in pairs:
            plain = (mine.removeprefix("#"), theirs.removeprefix("#"))
            if plain[0] != plain[1] and all(map(is_name, plain)):
                if frozenset(plain) in self.together and frozenset(plain) not in self.crossed:
                    what = f"{self.name}: `{_short(right)}` has axis `{theirs}`, expected `{mine}` (from `{_short(left)}`)"
                    shapes = f"  came:     {' '.join(other)}\n  expected: {' '.join(one)}"
                    self.add(self.report.findings, getattr(node, "lineno", 0), f"{what}\n{shapes}")
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
            return self.library_call(node, full, call)
        if isinstance(node.func, ast.Name):
            if node.func.id not in self.local and node.func.id not in self.axes:
                if node.func.id == "super" and not node.args:
                    return None
                if (built := _built_in(node.func.id, call)) is not None:
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
                return self.where(node, [node.args[0], node.func.value, *node.args[1:]], [values[0], owner, *values[1:]])
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
        return Function(method.node, method.file, method.definer, self.owner) if method is not None else None

    def apply(self, called: Value, call: Arguments) -> Value:
        """The value of a call of a known function, class, layer or module."""
        match called:
            case Function():
                fixed = self.fixed if called.owner is not None and called.owner == self.owner else set[str]()
                return self.objects.result(called, call, fixed)
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
                bound = Function(method.node, method.file, method.definer, called) if method is not None else None
                return self.objects.result(bound, call, set()) if bound is not None else None
            case Number():
                return NUMBER
            case _:
                return None

    def library_call(self, node: ast.Call, full: str, call: Arguments) -> Value:
        """The value of a call of a function or class of torch."""
        name, values = full.rpartition(".")[2], call.values()
        first = values[0] if values else None
        if full.startswith("math."):
            return NUMBER
        if full.startswith("torch.nn.") and name[:1].isupper():
            return _layer(name, call)
        match name:
            case "where" if len(node.args) == 3:
                return self.where(node, node.args, values)
            case "cat" | "concat" | "concatenate":
                return put_together(first, call.integer(1, "dim", 0))
            case "stack":
                return put_together(first, call.integer(1, "dim", 0), "_")
            case "tensor" | "as_tensor" | "asarray":
                return _literal_axes(first)
            case "outer" | "eye":
                return ("_", "_")
            case "randint":
                return next((new_tensor(Arguments((one,))) for one in call.given if isinstance(one.value, Several)), None)
            case "scaled_dot_product_attention":
                return replaced(first, -1, "_") if isinstance(first, tuple) else None
            case _ if name in WITH_ONE_AXIS:
                return ("_",)
            case _ if name in MAKING:
                return new_tensor(Arguments(call.given[:1]) if name == "full" else call)
            case _ if name in ELEMENTWISE and len(node.args) > 1:
                return self.meet(node, node.args[0], first, node.args[1], values[1])
            case _:
                return operation(name, first, Arguments(call.given[1:], call.named))

    def where(self, node: ast.Call, nodes: Sequence[ast.expr], values: Sequence[Value]) -> Value:
        """The value of `torch.where` with three arguments."""
        if len(values) != 3:
            return None
        chosen = self.meet(node, nodes[1], values[1], nodes[2], values[2])
        return self.meet(node, nodes[1], chosen, nodes[0], values[0])

    # -- Patterns ------------------------------------------------------------------------------------------------------

    def is_einops(self, node: ast.Call) -> bool:
        """True for a call of einops with a pattern, or one whose pattern should be there."""
        name = ast.unparse(node.func)
        origin = self.file.imports.get(name.partition(".")[0], "einops")
        return name.removeprefix("einops.") in _EINOPS and origin.startswith("einops") and name not in self.local

    def pattern(self, node: ast.Call, call: Arguments) -> Value:
        """Compare the arguments of einops with the left side of the pattern; the result has the axes of the right."""
        name, pattern = ast.unparse(node.func).removeprefix("einops."), _pattern_text(node)
        is_text = [isinstance(one.node, ast.Constant) and isinstance(one.node.value, str) for one in call.given]
        tensors = list(itertools.takewhile(lambda one: not is_text[call.given.index(one)], call.given))
        if name != "einsum":
            tensors = tensors[:1]
        if pattern is None or any(isinstance(one.node, ast.Starred) for one in tensors):
            self.report.unknown += [(one.node.lineno, _short(one.node)) for one in tensors]
            return None
        left, _, right = pattern.partition("->")
        sides = [_side(side) for side in (left.split(",") if name == "einsum" else [left])]
        self.compare_sides(node, name, pattern, len(tensors), sides, _side(right))
        rest: Axes = ("...",)
        for place, (argument, side) in enumerate(zip(tensors, sides, strict=False)):
            axes = _stacked(argument.value)
            bound: dict[str, Axes] = {}
            if axes is not None:
                _bind(side, axes, bound)
                rest = bound.get("...", rest)
            if axes is None or (is_open(axes) and not any(map(is_name, axes))):
                self.report.unknown.append((argument.node.lineno, _short(argument.node)))
                continue
            self.report.followed += 1
            again = {axis for other in sides[:place] + sides[place + 1 :] for axis in axis_names(" ".join(other))}
            what = f"argument `{_short(argument.node)}` of {name}"
            self.compare(argument.node, what, axes, side, " ".join(side), again, pattern)
        return tuple(itertools.chain.from_iterable(rest if axis == "..." else (axis,) for axis in _side(right)))

    def compare_sides(
        self, node: ast.Call, name: str, pattern: str, tensors: int, left: Sequence[Axes], right: Axes
    ) -> None:
        """Report a pattern that einops refuses whatever the tensors are."""
        given = {word.arg for word in node.keywords}
        before, after = (axis_names(" ".join(axes)) for axes in ([one for side in left for one in side], right))
        may_vanish = name in {"einsum", "reduce"}
        missing = set() if may_vanish else before - after
        new = set() if name == "repeat" and (None in given or after - before <= given) else after - before
        reasons = [f"pattern of {name} has axis `{axis}` on its left side only" for axis in sorted(missing)]
        reasons += [f"pattern of {name} has axis `{axis}` on its right side only" for axis in sorted(new)]
        if name == "repeat":
            reasons = [f"{reason}, and no size for it" if "right" in reason else reason for reason in reasons]
        if tensors != len(left):
            reasons = [f"{name} has {tensors} tensors, expected {len(left)}"]
        prefix = f"{self.name}: " if self.name else ""
        for reason in reasons:
            self.add(self.report.findings, node.lineno, f"{prefix}{reason}\n  pattern:  {pattern}")


def _counts(came: Axes, expected: Axes) -> str:
    """The words for two descriptions that differ in the number of axes."""
    least = "at least " if is_open(expected) else ""
    number = len(expected) - (1 if is_open(expected) else 0)
    here = len(came) - (1 if is_open(came) else 0)
    at_least = "at least " if is_open(came) else ""
    return f"has {at_least}{here} {'axis' if here == 1 else 'axes'}, expected {least}{number}"


def _pairs(node: ast.AST) -> tuple[set[frozenset[str]], set[frozenset[str]]]:
    """The pairs of names that one tensor of a function has both, and those that may be two names for equal axes.

    The latter stand in the same place of two tensors of a pattern that are otherwise alike, as the positions of queries
    and keys do: in self-attention both come from one tensor.
    """
    together: set[frozenset[str]] = set()
    crossed: set[frozenset[str]] = set()
    for _, text in _all_axes(node):
        sides = [axis_names(side) for side in text.replace("->", ",").split(",")]
        together |= {frozenset(pair) for side in sides for pair in itertools.combinations(sorted(side), 2)}
        for one, other in itertools.combinations([_side(side) for side in text.partition("->")[0].split(",")], 2):
            places = zip(one[::-1], other[::-1], strict=False)
            crossed |= {
                frozenset((mine, theirs)) for mine, theirs in places if mine not in other and theirs not in one
            }
    return together, crossed


def _short(node: ast.expr) -> str:
    """The source of an expression, on one line and not too long."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."


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


def _alike(values: Sequence[Value]) -> Value:
    """What is known of each of several values."""
    found = values[0] if values else None
    for value in values[1:]:
        found = common(found, value)
    return found


def _part_of(value: Value) -> Value:
    """The value of each part of a collection; a tensor's parts are along its first axis."""
    match value:
        case Many(part=part):
            return part
        case Several(parts=parts):
            return _alike(parts)
        case tuple():
            return value[1:] if front(value) else None
        case _:
            return None


def _stacked(value: Value) -> Axes | None:
    """The axes of an argument of einops, which takes a list of tensors as one."""
    if isinstance(value, Several | Many):
        part = _part_of(value)
        return ("_", *part) if isinstance(part, tuple) else None
    return value if isinstance(value, tuple) else None


def _literal_axes(value: Value) -> Value:
    """The axes of `torch.tensor(value)`."""
    match value:
        case Number():
            return ()
        case tuple():
            return value
        case Several() | Many():
            inner = _literal_axes(_part_of(value))
            return ("_", *inner) if isinstance(inner, tuple) else None
        case _:
            return None


def _library_value(full: str) -> Value:
    """A function or a constant of torch as a value."""
    name = full.rpartition(".")[2]
    if name in {"inf", "pi", "e", "nan"} or full.startswith("math."):
        return NUMBER
    if full.startswith("torch.nn.") and name[:1].isupper():
        return None
    return Layer("Identity" if name in KEEPING else name) if full.startswith("torch.") else None


def _layer(name: str, call: Arguments) -> Value:
    """A new layer, or a list or a table of layers."""
    values = call.values()
    match name:
        case "ModuleList" | "ParameterList":
            return Many(_part_of(values[0])) if values else None
        case "ModuleDict" | "ParameterDict":
            return values[0] if values else None
        case "Parameter" | "Buffer":
            return values[0] if values else None
        case "Sequential":
            return Layer(name, tuple(values)) if not any(isinstance(one.node, ast.Starred) for one in call.given) else None
        case _:
            return Layer("Identity" if name in KEEPING_LAYERS else name)


def _built_in(name: str, call: Arguments) -> Value:
    """The value of a call of a function of Python; None for any other."""
    values = call.values()
    first = values[0] if values else None
    match name:
        case "len" | "int" | "float" | "bool" | "isinstance" | "hasattr" | "str" | "id":
            return NUMBER
        case "min" | "max" | "sum" | "round" | "abs" if values and all(isinstance(value, Number) for value in values):
            return NUMBER
        case "abs" | "round":
            return first
        case "range":
            return Many(NUMBER)
        case "enumerate":
            return Many(Several((NUMBER, _part_of(first))))
        case "zip":
            return Many(Several(tuple(map(_part_of, values))))
        case "list" | "tuple" | "sorted" | "reversed" | "iter":
            return first if isinstance(first, Many | Several) else Many(_part_of(first))
        case "partial" | "dict" | "MappingProxyType":
            return first
        case _:
            return None


