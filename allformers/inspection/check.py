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

A tensor's axes are known from an annotation, from the right side of a pattern, or from the operation that makes it.
`declarations` reads what annotations say, `operations` knows what operations do, and `follow` goes through a function's
statements one by one; here what is known is compared with what is expected. Where axes are not known, nothing is
claimed, and the report says so.
"""

import ast
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeGuard

from allformers.inspection.declarations import (
    AnyFunction,
    File,
    Function,
    Object,
    all_functions,
    axis_names,
    value_of,
)
from allformers.inspection.follow import Follower, aligned, pattern_text, side_of, variables_of
from allformers.inspection.operations import Argument, Axes, Several, Value, is_name, is_open, stacked
from allformers.inspection.source import annotated_text


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
    file, report = File(source), Report()
    _Checker(report, "", file).run()
    for name, node, around in all_functions(file.tree):
        definer = file.class_of(around[-1]) if around and isinstance(around[-1], ast.ClassDef) else None
        function = Function(node, file, definer, Object(definer) if definer is not None else None)
        hidden = {name for outer in around if isinstance(outer, AnyFunction) for name in variables_of(outer)}
        _Checker(report, name, file, function, hidden).run()
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
        if isinstance(node, ast.Call) and (text := pattern_text(node)) is not None:
            yield node.lineno, text


def _same(came: str, expected: str) -> bool:
    """True if an axis of this name may stand where that one is expected."""
    if came == expected or "_" in (came, expected) or came.startswith("(") or expected.startswith("("):
        return True
    if expected == "1":
        return came.startswith("#") or not (is_name(came))
    one, other = came.removeprefix("#"), expected.removeprefix("#")
    return one == other or not (is_name(one) and is_name(other))


class _Checker(Follower):
    """Follows a function, and compares what is known of tensors with what is expected.

    Args:
        report: gets what is found.
        name: the function's, for messages; "" for the statements outside of functions.
    """

    def __init__(
        self, report: Report, name: str, file: File, function: Function | None = None, hidden: Iterable[str] = ()
    ) -> None:
        super().__init__(file, function, hidden)
        self.report, self.prefix = report, f"{name}: " if name else ""
        tree = file.tree if function is None else function.node
        self.distinct, self.crossed = _distinct(tree), _crossed(tree)

    def meets_annotation(self, node: ast.stmt, what: str, value: Value, annotation: ast.expr, source: ast.expr) -> None:
        """Compare a value with its annotation, part by part."""
        stated = value_of(annotation, self.file)
        pattern = pattern_text(source) if isinstance(source, ast.Call) else None
        if isinstance(value, tuple) and isinstance(stated, tuple):
            self.compare(node.lineno, what, value, stated, ast.unparse(annotation).replace("'", '"'), pattern)
        inside = annotation.slice if isinstance(annotation, ast.Subscript) else None
        if isinstance(value, Several) and isinstance(stated, Several) and isinstance(inside, ast.Tuple):
            for index, (part, its) in enumerate(zip(value.parts, inside.elts, strict=False)):
                self.meets_annotation(node, f"{what}[{index}]", part, its, source)

    def meets_tensor(self, node: ast.AST, left: ast.expr, one: Axes, right: ast.expr, other: Axes) -> None:
        """Report two axes that meet in an element-wise operation and are known to differ."""
        for mine, theirs in list(zip(one[::-1], other[::-1], strict=False))[::-1]:
            pair = frozenset((mine.removeprefix("#"), theirs.removeprefix("#")))
            if pair in self.distinct - self.crossed and all(map(is_name, pair)):
                reason = f"`{_short(right)}` has axis `{theirs}`, expected `{mine}` (from `{_short(left)}`)"
                shapes = f"  came:     {' '.join(other)}\n  expected: {' '.join(one)}"
                self.find(self.report.findings, getattr(node, "lineno", 0), f"{reason}\n{shapes}")
                return

    def meets_pattern(self, node: ast.Call, name: str, pattern: str | None, tensors: Sequence[Argument]) -> None:
        """Compare tensors with the left side of a pattern, and that with its right side."""
        if pattern is None:
            self.report.unknown += [(one.node.lineno, _short(one.node)) for one in tensors]
            return
        left, _, right = pattern.partition("->")
        sides = [side_of(side) for side in (left.split(",") if name == "einsum" else [left])]
        self.compare_sides(node, name, pattern, len(tensors), sides, side_of(right))
        for place, (tensor, side) in enumerate(zip(tensors, sides, strict=False)):
            axes, line = stacked(tensor.value), tensor.node.lineno
            if axes is None or (is_open(axes) and not any(map(is_name, axes))):
                self.report.unknown.append((line, _short(tensor.node)))
                continue
            self.report.followed += 1
            again = {axis for other in sides[:place] + sides[place + 1 :] for axis in axis_names(" ".join(other))}
            self.compare(
                line, f"argument `{_short(tensor.node)}` of {name}", axes, side, " ".join(side), pattern, again
            )

    def compare(
        self,
        line: int,
        what: str,
        came: Axes,
        expected: Axes,
        says: str,
        pattern: str | None,
        again: Iterable[str] = (),
    ) -> None:
        """Compare two statements about one tensor, and report a contradiction.

        Args:
            line: where it is.
            what: the tensor, in words.
            came: its axes.
            expected: those that a pattern or an annotation gives it.
            says: the words for what is expected.
            pattern: the pattern, if there is one.
            again: axes that another tensor of the pattern has too: then this tensor's may need a second name, as the
                positions of keys do beside those of queries.
        """
        fault = self.fault(came, expected, set(again))
        if fault is None:
            return
        pair = frozenset(axis.removeprefix("#") for axis in fault)
        is_moved = len(fault) == 2 and _is_moved(fault[0], fault[1], aligned(came, expected) or [])
        if fault and "1" not in pair and not is_moved and pair not in self.distinct:
            self.find(self.report.renamed, line, f"{what} gives axis `{fault[0]}` a second name, `{fault[1]}`")
            return
        reason = f"has axis `{fault[0]}`, expected `{fault[1]}`" if fault else _counts(came, expected)
        message = f"{what} {reason}\n  came:     {' '.join(came)}\n  expected: {says}"
        self.find(self.report.findings, line, message + (f"\n  pattern:  {pattern}" if pattern else ""))

    def fault(self, came: Axes, expected: Axes, again: set[str]) -> tuple[str, str] | tuple[()] | None:
        """The first two axes that cannot be one; () if their numbers differ; None if all fit."""
        pairs = aligned(came, expected)
        if pairs is None:
            return ()
        for one, other in pairs:
            is_again = one in again or frozenset((one, other)) in self.crossed
            if not _same(one, other) and (not is_again or _is_moved(one, other, pairs)):
                return one, other
        return None

    def compare_sides(
        self, node: ast.Call, name: str, pattern: str, tensors: int, left: Sequence[Axes], right: Axes
    ) -> None:
        """Report a pattern that einops refuses, whatever the tensors are."""
        if tensors != len(left):
            reasons = [f"{name} has {tensors} {'tensor' if tensors == 1 else 'tensors'}, its pattern {len(left)}"]
        else:
            given = {word.arg for word in node.keywords}
            before = axis_names(" ".join(axis for side in left for axis in side))
            after = axis_names(" ".join(right))
            lost = before - after if name in {"rearrange", "repeat"} else set()
            new = after - before
            if name == "repeat":
                new = set() if None in given else {axis for axis in new if axis not in given}
            reasons = [f"the pattern of {name} has axis `{axis}` only on its left" for axis in sorted(lost)]
            reasons += [f"the pattern of {name} has axis `{axis}` only on its right" for axis in sorted(new)]
        for reason in reasons:
            self.find(self.report.findings, node.lineno, f"{reason}\n  pattern:  {pattern}")

    def find(self, findings: list[Finding], line: int, message: str) -> None:
        """Report something once."""
        finding = Finding(line, f"{self.prefix}{message}")
        if finding not in findings:
            findings.append(finding)


def _is_moved(one: str, other: str, pairs: Sequence[tuple[str, str]]) -> bool:
    """True if one of two names that meet stands elsewhere for something else, so that it is no second name."""
    return any((mine == other or theirs == one) and mine != theirs for mine, theirs in pairs)


def _counts(came: Axes, expected: Axes) -> str:
    """The words for two descriptions that differ in the number of axes."""
    least = "at least " if is_open(expected) else ""
    number = len(expected) - (1 if is_open(expected) else 0)
    here = len(came) - (1 if is_open(came) else 0)
    at_least = "at least " if is_open(came) else ""
    return f"has {at_least}{here} {'axis' if here == 1 else 'axes'}, expected {least}{number}"


def _distinct(tree: ast.Module | AnyFunction) -> set[frozenset[str]]:
    """The pairs of names that one tensor has both, where it comes into a function: these cannot be one axis.

    A mask does not count, nor does what is computed: both may have one axis twice, as queries and as keys.
    """
    every = [node for node in ast.walk(tree) if isinstance(node, ast.arg)]
    annotations = [node.annotation for node in every]
    if isinstance(tree, ast.Module):
        annotations = [node.annotation for node in tree.body if isinstance(node, ast.AnnAssign)]
    texts = [annotated_text(one) for top in annotations if top is not None for one in ast.walk(top) if _is_no_mask(one)]
    sides = [sorted(axis_names(text)) for text in texts if text is not None]
    return {frozenset(pair) for side in sides for pair in itertools.combinations(side, 2)}


def _is_no_mask(node: ast.AST) -> TypeGuard[ast.Subscript]:
    return isinstance(node, ast.Subscript) and not ast.unparse(node.value).endswith("Bool")


def _crossed(tree: ast.AST) -> set[frozenset[str]]:
    """The pairs of names that may be two names for equal axes.

    They stand in the same place of two tensors of a pattern that are otherwise alike, as the positions of queries and
    keys do: in self-attention both come from one tensor.
    """
    crossed: set[frozenset[str]] = set()
    for _, text in _all_axes(tree):
        sides = [side_of(side) for side in text.partition("->")[0].split(",")]
        for one, other in itertools.combinations(sides, 2):
            places = zip(one[::-1], other[::-1], strict=False)
            crossed |= {frozenset(pair) for pair in places if pair[0] not in other and pair[1] not in one}
    return crossed


def _short(node: ast.expr) -> str:
    """The source of an expression, on one line and not too long."""
    text = ast.unparse(node)
    return text if len(text) <= 60 else f"{text[:57]}..."
