"""What a model's configuration is: fields whose types say what they may hold, and rows of published sizes.

    @dataclass(frozen=True, kw_only=True)
    class GPT2Config(Configuration):
        num_layers: Count
        dropout: Probability = 0.1
        ...
        gpt2_small = Preset("gpt2", 124_439_808, num_layers=12, ...)

    GPT2Config(num_layers=0, ...)     # ValueError: num_layers must be a whole number of at least 1, not 0
    GPT2Config.gpt2_small()           # the configuration of that size

A field's type is a promise to the reader and to the type checker, and is kept when a configuration is made. What
depends on several fields at once is checked by the configuration itself, in its `__post_init__`.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, TypeVar, get_args, get_origin, get_type_hints

Made = TypeVar("Made")


class Range(NamedTuple):
    """What a value may be.

    Attributes:
        words: as a message says it, after "must be".
        holds: whether a value is in it.
    """

    words: str
    holds: Callable[[Any], bool]


Whole = Annotated[int, Range("a whole number of at least 0", lambda number: number >= 0)]
Count = Annotated[int, Range("a whole number of at least 1", lambda number: number >= 1)]
EvenCount = Annotated[int, Range("an even number of at least 2", lambda number: number >= 2 and number % 2 == 0)]
Positive = Annotated[float, Range("a number above 0", lambda number: number > 0)]
Probability = Annotated[float, Range("a probability, at least 0 and below 1", lambda number: 0 <= number < 1)]

KINDS: Mapping[Any, Range] = {
    bool: Range("True or False", lambda value: isinstance(value, bool)),
    int: Range("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    float: Range("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    str: Range("a text", lambda value: isinstance(value, str)),
    types.NoneType: Range("None", lambda value: value is None),
}
"""The types that a field may be made of."""


def one_of(values: Mapping[str, Any]) -> Range:
    """The keys of a table."""
    return Range(f"one of {', '.join(values)}", lambda value: value in values)


def range_of(hint: Any) -> Range:
    """What a field's type allows."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind, limit = range_of(parts[0]), parts[1]
        return Range(limit.words, lambda value: kind.holds(value) and limit.holds(value))
    if origin is Literal:
        names = [str(part) for part in parts]
        words = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
        return Range(words, lambda value: any(value == part and type(value) is type(part) for part in parts))
    if origin is tuple:
        each = range_of(parts[0])
        return Range(
            f"a tuple, each {each.words}", lambda value: isinstance(value, tuple) and all(map(each.holds, value))
        )
    if origin is types.UnionType or parts:
        choices = [range_of(part) for part in parts]
        words = " or ".join(choice.words for choice in choices)
        return Range(words, lambda value: any(choice.holds(value) for choice in choices))
    return KINDS[hint]


@functools.cache
def ranges(config_class: Any) -> Mapping[str, Range]:
    """What each field of a configuration may be."""
    hints = get_type_hints(config_class, include_extras=True)
    return {field.name: range_of(hints[field.name]) for field in dataclasses.fields(config_class)}


class Configuration:
    """What every model's configuration can do; it is a frozen dataclass.

    Raises:
        ValueError: a value is not what its field's type allows; the message says which, and what would do.
    """

    def __post_init__(self) -> None:
        kind: Any = type(self)
        for name, allowed in ranges(kind).items():
            value = getattr(self, name)
            if not allowed.holds(value):
                raise ValueError(f"{name} must be {allowed.words}, not {value!r}")

    def divides(self, whole: str, parts: str) -> None:
        """Refuse a size that cannot be shared out evenly.

        Raises:
            ValueError: the one is no multiple of the other.
        """
        size, count = getattr(self, whole), getattr(self, parts)
        if size % count:
            raise ValueError(f"{whole} {size} cannot be shared out evenly: make it a multiple of {parts} {count}")

    def exceeds(self, large: str, small: str) -> None:
        """Refuse two numbers in the wrong order.

        Raises:
            ValueError: the first is not above the second.
        """
        if not getattr(self, large) > getattr(self, small):
            raise ValueError(f"{large} {getattr(self, large)} must be above {small} {getattr(self, small)}")

    @classmethod
    def published(cls) -> dict[str, "Preset"]:
        """The rows of this model's table, by name."""
        return {name: row for name, row in vars(cls).items() if isinstance(row, Preset)}

    @classmethod
    def presets(cls) -> dict[str, Callable[[], Self]]:
        """Published sizes and small ones, by name: each a function that makes the configuration."""
        return {name: row.__get__(None, cls) for name, row in cls.published().items()}


class Preset:
    """One row of a configuration's table of sizes; as an attribute of its class, a function that makes it.

    Attributes:
        source: where weights of this size are published, mostly a name on the Hugging Face hub, or what it is for.
        parameters: how many numbers they are.
        sizes: the fields of the configuration.
    """

    def __init__(self, source: str, parameters: int, **sizes: Any) -> None:
        self.source, self.parameters, self.sizes = source, parameters, sizes

    def __get__(self, instance: object, owner: type[Made]) -> Callable[[], Made]:
        return functools.partial(owner, **self.sizes)
