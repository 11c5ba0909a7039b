"""Shape checks: `@checked` holds code to the axes that its annotations name.

A tensor's annotation says what each of its axes is for, not just how many there are:

    >>> from jaxtyping import Float
    >>> @checked
    ... def double(x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
    ...     return 2 * x

`@checked` makes that annotation a promise. At each call, `beartype` checks the types and `jaxtyping` the dtype, the
number of axes and the size of each: one name is one size throughout a call, and the sizes that a module's
configuration fixes (`embed`, `heads`, `vocab` ...) hold from the start. Whatever does not fit is reported in one
`ShapeError`, which names the argument, the axis, what was expected and what came.

Checks are on by default, and cheap: whether a call fits depends on nothing but types, dtypes and sizes, so a call just
like one that fitted is not examined again. `with unchecked():` turns them off for a while; the environment variable
`ALLFORMERS_CHECKS=off`, set before the import, removes them altogether. Under `torch.compile` and `torch.export` they
step aside by themselves.

`ALLFORMERS_CHECKS=strict` examines every call and heeds no `unchecked()`. With beartype's import hook installed first
(`beartype.claw`), annotated variables inside functions are checked too; the tests do both for every model.
"""

import ast
import contextlib
import functools
import inspect
import os
import re
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Generator, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import torch
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import AbstractArray, Shaped, jaxtyped
from torch import Tensor, nn


class ShapeError(TypeError):
    """An argument or a result does not fit its annotation.

    The message names the function, the argument, the axis, what was expected and what came.
    """


_Parameters = ParamSpec("_Parameters")

_Result = TypeVar("_Result")

_MODE = os.environ.get("ALLFORMERS_CHECKS", "on").strip().lower()

_REMOVED = _MODE in {"off", "0", "false", "no"}

_STRICT = _MODE == "strict"

_CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as for every type checker

_MAX_REMEMBERED = 4096  # calls of one function; a text that grows makes a new one at each step

_enabled: ContextVar[bool] = ContextVar("allformers_checks", default=True)


@contextlib.contextmanager
def unchecked() -> Generator[None]:
    """Turn shape checks off inside a `with` block, in this thread (or task) only.

    For inner loops whose shapes a first, checked pass has already shown to be right.
    """
    token = _enabled.set(_STRICT)
    try:
        yield
    finally:
        _enabled.reset(token)


def checked(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Check a function's arguments and result against its annotations at every call.

    Put it on every function and method with tensor arguments. In a method of a module that has a `config` with `axes`
    (a mapping from axis name to size), those sizes are known from the start; any other axis takes its size from the
    first argument that has it.

    Raises:
        ShapeError: (when the decorated function is called) an argument or the result does not fit.
    """
    if _REMOVED:
        return function
    strict = beartype(conf=_CONF)(function)
    fitted: set[object] = set()

    @functools.wraps(function)
    def wrapper(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        if torch.compiler.is_compiling() or not _enabled.get():
            return function(*args, **kwargs)
        known = _known_sizes(args)
        call = _call_key(known, args, kwargs)
        examined: Callable[..., _Result] = strict
        if call in fitted:
            result = function(*args, **kwargs)
            if (call, _value_key(result)) in fitted:
                return result
            examined = _checked_return(result, function)  # the arguments are as before, but the result is not
        with jaxtyped("context"):
            if known:
                isinstance(*_probe(tuple(known.items())))  # binds the sizes: one name is one size in a context
            try:
                result = examined(*args, **kwargs)
            except BeartypeCallHintViolation as violation:
                explain = _explain if _raised_by(examined, violation) else _explain_variable
                message = explain(function, args, kwargs, known, violation)
                if message is None:  # raised further down, by code that is not ours
                    raise
            else:
                outcome = _value_key(result)
                if call is not None and outcome is not None and not _STRICT:
                    if len(fitted) >= _MAX_REMEMBERED:
                        fitted.clear()
                    fitted.update({call, (call, outcome)})
                return result
        raise ShapeError(message)

    vars(wrapper)["__no_type_check__"] = True  # beartype's import hooks leave it alone: it checks by itself
    return wrapper


def checks_are_on() -> bool:
    """True where calls are checked: checks are enabled, and no compiler is at work."""
    return not (torch.compiler.is_compiling() or _REMOVED) and _enabled.get()


def check_token_ids(token_ids: Tensor, vocab_size: int) -> None:
    """Refuse token ids outside the vocabulary, where looking is possible and cheap: on the CPU, with checks on.

    Raises:
        ShapeError: their dtype is one that an embedding cannot look up.
        ValueError: an id is negative or not below `vocab_size`.
    """
    if token_ids.dtype not in {torch.int32, torch.int64}:
        raise ShapeError(f"token ids are int32 or int64, not {_dtype(token_ids)}: use `token_ids.long()`")
    if (id_outside := value_outside(token_ids, vocab_size)) is not None:
        raise ValueError(
            f"token id {id_outside} is not in the vocabulary: ids run from 0 to {vocab_size - 1}. "
            "Was the text encoded with this model's tokenizer?"
        )


def value_outside(values: Tensor, count: int) -> int | None:
    """A value of a tensor of integers that is not from 0 to `count - 1`; None if there is none, or nothing can tell."""
    if not checks_are_on() or values.device.type != "cpu" or values.numel() == 0:
        return None
    stack: Any = torch._C._functorch  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    if stack.peek_interpreter_stack() is not None:  # inside vmap a tensor has no values of its own
        return None
    low, high = (int(bound) for bound in values.aminmax())
    return low if low < 0 else high if high >= count else None


def _known_sizes(args: tuple[object, ...]) -> Mapping[str, int]:
    """The sizes that the module behind a method fixes, by its own `axes` or its config's; empty for plain functions."""
    if not args or not isinstance(args[0], nn.Module):
        return {}
    own = vars(args[0])
    return own["axes"] if "axes" in own else getattr(own.get("config"), "axes", {})


def _call_key(known: Mapping[str, int], args: tuple[object, ...], kwargs: dict[str, object]) -> object:
    """The cache key of a call: types, dtypes and shapes of its arguments; None if an argument has no such key."""
    outlines = [_value_key(value) for value in (*args, *kwargs.values())]
    return None if None in outlines else (tuple(known.items()), len(args), tuple(kwargs), *outlines)


def _value_key(value: object) -> object:
    """The cache key of a value: type, dtype and shape; None if its type does not decide a check, as for a list."""
    if isinstance(value, Tensor):
        return type(value), value.dtype, value.shape
    if isinstance(value, str | nn.Module) or not isinstance(value, Iterable):
        return type(value)
    if isinstance(value, tuple):
        outlines = tuple(_value_key(part) for part in value)
        return None if None in outlines else (type(value), outlines)
    return None


def _checked_return(result: _Result, function: Callable[..., _Result]) -> Callable[..., _Result]:
    """A checked function with the annotations of another, that only returns the given result."""

    @functools.wraps(function)
    def returning(*args: object, **kwargs: object) -> _Result:
        return result

    return beartype(conf=_CONF)(returning)


class _Sizes:
    """A stand-in for a tensor with a shape and nothing else, to bind sizes in jaxtyping without making a tensor."""

    dtype = "sizes"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


@functools.cache
def _probe(sizes: tuple[tuple[str, int], ...]) -> tuple[_Sizes, Any]:
    """A value and an annotation that it fits: checking the one against the other binds every axis to its size."""
    return _Sizes(tuple(size for _, size in sizes)), Shaped[_Sizes, " ".join(name for name, _ in sizes)]


def _raised_by(examined: Callable[..., object], violation: BeartypeCallHintViolation) -> bool:
    """True if a violation is of this function's own arguments or result, and not of something that it called."""
    return _frames(violation)[-1].f_code is getattr(examined, "__code__", None)


def _frames(violation: BeartypeCallHintViolation) -> list[types.FrameType]:
    """The frames that a violation passed through, the innermost last."""
    return [frame for frame, _ in traceback.walk_tb(violation.__traceback__)]


def _explain(
    function: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    known: Mapping[str, int],
    violation: BeartypeCallHintViolation,
) -> str | None:
    """Say in one message which argument does not fit, or that the result does not; None if both do.

    Runs only once a check has failed, so it may take its time: it goes through the arguments in order, as the check
    did, and remembers which argument gave each axis its size.
    """
    fault, sizes = _explain_arguments(function, args, kwargs, known)
    annotation = inspect.signature(function).return_annotation
    if fault is not None or annotation is inspect.Signature.empty or not violation.culprits:
        return fault
    result = violation.culprits[0]  # its text only, where it is of a type that beartype cannot refer to, as a tuple
    if isinstance(result, str):
        return f"{function.__qualname__}: the result is {result}, expected {_as_source(annotation)}"
    reason = _misfit(result, annotation, sizes, "the result")
    return None if reason is None else f"{function.__qualname__}: the result {reason}"


def _explain_arguments(
    function: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object], known: Mapping[str, int]
) -> tuple[str | None, dict[str, tuple[int, str]]]:
    """Say which argument does not fit, or None if all do; and the size of each axis, with the place that gave it."""
    sizes: dict[str, tuple[int, str]] = {name: (size, "the configuration") for name, size in known.items()}
    signature = inspect.signature(function)
    arguments = signature.bind(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if name in arguments and parameter.annotation is not inspect.Parameter.empty:
            values = arguments[name] if parameter.kind is inspect.Parameter.VAR_POSITIONAL else (arguments[name],)
            for value in values:
                reason = _misfit(value, parameter.annotation, sizes, f"argument `{name}`")
                if reason is not None:
                    return f"{function.__qualname__}: argument `{name}` {reason}", sizes
    return None, sizes


def _explain_variable(
    function: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, object],
    known: Mapping[str, int],
    violation: BeartypeCallHintViolation,
) -> str | None:
    """Say which annotated variable of this function does not fit, or None if it is something that it called.

    Variables are checked where beartype's import hook was installed (`beartype.claw`) before the function's module was
    imported.
    """
    frame = next((frame for frame in _frames(violation) if frame.f_code is getattr(function, "__code__", None)), None)
    named = re.search(r'local variable "(\w+)"', re.sub(r"\x1b\[[0-9;]*m", "", str(violation)))
    if frame is None or named is None or not violation.culprits:
        return None
    _, sizes = _explain_arguments(function, args, kwargs, known)
    body = ast.parse(textwrap.dedent(inspect.getsource(function)))
    line = frame.f_lineno - frame.f_code.co_firstlineno + 1
    for node in ast.walk(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.lineno <= line:
            name, is_last = node.target.id, node.target.id == named[1] and line <= (node.end_lineno or line)
            annotation = eval(ast.unparse(node.annotation), frame.f_globals, frame.f_locals)
            value = violation.culprits[0] if is_last else frame.f_locals.get(name)
            reason = _misfit(value, annotation, sizes, f"variable `{name}`")
            if is_last:
                return f"{function.__qualname__}: variable `{name}` {reason}"
    return None


def _misfit(value: object, annotation: Any, sizes: dict[str, tuple[int, str]], source: str) -> str | None:
    """The reason why a value does not fit, or None if it does; then the axes of its annotation enter `sizes`."""
    choices = typing.get_args(annotation) if typing.get_origin(annotation) in {typing.Union, types.UnionType} else ()
    if choices:
        reasons = [_misfit(value, choice, sizes, source) for choice in choices]
        tensor_reasons = [r for r, c in zip(reasons, choices, strict=True) if isinstance(value, Tensor) and _named(c)]
        if None in reasons:
            return None
        return tensor_reasons[0] if tensor_reasons else _wrong_type(value, annotation)
    if not _named(annotation):
        return None if is_bearable(value, annotation, conf=_CONF) else _wrong_type(value, annotation)
    if not isinstance(value, Tensor):
        return _wrong_type(value, annotation)

    reason = _tensor_misfit(value, annotation, sizes, source)
    if reason is None:
        return None
    came = f"{_dtype(value)}, shape {tuple(value.shape)}"
    return f"{reason}\n  came:     {came}\n  expected: {_as_source(annotation)}"


def _tensor_misfit(value: Tensor, annotation: Any, sizes: dict[str, tuple[int, str]], source: str) -> str | None:
    """The reason why a tensor does not fit: its dtype, the number of its axes, or the size of one of them."""
    shape, axes = tuple(value.shape), annotation.dim_str.split()
    if isinstance(annotation.dtypes, (tuple, list)) and _dtype(value) not in annotation.dtypes:
        return f"has dtype {_dtype(value)}, expected {_dtype_family(annotation)}"
    variadic = next((i for i, axis in enumerate(axes) if axis == "..." or axis.startswith("*")), None)
    if variadic is not None:
        axes[variadic : variadic + 1] = ["_"] * (len(shape) - len(axes) + 1)
    if len(axes) != len(shape):
        return f"has {len(shape)} {'axis' if len(shape) == 1 else 'axes'}, expected {len(annotation.dim_str.split())}"
    for axis, size in zip(axes, shape, strict=True):
        name = axis.removeprefix("#")
        if axis == "_" or (axis.startswith("#") and size == 1):
            continue
        wanted, origin = (int(name), "its annotation") if name.isdigit() else sizes.setdefault(name, (size, source))
        if wanted != size:
            return f"has {size} on axis `{name}`, expected {wanted} (from {origin})"
    return None


def _named(annotation: Any) -> bool:
    """True if an annotation is a tensor with named axes."""
    return isinstance(annotation, type) and issubclass(annotation, AbstractArray)


def _wrong_type(value: object, annotation: Any) -> str:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"is {shown}, of type {type(value).__qualname__}; expected {_as_source(annotation)}"


def _as_source(annotation: Any) -> str:
    """An annotation as one writes it in source."""
    if _named(annotation):
        return f'{annotation.dtype.__name__}[Tensor, "{annotation.dim_str}"]'
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return " | ".join(_as_source(choice) for choice in typing.get_args(annotation))
    if annotation is type(None):
        return "None"
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _dtype_family(annotation: Any) -> str:
    families = {"Float": "floating-point numbers", "Int": "integers", "Bool": "booleans"}
    family: str = annotation.dtype.__name__
    return families.get(family, family)
