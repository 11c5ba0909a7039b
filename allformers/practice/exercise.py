"""The record of an exercise.

Everything that a learner sees comes from one file in `exercises`:

- its docstring is the task: the first sentence is `Title: what it teaches`, the rest is Markdown;
- the solution is ordinary code of this package. What is `@checked` in it is left for the learner to write; the rest,
  such as a module's `__init__`, is given;
- a record at the end, `exercise = Exercise(...)`, says how it is checked.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

Property = Callable[..., str | None]
"""Something that has to hold of what was written, beyond its values.

It takes what the learner wrote, in the order of `Exercise.solution`, and raises a `Fault` that says what was seen. Its
name is what holds, its docstring what is expected and why. It may give back a sentence to show when all is well.
"""


class Fault(Exception):  # noqa: N818  (a learner's mistake is no error here)
    """A fault in the learner's code, found by a check.

    Args:
        seen: the observation, in a sentence or two that name axes and sizes.
        expected: the expectation, unless the check that found it says so itself.
    """

    def __init__(self, seen: str, expected: str = "") -> None:
        super().__init__(seen)
        self.seen, self.expected = seen, expected


class Case:
    """One call of what was written.

    Args:
        arguments: the positional arguments. A class of the solution stands for a new object of the class that was
            written for it.
        made_with: for a class, the arguments of its constructor. It is then given the weights of the reference, every
            one of them perturbed, and called as a module.
    """

    def __init__(self, *arguments: Any, made_with: tuple[Any, ...] = ()) -> None:
        self.arguments, self.made_with = arguments, made_with


@dataclass(frozen=True)
class Bug:
    """A realistic mistake, put into the solution's source: the learner gets that, and mends it.

    Attributes:
        replace: the text in the source, found once. A comment right above that line is left out, as it would tell.
        by: the text that takes its place.
    """

    replace: str
    by: str


@dataclass(frozen=True)
class Exercise:
    """An exercise.

    Attributes:
        module: the name of its module.
        solution: the functions or classes to write, as they should be, in the order of the file. The last is the one
            that is called and compared. For a hunt they are the package's own.
        cases: makes the calls, on several odd sizes. It runs under a fixed seed, once for each who is called, so that
            nobody gets what another has changed.
        hints: from a nudge to almost the answer.
        page: the place on the site that explains it, such as `gpt2.html#CausalSelfAttention`.
        part_of: the part of this package that it corresponds to, as a dotted name.
        prerequisites: the exercises to do before it, by name.
        properties: the properties that have to hold, in the order in which they are checked.
        reference: the component that results are compared with, if not the solution: the package's own.
        bug: for a hunt, the mistake.
        tolerance: the largest difference from the reference, relative to its largest value.
    """

    module: str
    solution: tuple[Any, ...]
    cases: Callable[[], Iterator[Case]]
    hints: tuple[str, ...]
    page: str
    part_of: str
    prerequisites: tuple[str, ...] = ()
    properties: tuple[Property, ...] = ()
    reference: Any = None
    bug: Bug | None = None
    tolerance: float = 1e-5

    @property
    def main(self) -> Any:
        """The function or class of the solution that is called and compared."""
        return self.solution[-1]

    @property
    def compared_with(self) -> Any:
        """The function or class that results are compared with."""
        return self.main if self.reference is None else self.reference

    @property
    def path(self) -> Path:
        """Its file."""
        return Path(sys.modules[self.module].__file__ or "")


def paragraphs(text: str) -> tuple[str, ...]:
    """The paragraphs of a text, each on one line."""
    return tuple(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def label(property_: Property) -> str:
    """The sentence of a property, from its name."""
    return property_.__name__.strip("_").replace("_", " ")


def largest(values: Tensor, axes: str) -> tuple[float, str]:
    """The largest value, and where it stands by the names of the axes: `batch 0, heads 2, seq 1`."""
    flat, index = int(values.argmax()), []
    for size in reversed(values.shape):
        index.append(flat % size)
        flat //= size
    places = zip(axes.split(), reversed(index), strict=True)
    return float(values.detach().max()), ", ".join(f"{axis} {place}" for axis, place in places)
