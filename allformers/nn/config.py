"""Configurations: frozen dataclasses whose field types say which values a field may have.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Sizes(Config):
    ...     num_layers: PositiveInt = 12
    >>> Sizes(num_layers=0)
    Traceback (most recent call last):
        ...
    ValueError: num_layers must be a whole number from 1 to 2147483647, not 0

Types are checked when a configuration is made. A configuration checks constraints between fields in its
`__post_init__`.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from allformers.messages import shown


class Constraint(NamedTuple):
    """A constraint on a value, and the words for it in an error message.

    Attributes:
        words: the words in a message after "must be".
        holds: True for a value that is allowed.
    """

    words: str
    holds: Callable[[Any], bool]


def _int(smallest: int, largest: int) -> Constraint:
    return Constraint(f"a whole number from {smallest} to {largest}", lambda n: smallest <= n <= largest)


LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 1e12

NonNegativeInt = Annotated[int, _int(0, LARGEST_INT)]
PositiveInt = Annotated[int, _int(1, LARGEST_INT)]
"""A number that no list is made of: tokens of a vocabulary, positions that RoPE can tell apart, a window."""

LayerCount = Annotated[int, _int(1, 1000)]
"""Layers, each of which is built as modules of its own. The deepest published transformer, DeepNet, has 1,000."""

Count = Annotated[int, _int(1, 10_000)]
"""What there are several of in a layer: heads, experts, channels. Switch Transformer has 2,048 experts."""

Width = Annotated[int, _int(1, 2**20)]
"""A side of a matrix, or a part of one. So no product of sizes in one weight overflows 64 bits."""

EvenWidth = Annotated[int, Constraint(f"an even number from 2 to {2**20}", lambda n: 2 <= n <= 2**20 and n % 2 == 0)]
"""A width that RoPE takes in pairs."""

PositionCount = Annotated[int, _int(1, 2**14)]
"""Positions with an embedding for each, or pixels along a side of an image: models make square tables of them."""

PositiveFloat = Annotated[
    float, Constraint(f"a number above 0 and at most {LARGEST_FLOAT:g}", lambda x: 0 < x <= LARGEST_FLOAT)
]
Probability = Annotated[float, Constraint("a probability, at least 0 and below 1", lambda x: 0 <= x < 1)]

TYPES: Mapping[Any, Constraint] = {
    bool: Constraint("True or False", lambda value: isinstance(value, bool)),
    int: Constraint("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: Constraint(
        f"a finite number from {-LARGEST_FLOAT:g} to {LARGEST_FLOAT:g}",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_FLOAT,
    ),
    str: Constraint("a string", lambda value: isinstance(value, str)),
    types.NoneType: Constraint("None", lambda value: value is None),
}
"""The plain types that a field may be made of. A bool is no number, and neither are infinity and NaN."""


def one_of(values: Mapping[str, Any]) -> Constraint:
    """The constraint that a value is a key of a mapping."""
    return Constraint(f"one of {', '.join(values)}", lambda value: value in values)


def constraint_of(hint: Any) -> Constraint:
    """The constraint that a field's type stands for: plain, `Annotated`, `Literal`, a tuple of one type, or a union."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        plain, narrower = constraint_of(parts[0]), parts[1]
        return Constraint(narrower.words, lambda value: plain.holds(value) and narrower.holds(value))
    if origin is Literal:
        names = [str(part) for part in parts]
        words = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        return Constraint(words, lambda value: any(value == part and type(value) is type(part) for part in parts))
    if origin is tuple:
        each = constraint_of(parts[0])
        return Constraint(
            f"a tuple, each {each.words}", lambda value: isinstance(value, tuple) and all(map(each.holds, value))
        )
    if origin is types.UnionType or parts:
        choices = [constraint_of(part) for part in parts]
        words = " or ".join(choice.words for choice in choices)
        return Constraint(words, lambda value: any(choice.holds(value) for choice in choices))
    return TYPES[hint]


@functools.cache
def constraints(config_class: Any) -> Mapping[str, Constraint]:
    """The constraint on each field of a configuration."""
    hints = get_type_hints(config_class, include_extras=True)
    return {field.name: constraint_of(hints[field.name]) for field in dataclasses.fields(config_class)}


class Config:
    """Base of all configurations.

    Raises:
        ValueError: a value is not what its field's type allows; the message names the field, the value and the range.
    """

    def __post_init__(self) -> None:
        config_class: Any = type(self)
        for name, constraint in constraints(config_class).items():
            value = getattr(self, name)
            if not constraint.holds(value):
                raise ValueError(f"{name} must be {constraint.words}, not {shown(value)}")

    def require_divisible(self, dividend: str, divisor: str) -> None:
        """Refuse a field that is no multiple of another.

        Raises:
            ValueError: with both names and values.
        """
        size, count = getattr(self, dividend), getattr(self, divisor)
        if size % count:
            raise ValueError(f"{dividend} {size} is not divisible by {divisor} {count}: make it a multiple")

    def require_greater(self, greater: str, smaller: str) -> None:
        """Refuse a field that is not above another.

        Raises:
            ValueError: with both names and values.
        """
        if not getattr(self, greater) > getattr(self, smaller):
            raise ValueError(f"{greater} {getattr(self, greater)} must be above {smaller} {getattr(self, smaller)}")
