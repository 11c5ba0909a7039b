"""Named axes, checked without running: a module's annotated tensors are followed through its einops patterns.

    >>> wrong = '''
    ... def scores(queries: Float[Tensor, "batch heads seq head_dim"]) -> Float[Tensor, "batch seq heads head_dim"]:
    ...     return rearrange(queries, "batch seq heads head_dim -> batch heads seq head_dim")
    ... '''
    >>> print(check(wrong).findings[0])
    line 3: scores: argument of rearrange has axis `heads` where its pattern has `seq`
      came:     batch heads seq head_dim
      expected: batch seq heads head_dim

A tensor's axes are known from the annotation of an argument or a variable, from the right side of a pattern, and
through operations that keep them. Where they are not known, nothing is claimed, and the report says so.
"""

import ast
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from allformers.inspection.source import annotated_text, pattern_of, split_side

Axes = tuple[str, ...]
"""A name for each axis: `seq`; `(heads head_dim)` for two as one; `1`; `_` without a name; `...` for several."""

_METHODS = """abs bfloat16 bool clamp clone contiguous cos cpu cuda detach double exp float half int log log_softmax
long masked_fill neg relu rsqrt sigmoid sin softmax sqrt square tanh to type_as"""

_FUNCTIONS = """abs clamp cos dropout elu exp gelu log log_softmax relu rsqrt sigmoid silu sin softmax softplus sqrt
square tanh"""

KEEPING_METHODS = frozenset(_METHODS.split())
"""Methods of a tensor whose result has the tensor's axes."""

KEEPING_FUNCTIONS = frozenset(_FUNCTIONS.split())
"""Functions of `torch` and `torch.nn.functional` whose result has the axes of their first argument."""


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
    """Follow the annotated tensors of a module through its einops patterns.

    Args:
        source: the module's text.
        vocabulary: names of axes; others are hints in the report. None for no hints.

    Raises:
        SyntaxError: the text is not Python.
    """
    tree, report = ast.parse(source), Report()
    for name, function in _functions(tree):
        _Follower(name, function, report).run()
    if vocabulary is not None:
        known = set(vocabulary)
        for line, axes in sorted(_all_axes(tree)):
            for axis in re.findall(r"[A-Za-z]\w*", axes):
                if axis not in known:
                    known.add(axis)
                    report.hints.append(Finding(line, f"axis `{axis}` is not in the vocabulary"))
    report.findings.sort()
    report.renamed.sort()
    return report


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """All functions with their qualified names."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")
        else:
            yield from _functions(node, prefix)


def _all_axes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The text of every annotation and pattern, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and (text := annotated_text(node)) is not None:
            yield node.lineno, text
        if isinstance(node, ast.Call) and (pattern := pattern_of(node)) is not None:
            yield node.lineno, pattern


def _name(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _axes_of(node: ast.expr | None) -> Axes | None:
    """The axes of an annotation; None where it is not one tensor."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):  # X | None
        sides = [
            side for side in (node.left, node.right) if not (isinstance(side, ast.Constant) and side.value is None)
        ]
        return _axes_of(sides[0]) if len(sides) == 1 else None
    text = annotated_text(node)
    if text is None:
        return None
    words = (re.sub(r"^[?]", "", word.rpartition("=")[2]) for word in text.split())
    return tuple("..." if word == "..." or word.startswith("*") else word for word in words)


def _side(text: str) -> Axes:
    """The axes of one side of a pattern."""
    return tuple("1" if axis == "()" else axis for axis in split_side(text))


def _same(came: str, expected: str) -> bool:
    """True if an axis of this name may stand where that one is expected."""
    if "_" in (came, expected) or came.startswith("(") or expected.startswith("("):
        return True
    if came == "1" or (expected.startswith("#") and came.startswith("#")):
        return came == "1" or came == expected
    if expected == "1":
        return came.startswith("#")
    one, other = _bare(came), _bare(expected)
    return one == other or not (one.isidentifier() and other.isidentifier())


def _bare(name: str) -> str:
    """A name without the sign that its axis may have size 1."""
    return name.removeprefix("#")


def _misfit(came: Axes, expected: Axes, again: frozenset[str] = frozenset()) -> tuple[str, str] | str | None:
    """The first two axes that cannot be one, or the words that their number differs; None if all fit.

    Args:
        came: the axes of a tensor.
        expected: those that a pattern or an annotation gives it.
        again: axes that another tensor of the pattern has too: then this tensor's may need a second name, as the
            positions of keys do beside those of queries.
    """
    pairs = list(zip(came, expected, strict=False))
    if "..." in came or "..." in expected:
        before = next(place for place, pair in enumerate([*pairs, ("...", "...")]) if "..." in pair)
        behind = list(zip(came[::-1], expected[::-1], strict=False))
        behind = behind[: next((place for place, pair in enumerate(behind) if "..." in pair), len(behind))]
        pairs = [*pairs[:before], *behind]
    elif len(came) != len(expected):
        return f"has {len(came)} axes where {{}} {len(expected)}"
    for one, other in pairs:
        if not _same(one, other) and not (one in again and other not in came):
            return one, other
    return None


class _Follower:
    """Follows the tensors of one function, statement by statement."""

    def __init__(self, name: str, function: ast.FunctionDef, report: Report) -> None:
        self.name, self.function, self.report = name, function, report
        arguments = function.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        self.axes: dict[str, Axes | None] = {one.arg: _axes_of(one.annotation) for one in every}
        self.together = {
            frozenset(pair)
            for _, text in _all_axes(function)
            for side in text.replace("->", ",").split(",")
            for pair in itertools.combinations(sorted(set(re.findall(r"[A-Za-z]\w*", side))), 2)
        }

    def run(self) -> None:
        """Follow the whole body."""
        self.follow(self.function.body)

    def find(self, line: int, what: str, came: Axes, expected: Axes, again: frozenset[str] = frozenset()) -> None:
        """Compare two statements about one tensor, and report a contradiction."""
        fault = _misfit(came, expected, again)
        if fault is None:
            return
        if not isinstance(fault, str) and "1" not in fault and frozenset(map(_bare, fault)) not in self.together:
            message = f"{self.name}: {what} gives axis `{fault[0]}` a second name, `{fault[1]}`"
            self.report.renamed.append(Finding(line, message))
            return
        says = fault if isinstance(fault, str) else f"has axis `{fault[0]}` where {{}} `{fault[1]}`"
        where = "its pattern has" if what.startswith("argument") else "its annotation has"
        message = f"{self.name}: {what} {says.format(where)}"
        self.add(line, f"{message}\n  came:     {' '.join(came)}\n  expected: {' '.join(expected)}")

    def add(self, line: int, message: str) -> None:
        """Report a contradiction once."""
        finding = Finding(line, message)
        if finding not in self.report.findings:
            self.report.findings.append(finding)

    def follow(self, body: Iterable[ast.stmt]) -> None:
        """Follow statements one after the other."""
        for statement in body:
            self.statement(statement)

    def statement(self, node: ast.stmt) -> None:
        """Note the axes of what a statement assigns."""
        match node:
            case ast.AnnAssign(target=ast.Name(id=name)):
                hint = _axes_of(node.annotation)
                found = self.infer(node.value) if node.value is not None else None
                if hint is not None and found is not None:
                    self.find(node.lineno, f"variable `{name}`", found, hint)
                self.axes[name] = hint if hint is not None else found
            case ast.Assign(targets=[ast.Name(id=name)]):
                self.axes[name] = self.infer(node.value)
            case ast.Assign(targets=[ast.Tuple(elts=targets)]):
                self.unpack(targets, node.value)
            case ast.AugAssign(target=ast.Name(id=name)):
                self.axes[name] = self.combine(node, self.axes.get(name), self.infer(node.value))
            case ast.Return():
                self.result(node)
            case ast.If():
                self.infer(node.test)
                self.branches(node.body, node.orelse)
            case ast.For():
                self.infer(node.iter)
                self.assign(node.target, None)
                self.loop(node)
            case ast.While():
                self.infer(node.test)
                self.loop(node)
            case ast.With():
                for item in node.items:
                    self.infer(item.context_expr)
                    if item.optional_vars is not None:
                        self.assign(item.optional_vars, None)
                self.follow(node.body)
            case ast.Try():
                self.branches(node.body, *(handler.body for handler in node.handlers))
                self.follow([*node.orelse, *node.finalbody])
            case ast.FunctionDef() | ast.ClassDef():
                self.axes[node.name] = None
            case _:
                for part in ast.iter_child_nodes(node):
                    if isinstance(part, ast.expr):
                        self.infer(part)
                    if isinstance(part, ast.Name | ast.Tuple | ast.List) and isinstance(part.ctx, ast.Store | ast.Del):
                        self.assign(part, None)

    def unpack(self, targets: list[ast.expr], value: ast.expr) -> None:
        """Note the axes of several variables: a tensor is unpacked along its first axis."""
        if isinstance(value, ast.Tuple) and len(value.elts) == len(targets):
            found = [self.infer(part) for part in value.elts]
        else:
            whole = self.infer(value)
            rest = whole[1:] if whole and whole[0] != "..." else None
            found = [rest] * len(targets)
        for target, axes in zip(targets, found, strict=True):
            if isinstance(target, ast.Name):
                self.axes[target.id] = axes

    def result(self, node: ast.Return) -> None:
        """Compare a result with its annotation."""
        if node.value is None:
            return
        found, hint = self.infer(node.value), _axes_of(self.function.returns)
        if found is not None and hint is not None:
            self.find(node.lineno, "the result", found, hint)

    def branches(self, *bodies: Iterable[ast.stmt]) -> None:
        """Follow each of several bodies from the same start.

        Afterwards a variable has the axes that some of them know, unless two know different ones: what follows has to
        fit each of the ways to it.
        """
        before, ends = dict(self.axes), []
        for body in map(list, bodies):
            self.axes = dict(before)
            self.follow(body)
            if not (body and isinstance(body[-1], ast.Return | ast.Raise | ast.Continue | ast.Break)):
                ends.append(self.axes)
        names = {name for end in ends for name in end}
        known = {name: {end[name] for end in ends if end.get(name) is not None} for name in names}
        self.axes = {name: next(iter(axes)) if len(axes) == 1 else None for name, axes in known.items()}

    def loop(self, node: ast.For | ast.While) -> None:
        """Follow a loop's body once; afterwards what it assigns is known only if the body's end knows it."""
        before = dict(self.axes)
        self.follow(node.body)
        self.axes = {name: axes if before.get(name, axes) == axes else None for name, axes in self.axes.items()}
        self.follow(node.orelse)

    def assign(self, target: ast.expr, axes: Axes | None) -> None:
        """Note the axes of a variable, or of each of several."""
        if isinstance(target, ast.Name):
            self.axes[target.id] = axes
        elif isinstance(target, ast.Tuple | ast.List):
            for part in target.elts:
                self.assign(part, None)

    def infer(self, node: ast.expr) -> Axes | None:
        """The axes of an expression, if they are known; patterns inside it are compared on the way."""
        match node:
            case ast.Name(id=name):
                return self.axes.get(name)
            case ast.Call():
                return self.call(node)
            case ast.BinOp(op=ast.MatMult()):
                self.infer(node.left)
                self.infer(node.right)
                return None
            case ast.BinOp():
                return self.combine(node, self.infer(node.left), self.infer(node.right), node.left, node.right)
            case ast.Compare(comparators=[right]):
                return self.combine(node, self.infer(node.left), self.infer(right), node.left, right)
            case ast.UnaryOp():
                return self.infer(node.operand)
            case ast.IfExp():
                one, other = self.infer(node.body), self.infer(node.orelse)
                return one if one == other else None
            case _:
                for part in ast.iter_child_nodes(node):
                    if isinstance(part, ast.expr):
                        self.infer(part)
                return None

    def call(self, node: ast.Call) -> Axes | None:
        """The axes of what a call gives."""
        arguments = [self.infer(argument) for argument in node.args]
        for keyword in node.keywords:
            self.infer(keyword.value)
        name, pattern = _name(node.func), pattern_of(node)
        if pattern is not None:
            left, right = pattern.split("->")
            sides = left.split(",") if name == "einsum" else [left]
            for place, (argument, axes, side) in enumerate(zip(node.args, arguments, sides, strict=False)):
                if axes is None:
                    self.report.unknown.append((argument.lineno, ast.unparse(argument)))
                    continue
                self.report.followed += 1
                others = " ".join(sides[:place] + sides[place + 1 :])
                again = frozenset(re.findall(r"\w+", others))
                self.find(argument.lineno, f"argument of {name}", axes, _side(side), again)
            return _side(right)
        owner = self.infer(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if name in KEEPING_METHODS and owner is not None:
            return owner
        is_library = isinstance(node.func, ast.Attribute) and _name(node.func.value) in {"F", "functional", "torch"}
        if is_library and name in KEEPING_FUNCTIONS and arguments:
            return arguments[0]
        if is_library and name == "where" and len(arguments) == 3:
            both = self.combine(node, arguments[0], arguments[1], node.args[0], node.args[1])
            return self.combine(node, both, arguments[2], node.args[1], node.args[2])
        is_part = isinstance(node.func, ast.Attribute) and _name(node.func.value) == "self"
        if is_part and re.search("norm|dropout|activation", name) and len(arguments) == 1:
            return arguments[0]
        return None

    def combine(
        self,
        node: ast.expr | ast.stmt,
        one: Axes | None,
        other: Axes | None,
        left: ast.expr | None = None,
        right: ast.expr | None = None,
    ) -> Axes | None:
        """The axes of an element-wise operation on two tensors, which are aligned at their last axes."""
        if left is not None and _adds_no_axes(left):
            return other
        if right is not None and _adds_no_axes(right):
            return one
        if one is None or other is None or "..." in (*one, *other):
            return None
        long, short = (one, other) if len(one) >= len(other) else (other, one)
        aligned = long[len(long) - len(short) :]
        for mine, theirs in zip(aligned, short, strict=True):
            if "1" not in (mine, theirs) and not _same(mine, _bare(theirs)):
                message = f"{self.name}: axis `{mine}` meets axis `{theirs}` in an element-wise operation"
                if frozenset((_bare(mine), _bare(theirs))) in self.together:
                    self.add(node.lineno, f"{message}\n  one:      {' '.join(long)}\n  other:    {' '.join(short)}")
                return None
        joined = [
            theirs if mine == "1" or mine.startswith("#") else mine for mine, theirs in zip(aligned, short, strict=True)
        ]
        return (*long[: len(long) - len(short)], *joined)


def _adds_no_axes(node: ast.expr) -> bool:
    """True for numbers, and for a module's own weights and settings, whose axes its tensors have as well."""
    match node:
        case ast.Constant():
            return True
        case ast.Attribute():
            return True
        case ast.UnaryOp():
            return _adds_no_axes(node.operand)
        case ast.BinOp():
            return _adds_no_axes(node.left) and _adds_no_axes(node.right)
        case ast.Call():
            is_number = _name(node.func) in {"float", "finfo", "int", "len", "sqrt"}
            is_cast = isinstance(node.func, ast.Attribute) and node.func.attr in KEEPING_METHODS
            return is_number or (is_cast and isinstance(node.func, ast.Attribute) and _adds_no_axes(node.func.value))
        case _:
            return False


def summary(report: Report, name: str) -> str:
    """A report as text: findings, hints, and what could not be followed."""
    lines = [f"{name}, {finding}" for finding in report.findings]
    lines += [f"{name}, {hint} (a hint)" for hint in [*report.renamed, *report.hints]]
    lines.append(f"{name}: {report.followed} tensors in patterns followed, {len(report.unknown)} of unknown axes")
    by_line: Mapping[int, list[str]] = {}
    for line, text in report.unknown:
        by_line = {**by_line, line: [*by_line.get(line, []), text]}
    lines += [f"  line {line}: {', '.join(texts)}" for line, texts in by_line.items()]
    return "\n".join(lines) + "\n"
