"""The axes of an operation's result: what PyTorch's functions, methods and layers do to the axes of a tensor.

    >>> operation("transpose", ("batch", "seq", "embed"), arguments("1, 2"))
    ('batch', 'embed', 'seq')

Each answer holds whatever the sizes are. An operation that is not here has an unknown result, None. `check` uses these
functions while it reads a file.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Axes: TypeAlias = tuple[str, ...]
"""A name for each axis: `seq`; `(heads head_dim)` for two as one; `1`; `_` without a name; `...` for several."""


class Known:
    """What is known of a value that is not a tensor."""


Value: TypeAlias = Axes | Known | None
"""What is known of a value: a tensor's axes, something else, or nothing."""


@dataclass(frozen=True)
class Number(Known):
    """A number, or another value without axes that arithmetic with tensors takes."""


@dataclass(frozen=True)
class Nothing(Known):
    """`None`, or a variable without a value."""


NUMBER = Number()

NOTHING = Nothing()


@dataclass(frozen=True)
class Several(Known):
    """A tuple of known length.

    Attributes:
        parts: what is known of each.
        names: their names, where they have some, as those of `topk` do.
    """

    parts: tuple[Value, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Many(Known):
    """A list, or another collection of unknown length, whose parts are alike."""

    part: Value


@dataclass(frozen=True)
class Table(Known):
    """A dictionary whose values are alike."""

    part: Value


@dataclass(frozen=True)
class Layer(Known):
    """A layer of `torch.nn`, or a function of `torch` as a value.

    Attributes:
        name: its class or function.
        parts: the layers inside a `Sequential`.
    """

    name: str
    parts: tuple[Value, ...] = ()


_NUMPY_NAMES = {"dim": "axis", "keepdim": "keepdims"}


class Argument(NamedTuple):
    """An argument of a call: its source, and what is known of its value."""

    node: ast.expr
    value: Value


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call, those in order and those by name."""

    given: tuple[Argument, ...] = ()
    named: Mapping[str, Argument] = field(default_factory=dict)

    def get(self, index: int, name: str) -> Argument | None:
        """The argument at a place, or by a name; None if it is not given."""
        if index < len(self.given):
            return self.given[index]
        return self.named.get(name, self.named.get(_NUMPY_NAMES.get(name, name)))

    def integer(self, index: int, name: str, default: int | None = None) -> int | None:
        """The whole number that an argument states; None if it states something else."""
        argument = self.get(index, name)
        return default if argument is None else integer(argument.node)

    def values(self) -> list[Value]:
        """What is known of the arguments in order."""
        return [argument.value for argument in self.given]


def arguments(source: str) -> Arguments:
    """The arguments that a source gives, for examples and tests: numbers alone are known."""
    call = ast.parse(f"f({source})", mode="eval").body
    assert isinstance(call, ast.Call)
    return Arguments(
        tuple(Argument(node, NUMBER if integer(node) is not None else None) for node in call.args),
        {word.arg or "": Argument(word.value, None) for word in call.keywords},
    )


_KEEPING = """abs alpha_dropout argsort bernoulli bfloat16 bool ceil celu clamp clip clone contiguous cos cosh cpu cuda
cumprod cumsum detach double dropout elu empty_like erf exp expm1 fill flip float floor full_like gelu half hardswish
heaviside int isfinite isinf isnan layer_norm leaky_relu log log10 log1p log2 log_softmax logical_not logit logsigmoid
long mish nan_to_num neg normal ones_like rand_like randn_like reciprocal relu relu6 requires_grad rms_norm roll round
rsqrt scatter scatter_add selu sgn sigmoid sign silu sin sinh softmax softmin softplus softsign sqrt square tan tanh to
tril triu trunc type type_as uniform zero zeros_like"""

_KEEPING_LAYERS = """AlphaDropout BatchNorm1d BatchNorm2d CELU Dropout Dropout1d Dropout2d ELU GELU GroupNorm Hardswish
Identity LayerNorm LeakyReLU LogSigmoid LogSoftmax Mish RMSNorm ReLU ReLU6 SELU SiLU Sigmoid Softmax Softplus Tanh"""

_ELEMENTWISE = """add bitwise_and bitwise_or bitwise_xor div eq floor_divide fmod ge gt isclose le logaddexp logical_and
logical_or logical_xor lt masked_fill maximum minimum mul multiply ne pow remainder sub subtract true_divide"""

_REDUCING = """all amax amin any argmax argmin count_nonzero logsumexp max mean median min nanmean nansum prod std sum
var"""

_MAKING = "empty full new_empty new_full new_ones new_zeros ones rand randn zeros"

KEEPING = frozenset(_KEEPING.split())
"""Functions and methods whose result has the axes of their first argument."""

KEEPING_LAYERS = frozenset(_KEEPING_LAYERS.split())
"""Layers of `torch.nn` whose result has the axes of their argument."""

ELEMENTWISE = frozenset(_ELEMENTWISE.split())
"""Functions and methods of two tensors, or of a tensor and a number, that are aligned at their last axes."""

REDUCING = frozenset(_REDUCING.split())
"""Functions and methods that take axes away, all of them unless `dim` names some."""

MAKING = frozenset(_MAKING.split())
"""Functions and methods that make a tensor of given sizes."""

WITH_ONE_AXIS = frozenset({"arange", "hann_window", "linspace", "logspace", "randperm"})
"""Functions that make a tensor with one axis."""

NUMBERS = frozenset(
    {"dim", "element_size", "finfo", "iinfo", "is_contiguous", "item", "ndimension", "nelement", "numel"}
)
"""Functions and methods whose result is no tensor."""

INPLACE = frozenset({"resize_", "squeeze_", "swapaxes_", "swapdims_", "t_", "transpose_", "unsqueeze_"})
"""Methods that change their tensor's axes in place."""


SAME_REST = "*"
"""In the axes of a function's arguments: the axes that its own `...` stands for, the same ones wherever they come."""


def is_open(axes: Axes) -> bool:
    """True if the number of axes is unknown."""
    return "..." in axes or SAME_REST in axes


def front(axes: Axes) -> Axes:
    """The axes in front of the first `...`; all if there is none."""
    return next((axes[:index] for index, axis in enumerate(axes) if axis in {"...", SAME_REST}), axes)


def behind(axes: Axes) -> Axes:
    """The axes behind the last `...`; all if there is none."""
    return front(axes[::-1])[::-1]


def is_name(axis: str) -> bool:
    """True for the name of an axis that has one size, unlike `#batch`, which may be stretched."""
    return axis.isidentifier() and axis != "_"


def integer(node: ast.expr | None) -> int | None:
    """The whole number that a source states; None if it states something else."""
    try:
        value = ast.literal_eval(node) if node is not None else None
    except (ValueError, TypeError, SyntaxError):
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def place(axes: Axes, dim: int | None) -> int | None:
    """The index of the axis that torch counts as `dim`; None if there is none, or `...` hides it."""
    if dim is None:
        return None
    if 0 <= dim < len(front(axes)):
        return dim
    return len(axes) + dim if -len(behind(axes)) <= dim < 0 else None


def replaced(axes: Axes, dim: int | None, *new: str) -> Axes | None:
    """The axes with others in the place of one."""
    index = place(axes, dim)
    return None if index is None else (*axes[:index], *new, *axes[index + 1 :])


def common(one: Value, other: Value) -> Value:
    """What is known of a value that is one of two."""
    if one == other or isinstance(other, Nothing):
        return one
    if isinstance(one, Nothing):
        return other
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        if is_open(one) or is_open(other):
            return None
        return tuple(mine if mine == theirs else "_" for mine, theirs in zip(one, other, strict=True))
    if isinstance(one, Several) and isinstance(other, Several) and len(one.parts) == len(other.parts):
        return Several(tuple(common(*pair) for pair in zip(one.parts, other.parts, strict=True)))
    return None


def completed(one: Axes, other: Axes) -> Axes:
    """The axes of a tensor of which two things are known; where they contradict each other, the first."""
    if is_open(one) and not is_open(other):
        return other if len(other) >= len(behind(one)) else one
    if is_open(one) or is_open(other) or len(one) != len(other):
        return one
    return tuple(theirs if mine == "_" else mine for mine, theirs in zip(one, other, strict=True))


def elementwise(one: Value, other: Value) -> Value:
    """The result of an element-wise operation on two values."""
    if isinstance(one, Number) and isinstance(other, Number):
        return NUMBER
    if isinstance(one, tuple) and isinstance(other, tuple):
        return broadcast(one, other)
    for mine, theirs in ((one, other), (other, one)):
        if isinstance(mine, tuple):
            return mine if isinstance(theirs, Number) else _of_unknown_number(mine)
    return None


def broadcast(one: Axes, other: Axes) -> Axes:
    """The axes of an element-wise operation on two tensors, which are aligned at their last axes.

    Of two names the first is taken. An axis that may have size 1 takes its name from the other tensor.
    """
    mine, theirs = behind(one), behind(other)
    shared = min(len(mine), len(theirs))
    longer = one if len(mine) > len(theirs) else other
    last = [_stretched(*pair) for pair in zip(mine[len(mine) - shared :], theirs[len(theirs) - shared :], strict=True)]
    rest_of_one, rest_of_other = one[: len(one) - shared], other[: len(other) - shared]
    if rest_of_one == rest_of_other or not rest_of_other:
        return (*rest_of_one, *last)
    if not rest_of_one:
        return (*rest_of_other, *last)
    return (*_of_unknown_number(longer[: len(longer) - shared]), *last)


def _of_unknown_number(axes: Axes) -> Axes:
    """The axes of an element-wise operation on a tensor and something that may have more axes, and longer ones."""
    return ("...", *(axis if is_name(axis) else "_" for axis in behind(axes)))


def _stretched(mine: str, theirs: str) -> str:
    """The name of an axis in an element-wise operation of two."""
    may_stretch = mine in {"1", "_"} or mine.startswith("#")
    return theirs if may_stretch and (mine == "1" or theirs not in {"1", "_"}) else mine


def matrix_product(one: Value, other: Value) -> Value:
    """The axes of `one @ other`, of two tensors with at least two axes each."""
    if not (isinstance(one, tuple) and isinstance(other, tuple)) or is_open(one) or is_open(other):
        return None
    if len(one) < 2 or len(other) < 2:
        return None
    return (*broadcast(one[:-2], other[:-2]), one[-2], other[-1])


def put_together(parts: Value, dim: int | None, along_new: str | None = None) -> Value:
    """The axes of tensors that are put together along an axis (`cat`), or along a new one of this name (`stack`)."""
    values = parts.parts if isinstance(parts, Several) else [parts.part] if isinstance(parts, Many) else []
    known = [value for value in values if isinstance(value, tuple)]
    if not known or dim is None:
        return None
    axes = known[0]
    for other in known[1:]:
        axes = completed(axes, other)
    if along_new is None:
        return replaced(axes, dim, "_")
    if dim == -1:
        return (*axes, along_new)
    following = place(axes, dim if dim >= 0 else dim + 1)
    if following is None:
        return (*axes, along_new) if dim == len(axes) and not is_open(axes) else None
    return (*axes[:following], along_new, *axes[following:])


def apply_layer(layer: Layer, call: Arguments) -> Value:
    """What a layer makes of its argument."""
    axes = call.given[0].value if call.given else None
    if layer.name[:1].islower():
        return operation(layer.name, axes, Arguments(call.given[1:], call.named))
    if not isinstance(axes, tuple) or len(call.given) != 1:
        return None
    convolved = layer.name.startswith("Conv") and layer.name[-1] == "d" and "Transpose" not in layer.name
    if layer.name in KEEPING_LAYERS:
        return axes
    if layer.name == "Linear":
        return replaced(axes, -1, "_")
    if layer.name == "Embedding":
        return (*axes, "_")
    if convolved and not is_open(axes):
        batch = axes[:1] if len(axes) == int(layer.name[4]) + 2 else ()
        return (*batch, *("_" for _ in axes[len(batch) :]))
    return None


def weight_of(layer: Layer, name: str) -> Value:
    """A layer's parameter; its axes have no names."""
    if name == "weight" and layer.name in {"Linear", "Embedding"}:
        return ("_", "_")
    return ("_",) if name == "bias" and layer.name == "Linear" else None


def indexed(axes: Axes, indices: Sequence[Argument]) -> Value:
    """The axes of `tensor[indices]`: a number takes an axis away, a slice keeps it, a tensor puts its own there."""
    dots = [number for number, index in enumerate(indices) if _is_constant(index, ...)]
    if len(dots) > 1 or sum(isinstance(index.value, tuple | Many) for index in indices) > 1:
        return None
    first = dots[0] if dots else len(indices)
    head, tail = indices[:first], indices[first + 1 :]
    new_head = _indexed_in_turn(front(axes), head)
    if new_head is None:
        return None
    taken = sum(not _is_constant(index, None) for index in head)
    rest = axes[taken:]
    last = behind(rest)
    count = sum(not _is_constant(index, None) for index in tail)
    if count > len(last):
        return None
    new_tail = _indexed_in_turn(last[len(last) - count :], tail)
    return None if new_tail is None else (*new_head, *rest[: len(rest) - count], *new_tail)


def _is_constant(index: Argument, constant: object) -> bool:
    return isinstance(index.node, ast.Constant) and index.node.value is constant


def _indexed_in_turn(axes: Axes, indices: Sequence[Argument]) -> Axes | None:
    """What indices make of the first axes, each of its own; None if one of them is unknown."""
    left: list[str] = []
    remaining = list(axes)
    for index in indices:
        if _is_constant(index, None):
            left.append("1")
        elif not remaining:
            return None
        elif isinstance(index.node, ast.Slice):
            axis = remaining.pop(0)
            whole = index.node.lower is None and index.node.upper is None and index.node.step is None
            left.append(axis if whole else "_")
        elif isinstance(index.value, Number):
            remaining.pop(0)
        elif isinstance(index.value, tuple):
            remaining.pop(0)
            left += index.value
        else:
            return None
    return tuple(left)


def new_tensor(call: Arguments) -> Value:
    """The axes of a new tensor of given sizes; they have no names yet."""
    values = call.values()
    if len(values) == 1 and isinstance(values[0], Several):
        return tuple("_" for _ in values[0].parts)
    return tuple("_" for _ in values) if values and all(isinstance(value, Number) for value in values) else None


def operation(name: str, axes: Value, call: Arguments) -> Value:
    """What a function of torch makes of a tensor, or a method of the tensor.

    Args:
        name: the function's.
        axes: the tensor's.
        call: the function's other arguments.
    """
    if name.endswith("_") and name not in INPLACE:
        return axes
    if name in NUMBERS:
        return NUMBER
    if name in MAKING:
        return new_tensor(Arguments(call.given[:1]) if name == "new_full" else call)
    if not isinstance(axes, tuple):
        return None
    if name in ELEMENTWISE:
        other = call.get(0, "other")
        return elementwise(axes, other.value if other is not None else None)
    if name in KEEPING:
        return axes
    if name in REDUCING:
        return _reduced(name, axes, call)
    return _moved(name, axes, call) or _selected(name, axes, call)


def _reduced(name: str, axes: Axes, call: Arguments) -> Value:
    """The axes that are left by a sum, a mean, a maximum ..."""
    dim, keepdim = call.get(0, "dim"), call.get(1, "keepdim")
    keep = keepdim.node.value if keepdim is not None and isinstance(keepdim.node, ast.Constant) else None
    if dim is None:
        return ()
    if (keepdim is not None and not isinstance(keep, bool)) or (name in {"std", "var"} and len(call.given) > 1):
        return None
    nodes = dim.node.elts if isinstance(dim.node, ast.Tuple | ast.List) else [dim.node]
    gone = [place(axes, integer(node)) for node in nodes]
    if None in gone:
        return None
    left = tuple("1" if index in gone else axis for index, axis in enumerate(axes) if keep or index not in gone)
    return Several((left, left), ("values", "indices")) if name in {"max", "median", "min"} else left


def _moved(name: str, axes: Axes, call: Arguments) -> Value:
    """The axes after an operation that changes their order or number."""
    first, second = place(axes, call.integer(0, "dim0")), place(axes, call.integer(1, "dim1"))
    match name:
        case "transpose" | "swapaxes" | "swapdims":
            if first is None or second is None:
                return None
            turned = list(axes)
            turned[first], turned[second] = axes[second], axes[first]
            return tuple(turned)
        case "permute":
            argument = call.get(0, "dims")
            nodes = [one.node for one in call.given]
            if argument is not None and isinstance(argument.node, ast.Tuple | ast.List):
                nodes = argument.node.elts
            order = [place(axes, integer(node)) for node in nodes]
            known = [index for index in order if index is not None]
            return tuple(axes[index] for index in known) if sorted(known) == [*range(len(axes))] else None
        case "t" | "adjoint":
            return axes[::-1] if len(axes) == 2 and not is_open(axes) else None
        case "unsqueeze":
            return put_together(Several((axes,)), call.integer(0, "dim"), along_new="1")
        case "squeeze":
            dim = call.integer(0, "dim")
            index = place(axes, dim)
            return replaced(axes, dim) if index is not None and axes[index] == "1" else None
        case "view" | "reshape":
            return new_tensor(call)
        case "flatten":
            start, stop = place(axes, call.integer(0, "start_dim", 0)), place(axes, call.integer(1, "end_dim", -1))
            return None if start is None or stop is None else (*axes[:start], "_", *axes[stop + 1 :])
        case "expand_as" | "view_as" | "reshape_as":
            return call.given[0].value if call.given else None
        case _:
            return None


def _selected(name: str, axes: Axes, call: Arguments) -> Value:
    """The axes after an operation that takes some of the elements, or repeats them."""
    match name:
        case "topk":
            left = replaced(axes, call.integer(1, "dim", -1), "_")
            return None if left is None else Several((left, left), ("values", "indices"))
        case "sort":
            return Several((axes, axes), ("values", "indices"))
        case "gather":
            index = call.get(1, "index")
            return index.value if index is not None else None
        case "index_select" | "narrow" | "repeat_interleave":
            return replaced(axes, call.integer(1 if name == "repeat_interleave" else 0, "dim"), "_")
        case "select":
            return replaced(axes, call.integer(0, "dim"))
        case "unbind":
            rest = replaced(axes, call.integer(0, "dim", 0))
            return None if rest is None else Many(rest)
        case "chunk" | "split" | "tensor_split":
            rest = replaced(axes, call.integer(1, "dim", 0), "_")
            return None if rest is None else Many(rest)
        case "size" | "stride":
            return NUMBER if call.given or call.named else Many(NUMBER)
        case "one_hot":
            return (*axes, "_")
        case "linear":
            return replaced(axes, -1, "_")
        case "embedding":
            return (*axes, "_")
        case "multinomial":
            return replaced(axes, -1, "_")
        case "matmul" | "bmm" | "mm":
            return matrix_product(axes, call.given[0].value if call.given else None)
        case _:
            return None


def library_call(full: str, call: Arguments) -> Value:
    """The value of a call of a function or class of torch, or of a function of `math`, by its full name."""
    name, values = full.rpartition(".")[2], call.values()
    first = values[0] if values else None
    if full.startswith("math."):
        return NUMBER
    if full.startswith("torch.nn.") and name[:1].isupper():
        return new_layer(name, call)
    match name:
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
        case _:
            return operation(name, first, Arguments(call.given[1:], call.named))


def alike(values: Sequence[Value]) -> Value:
    """What is known of each of several values."""
    found = values[0] if values else None
    for value in values[1:]:
        found = common(found, value)
    return found


def part_of(value: Value) -> Value:
    """The value of each part of a collection; a tensor's parts are along its first axis."""
    match value:
        case Many(part=part):
            return part
        case Several(parts=parts):
            return alike(parts)
        case tuple():
            return value[1:] if front(value) else None
        case _:
            return None


def stacked(value: Value) -> Axes | None:
    """The axes of an argument of einops, which takes a list of tensors as one."""
    if isinstance(value, Several | Many):
        part = part_of(value)
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
            inner = _literal_axes(part_of(value))
            return ("_", *inner) if isinstance(inner, tuple) else None
        case _:
            return None


def library_value(full: str) -> Value:
    """A function or a constant of torch as a value."""
    name = full.rpartition(".")[2]
    if name in {"inf", "pi", "e", "nan"} or full.startswith("math."):
        return NUMBER
    if full.startswith("torch.nn.") and name[:1].isupper():
        return None
    return Layer("Identity" if name in KEEPING else name) if full.startswith("torch.") else None


def new_layer(name: str, call: Arguments) -> Value:
    """A new layer, or a list or a table of layers."""
    values = call.values()
    match name:
        case "ModuleList" | "ParameterList":
            return Many(part_of(values[0])) if values else None
        case "ModuleDict" | "ParameterDict":
            return values[0] if values else None
        case "Parameter" | "Buffer":
            return values[0] if values else None
        case "Sequential":
            return (
                Layer(name, tuple(values)) if not any(isinstance(one.node, ast.Starred) for one in call.given) else None
            )
        case _:
            return Layer("Identity" if name in KEEPING_LAYERS else name)


def built_in(name: str, call: Arguments) -> Value:
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
            return Many(Several((NUMBER, part_of(first))))
        case "zip":
            return Many(Several(tuple(map(part_of, values))))
        case "list" | "tuple" | "sorted" | "reversed" | "iter":
            return first if isinstance(first, Many | Several) else Many(part_of(first))
        case "partial" | "dict" | "MappingProxyType":
            return first
        case _:
            return None
