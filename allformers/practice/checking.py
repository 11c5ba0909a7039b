"""The checks of a submission, one after the other: import, shapes, properties, values, gradients, style.

`run_checks(exercise, load)` yields their outcomes. Nothing here starts a process or keeps anything: `worker` runs this
in a process of its own, because a learner's code may do anything.
"""

import ast
import functools
import inspect
import linecache
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import AbstractArray
from torch import Tensor, nn

from allformers.nn.shapes import ShapeError, checked
from allformers.practice.course import entry_of
from allformers.practice.exercise import Case, Exercise, Fault, label, largest
from allformers.practice.named import violations
from allformers.practice.report import Outcome
from allformers.practice.source import checked_functions, is_stub, stub

SEED = 20260101

MAX_MESSAGE = 2000
"""Characters of an error that are shown."""


class NotWritten(Fault):
    """The code says itself that it is not written yet: it raises `NotImplementedError`."""


@dataclass(frozen=True)
class Submission:
    """A submission: the code that a learner wrote for an exercise.

    Attributes:
        things: the functions or classes, in the order of the exercise's solution.
        source: the text that they stand in; None if it cannot be had.
        files: the files that are the learner's own, by which an error is placed.
    """

    things: tuple[Any, ...]
    source: str | None
    files: frozenset[str]


def check_names(exercise: Exercise) -> Iterator[tuple[str, str]]:
    """The checks of an exercise, in order: each one's name, and for a property its sentence."""
    yield from (("import", ""), ("written", ""), ("shapes", ""))
    yield from (("property", label(property_)) for property_ in exercise.properties)
    yield from (("values", ""), ("gradients", ""), ("named", ""))


def run_checks(
    exercise: Exercise, load: Callable[[], Submission], on_start: Callable[[str, str], None] = lambda check, what: None
) -> Iterator[Outcome]:
    """Run an exercise's checks on a submission, in order, up to the first check that fails.

    Args:
        exercise: the exercise.
        load: returns the submission; raises a `Fault` if it cannot be loaded.
        on_start: called with each check before it runs, since a check may end the process.
    """
    state = _CheckRun(exercise)
    checks: dict[tuple[str, str], Callable[[], str | None]] = {
        ("import", ""): lambda: state.load(load),
        ("written", ""): state.written,
        ("shapes", ""): state.shapes,
        **{("property", label(p)): functools.partial(state.property, p) for p in exercise.properties},
        ("values", ""): state.values,
        ("gradients", ""): state.gradients,
    }
    for (check, what), run_check in checks.items():
        on_start(check, what)
        if check == "gradients" and not state.is_differentiable():
            continue
        try:
            shown = run_check()
        except NotWritten as fault:
            yield Outcome("written", "failed", "", fault.seen, fault.expected)
            return
        except Fault as fault:
            told = [part for part in (fault.expected, state.contradiction()) if part]
            yield Outcome(check, "failed", what, fault.seen, "\n".join(told))
            return
        yield Outcome(check, "passed", what, shown or "")
    on_start("named", "")
    remark = state.named()
    yield Outcome("named", "noted" if remark else "passed", seen=remark)


def is_differentiable(exercise: Exercise) -> bool:
    """True if the reference's results have gradients."""
    return _CheckRun(exercise).is_differentiable()


class _CheckRun:
    """The state that the checks of one submission share."""

    def __init__(self, exercise: Exercise) -> None:
        self.exercise = exercise
        self.submission = Submission((), None, frozenset())
        self.annotated: tuple[Any, ...] = ()
        self.changed = ""  # the argument that a call has changed in place

    # -- Each check: a `Fault`, or something to show, or nothing -------------------------------------------------------

    def load(self, load: Callable[[], Submission]) -> None:
        self.submission = load()
        for solution, thing in zip(self.exercise.solution, self.submission.things, strict=True):
            _check_type(solution, thing)
        instead = dict(zip(self.exercise.solution, self.submission.things, strict=True))
        self.annotated = tuple(_with_annotations_of(solution, thing, instead) for solution, thing in instead.items())

    def written(self) -> None:
        source = self.submission.source
        if source is None:
            return
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a cell of a notebook may hold more than Python
            return
        if self.exercise.bug is not None:
            if ast.dump(_without_docstrings(tree)) == ast.dump(_without_docstrings(ast.parse(stub(self.exercise)))):
                raise Fault("not mended yet: the code is as it was at the start", "The mistake is found and mended.")
            return
        names = {thing.__name__ for thing in self.exercise.solution}
        own = [node for node in tree.body if getattr(node, "name", None) in names]
        for name, function in checked_functions(ast.Module(own, [])):
            if is_stub(function):
                raise Fault(f"`{name}` is not written yet", "A body stands where `raise NotImplementedError` was.")

    def shapes(self) -> None:
        for index, expected in enumerate(self._reference_results()):
            result, changed = self._call_and_mutated(index)
            self.changed = self.changed or changed
            for (name, ours), (_, theirs) in zip(self._named(expected), self._named(result), strict=False):
                self._check_shape_and_dtype(name, theirs, ours, index)

    def property(self, property_: Callable[..., str | None]) -> str | None:
        told = inspect.cleandoc(property_.__doc__ or "").replace("\n", " ")
        try:
            torch.manual_seed(SEED)
            return self._guarded(property_, *self.annotated)
        except NotWritten:
            raise
        except Fault as fault:
            name = self.exercise.main.__name__
            cause = self.changed and f"\n`{name}` changes its argument `{self.changed}` in place: that may be why"
            raise Fault(f"{fault.seen}{cause}", fault.expected or told) from None

    def values(self) -> None:
        for index, expected in enumerate(self._reference_results()):
            result, changed = self._call_and_mutated(index)
            if changed:
                raise Fault(
                    f"it changes its argument `{changed}` in place",
                    "An argument stays as it is: whoever passed it may need it again.",
                )
            for (name, ours), (_, theirs) in zip(self._named(expected), self._named(result), strict=True):
                self._check_equal(name, theirs, ours, index)

    def gradients(self) -> None:
        for index in range(self._count()):
            ours = self._gradients_of(self.exercise.compared_with, index, theirs=False)
            theirs = self._gradients_of(self.annotated[-1], index, theirs=True)
            for name, gradient in ours.items():
                if gradient is None:
                    continue
                found = theirs.get(name)
                if found is None:
                    raise Fault(
                        f"no gradient reaches `{name}`",
                        "The result depends on it, so a gradient flows back to it, unless something cuts it off: "
                        "`detach`, `.data`, `.item()`, `no_grad`, or a number where a tensor should be.",
                    )
                self._check_equal(
                    f"the gradient of `{name}`", found, gradient, index, axes=self._axes_of(name, gradient.ndim)
                )

    def contradiction(self) -> str:
        """The first contradiction between named axes that reading the submission finds, which may be the cause."""
        from allformers.inspection.check import check as check_axes  # which a submission that passes does not need

        try:
            findings = check_axes(self.submission.source or "").findings
        except SyntaxError:
            return ""
        return f"Its named axes contradict each other. In {findings[0]}" if findings else ""

    def named(self) -> str:
        try:
            found = sorted(set(violations(ast.parse(self.submission.source or ""))))
        except SyntaxError:
            return ""
        listed = "; ".join(f"line {line}: {what}" for line, what in found)
        told = "Operations on axes that do not name them: "
        return f"{told}{listed}. With rearrange, repeat, reduce or einsum the code says what it means." if found else ""

    # -- Calls ---------------------------------------------------------------------------------------------------------

    def is_differentiable(self) -> bool:
        """True if the reference's results have gradients."""
        return any(isinstance(value, Tensor) for value in self._gradients_of(self.exercise.compared_with, 0).values())

    def _case(self, index: int) -> Case:
        torch.manual_seed(SEED)
        return list(self.exercise.cases())[index]

    def _count(self) -> int:
        torch.manual_seed(SEED)
        return len(list(self.exercise.cases()))

    def _reference_results(self) -> Iterator[Any]:
        for index in range(self._count()):
            case = self._case(index)
            torch.manual_seed(SEED)
            made = self._make(self.exercise.compared_with, case)
            yield made(*self._arguments(case, self.exercise.solution))

    def _make(self, thing: Any, case: Case) -> Any:
        """The callable to compare: the function itself, or a module with the reference's weights."""
        is_class = isinstance(self.exercise.main, type)
        return with_reference_weights(self.exercise, thing, case) if is_class else thing

    def _arguments(self, case: Case, things: tuple[Any, ...]) -> list[Any]:
        """The arguments of a case; a class of the solution stands for a new object of the learner's class."""
        own = dict(zip(self.exercise.solution, things, strict=True))
        return [own[one]() if isinstance(one, type) and one in own else one for one in case.arguments]

    def _call(self, thing: Any, index: int, case: Case | None = None) -> Any:
        case = case or self._case(index)
        try:
            torch.manual_seed(SEED)
            made = self._guarded(self._make, thing, case)
            arguments = self._guarded(self._arguments, case, self.annotated)
            torch.manual_seed(SEED)
            return self._guarded(made, *arguments)
        except NotWritten:
            raise
        except Fault as fault:
            raise Fault(f"{fault.seen}\n{self._call_text(index)}", fault.expected) from None

    def _call_and_mutated(self, index: int) -> tuple[Any, str]:
        """The result of a call, and the name of the argument that it changed in place, empty if none."""
        case = self._case(index)
        before = [_copy(argument) for argument in case.arguments]
        result = self._call(self.annotated[-1], index, case)
        for name, was, argument in zip(self._parameters(), before, case.arguments, strict=False):
            if isinstance(was, Tensor) and not torch.equal(was, argument):
                return result, name
        return result, ""

    def _guarded(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that may run the learner's code, and turn whatever that raises into a `Fault`."""
        try:
            return function(*arguments)
        except (Fault, KeyboardInterrupt):
            raise
        except NotImplementedError as error:
            raise NotWritten(f"{error or 'not written yet'}{error_location(error, self.submission.files)}") from None
        except ShapeError as error:
            raise Fault(str(error)) from None
        except BaseException as error:  # a learner's code may raise anything, SystemExit too
            raise Fault(f"{describe_error(error)}{error_location(error, self.submission.files)}") from None

    def _gradients_of(self, thing: Any, index: int, theirs: bool = False) -> dict[str, Tensor | None]:
        """The gradients of all numbers that a call depends on, by name."""
        case = self._case(index)
        leaves: dict[str, Tensor] = {}
        arguments = self._arguments(case, self.annotated if theirs else self.exercise.solution)
        for place, (name, argument) in enumerate(zip(self._parameters(), arguments, strict=False)):
            if isinstance(argument, Tensor) and argument.is_floating_point():
                arguments[place] = leaves[name] = argument.detach().clone().requires_grad_()
        run = self._guarded if theirs else lambda function, *given: function(*given)
        made = run(self._make, thing, case)
        if isinstance(made, nn.Module):
            leaves |= dict(made.named_parameters())
        torch.manual_seed(SEED)
        result = run(made, *arguments)
        torch.manual_seed(SEED)
        tensors = [value for _, value in self._named(result) if isinstance(value, Tensor)]
        weighted = [(t * torch.randn(t.shape, dtype=t.dtype)).sum() for t in tensors if t.is_floating_point()]
        weighted = [one for one in weighted if one.requires_grad]
        if not weighted or not leaves:
            return dict.fromkeys(leaves)
        found = run(lambda: torch.autograd.grad(weighted, list(leaves.values()), allow_unused=True))
        return dict(zip(leaves, found, strict=True))

    # -- Comparisons ---------------------------------------------------------------------------------------------------

    def _check_shape_and_dtype(self, name: str, theirs: Any, ours: Any, index: int) -> None:
        """Refuse a result of another dtype or shape; its annotation may leave both open."""
        if not isinstance(ours, Tensor):
            return
        if not isinstance(theirs, Tensor):
            raise Fault(f"{name} is {theirs!r}, expected a tensor\n{self._call_text(index)}")
        axes = self._axes_of(name, ours.ndim).split() or [f"axis {number}" for number in range(ours.ndim)]
        if theirs.ndim != ours.ndim:
            raise Fault(
                f"{name} has the shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}\n{self._call_text(index)}"
            )
        for axis, has, wanted in zip(axes, theirs.shape, ours.shape, strict=True):
            if has != wanted:
                raise Fault(f"{name} has {has} on axis `{axis}`, expected {wanted}\n{self._call_text(index)}")
        if theirs.dtype is not ours.dtype:
            raise Fault(f"{name} has dtype {_dtype(theirs)}, expected {_dtype(ours)}\n{self._call_text(index)}")

    def _check_equal(self, name: str, theirs: Any, ours: Any, index: int, axes: str | None = None) -> None:
        if not isinstance(ours, Tensor):
            same = (
                abs(theirs - ours) <= self.exercise.tolerance * abs(ours) if isinstance(ours, float) else theirs == ours
            )
            if not same:
                raise Fault(f"{name} is {theirs!r}, expected {ours!r}\n{self._call_text(index)}")
            return
        self._check_shape_and_dtype(name, theirs, ours, index)
        mine, right = theirs.detach().double(), ours.detach().double()
        finite = right[right.isfinite()]
        scale = float(finite.abs().max()) if finite.numel() else 1.0
        difference = (mine - right).abs().where(mine != right, 0.0)
        difference = difference.nan_to_num(torch.inf, torch.inf).where(~(mine.isnan() & right.isnan()), 0.0)
        allowed = self.exercise.tolerance * max(scale, 1.0)
        wrong = int((difference > allowed).sum())
        if not wrong:
            return
        worst, place = largest(
            difference, axes or self._axes_of(name, ours.ndim) or " ".join("axis" for _ in ours.shape)
        )
        at = int(difference.argmax())
        has, wanted = theirs.detach().flatten()[at].item(), ours.detach().flatten()[at].item()
        told = [f"{name} has {_number(has)}{place and f' at {place}'}, expected {_number(wanted)}"]
        if ours.is_floating_point():
            told.append(f"the largest difference, {_number(worst)}")
        told.append(f"{wrong:,} of {ours.numel():,} numbers differ")
        raise Fault(f"{'; '.join(told)}\n{self._call_text(index)}")

    # -- Words ---------------------------------------------------------------------------------------------------------

    def _signature(self) -> inspect.Signature:
        main = self.exercise.main
        return inspect.signature(getattr(main, "forward", main))

    def _parameters(self) -> list[str]:
        return [name for name in self._signature().parameters if name != "self"]

    def _named(self, result: Any) -> list[tuple[str, Any]]:
        """A result as its parts, named."""
        if isinstance(result, tuple | list):
            return [(f"result {number}", part) for number, part in enumerate(result, 1)]
        return [("the result", result)]

    def _axes_of(self, name: str, ndim: int) -> str:
        """The axes that the signature gives a result or an argument; nothing if it gives none.

        What it leaves open, as in `... seq head_dim`, is called `axis`.
        """
        signature = self._signature()
        parts = name.split()
        if name == "the result":
            annotation = signature.return_annotation
        elif parts[0] == "result":
            annotation = (*typing.get_args(signature.return_annotation), *[None] * 9)[int(parts[1]) - 1]
        else:
            known = signature.parameters.get(name)
            annotation = known.annotation if known else None
        for choice in (annotation, *typing.get_args(annotation)):
            if isinstance(choice, type) and issubclass(choice, AbstractArray):
                named = [axis.lstrip("#") for axis in choice.dim_str.split()]
                open_axes = ["axis"] * (ndim - len(named) + 1)
                return " ".join(part for axis in named for part in (open_axes if axis == "..." else [axis]))
        return ""

    def _call_text(self, index: int) -> str:
        """The arguments of a case, in words: sizes of tensors, and plain values."""
        case = self._case(index)
        told = []
        for name, argument in zip(self._parameters(), case.arguments, strict=False):
            axes = self._axes_of(name, argument.ndim).split() if isinstance(argument, Tensor) else []
            if isinstance(argument, Tensor) and len(axes) == argument.ndim:
                pairs = zip(axes, argument.shape, strict=True)
                sizes = ", ".join(f"{axis} {size}" for axis, size in pairs if not axis.isdigit())
                told.append(f"`{name}` of {sizes or 'no axes'}")
            elif isinstance(argument, bool | int | float | str):
                told.append(f"`{name}` {argument!r}")
        if isinstance(self.exercise.main, type):
            names = list(inspect.signature(self.exercise.main).parameters)
            simple = [(n, a) for n, a in zip(names, case.made_with, strict=False) if isinstance(a, bool | int | float)]
            told += [f"made with {', '.join(f'`{n}` {a!r}' for n, a in simple)} and random weights"] if simple else []
        return f"called with {'; '.join(told)}" if told else ""


# -- The learner's code ------------------------------------------------------------------------------------------------


def read_file(exercise: Exercise, path: Path) -> Submission:
    """Import a learner's file.

    Raises:
        Fault: it does not run, or does not define what was asked for.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Fault(f"{path.name} cannot be read: {error}") from None
    module = types.ModuleType(entry_of(exercise).stem)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    linecache.checkcache(str(path))
    files = frozenset({str(path)})
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except SyntaxError as error:
        line = (error.text or "").rstrip()
        raise Fault(f"{type(error).__name__}: {error.msg}, in line {error.lineno}:\n{line}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Fault(f"{describe_error(error)}{error_location(error, files)}") from None
    missing = [thing.__name__ for thing in exercise.solution if not hasattr(module, thing.__name__)]
    if missing:
        raise Fault(f"{path.name} defines no `{'`, no `'.join(missing)}`", "The name stays as it was at the start.")
    return Submission(tuple(getattr(module, thing.__name__) for thing in exercise.solution), source, files)


def with_reference_weights(exercise: Exercise, thing: Any, case: Case) -> nn.Module:
    """A module with the weights of the reference, each of which is perturbed.

    Raises:
        Fault: its weights have other names or shapes than those that were asked for.
    """
    torch.manual_seed(SEED)
    reference = exercise.compared_with(*case.made_with)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    module: nn.Module = thing(*case.made_with)
    wanted, found = reference.state_dict(), module.state_dict()
    problems = [f"it has no `{name}`" for name in wanted if name not in found]
    problems += [f"nobody asked for `{name}`" for name in found if name not in wanted]
    problems += [
        f"`{name}` has the shape {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise Fault(
            f"its weights are not those that were asked for: {'; '.join(problems[:3])}{more}",
            "Weights that are called the same can be loaded from the reference, and compared.",
        )
    module.load_state_dict(wanted)
    return module.eval()


def _check_type(solution: Any, thing: Any) -> None:
    """Refuse a function where a class was asked for, and the other way round."""
    name = solution.__name__
    if isinstance(solution, type):
        if not isinstance(thing, type):
            raise Fault(f"`{name}` is {thing!r}", f"A class called `{name}`.")
        if issubclass(solution, nn.Module) and not issubclass(thing, nn.Module):
            raise Fault(f"`{name}` is not a module", f"`class {name}(nn.Module):`, as at the start.")
        missing = [m for m, v in vars(solution).items() if hasattr(v, "__wrapped__") and not hasattr(thing, m)]
        if missing:
            raise Fault(f"`{name}` has no `{missing[0]}`", "The methods stay as they were at the start.")
    elif not callable(thing):
        raise Fault(f"`{name}` is {thing!r}", f"A function called `{name}`.")


def _with_annotations_of(solution: Any, thing: Any, instead: Mapping[Any, Any]) -> Any:
    """The learner's code, checked against the solution's annotations, whatever has become of its own."""
    if not isinstance(solution, type):
        return _annotated_like(solution, thing, instead)
    promised = {name: method for name, method in vars(solution).items() if hasattr(method, "__wrapped__")}
    members = {name: _annotated_like(method, getattr(thing, name), instead) for name, method in promised.items()}
    return type(thing)(thing.__name__, (thing,), {**members, "__module__": thing.__module__})


def _annotated_like(solution: Any, thing: Any, instead: Mapping[Any, Any]) -> Any:
    """A function checked against a solution's annotations, with the learner's classes in place of the solution's."""

    def replaced(annotation: Any) -> Any:
        return instead.get(annotation, annotation) if isinstance(annotation, type) else annotation

    @functools.wraps(inspect.unwrap(solution))
    def call(*args: Any, **kwargs: Any) -> Any:
        return thing(*args, **kwargs)

    signature = inspect.signature(call)
    parameters = [one.replace(annotation=replaced(one.annotation)) for one in signature.parameters.values()]
    call.__annotations__ = {name: replaced(annotation) for name, annotation in call.__annotations__.items()}
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return checked(call)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """A module without its docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return tree


# -- Words for what went wrong -----------------------------------------------------------------------------------------


def describe_error(error: BaseException) -> str:
    """An exception in words."""
    if isinstance(error, SystemExit):
        return f"it ends the process: sys.exit({'' if error.code is None else repr(error.code)})"
    try:
        said = str(error).strip()
    except Exception as failure:  # a learner's own class of errors may fail to say what it is
        said = f"(it cannot be shown: {type(failure).__name__})"
    return f"{type(error).__name__}: {shorten(said)}".rstrip(": ")


def shorten(text: str) -> str:
    """A text, cut in the middle if it is too long to be read."""
    cut = len(text) - MAX_MESSAGE
    return text if cut <= 0 else f"{text[: MAX_MESSAGE // 2]} ... ({cut:,} characters) ... {text[-MAX_MESSAGE // 2 :]}"


def error_location(error: BaseException, files: frozenset[str]) -> str:
    """The line of the learner's own files that raised an exception, with its source; empty if it is none of them."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if not own:
        return ""
    frame = own[-1]
    inside = "" if frame.name == "<module>" else f" of `{frame.name}`"
    return f"\nin line {frame.lineno}{inside}:\n    {frame.line}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _copy(argument: Any) -> Any:
    return argument.detach().clone() if isinstance(argument, Tensor) else argument
