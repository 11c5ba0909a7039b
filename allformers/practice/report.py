"""The report on an exercise: the same words on a terminal, in pytest and in a notebook."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from allformers.practice.course import Entry, find

CHECKS = ("import", "written", "shapes", "property", "values", "gradients", "named")
"""The checks, in order. The first that fails ends an exercise."""

DESCRIPTIONS: Mapping[str, str] = {
    "import": "the file runs, and defines what was asked for",
    "written": "nothing is left to write",
    "shapes": "shapes and dtypes fit, on several odd sizes",
    "property": "it behaves as it should",
    "values": "results equal the reference's, on random inputs",
    "gradients": "gradients equal the reference's",
    "named": "every operation on axes names them",
}
"""The statement that holds where a check passes, for each check."""

SYMBOLS = {"passed": "✓", "failed": "✗", "noted": "·"}
WIDTH = 100


@dataclass(frozen=True)
class Outcome:
    """The outcome of one check.

    Attributes:
        check: one of `CHECKS`.
        state: "passed" or "failed"; "noted" is a remark that fails nothing.
        what: of a property, what it says.
        seen: the observation; of a check that passed, something to show.
        expected: the expectation.
    """

    check: str
    state: Literal["passed", "failed", "noted"]
    what: str = ""
    seen: str = ""
    expected: str = ""

    def lines(self, width: int = WIDTH) -> Iterator[tuple[str, str]]:
        """The lines of a report on it, each with what it shows: its state, or a detail."""
        start = f"  {SYMBOLS[self.state]} {self.check:<10} "
        if self.state == "passed":
            yield from ((self.state, line) for line in wrap(self.what or DESCRIPTIONS[self.check], start, width))
            yield from (("detail", line) for line in wrap(self.seen, " " * len(start), width))
        elif self.state == "noted":
            yield from ((self.state, line) for line in wrap(self.seen, start, width))
        else:
            told = self.what and f"does not hold: {self.what}"
            yield from ((self.state, line) for line in wrap(told, start, width) or [start.rstrip()])
            yield from (("detail", line) for line in wrap(self.seen, "    seen       ", width))
            yield from (("detail", line) for line in wrap(self.expected, "    expected   ", width))


@dataclass
class Report:
    """The report on an exercise: the outcome of each check, and hints.

    Attributes:
        name: the exercise.
        where: the file or object that was checked.
        outcomes: the outcome of each check, up to the first that failed.
        parts: the parts that it was put together from, each with whose it was.
        printed: the output of the learner's code.
        hints: the hints that were given so far.
        hints_left: the number of hints that are left.
    """

    name: str
    where: str
    outcomes: list[Outcome] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)
    printed: str = ""
    hints: list[str] = field(default_factory=list)
    hints_left: int = 0

    @property
    def failure(self) -> Outcome | None:
        """The check that failed, if one did."""
        return next((outcome for outcome in self.outcomes if outcome.state == "failed"), None)

    @property
    def passed(self) -> bool:
        """True if every check passed."""
        return bool(self.outcomes) and self.failure is None

    @property
    def entry(self) -> Entry:
        """The exercise's place in the course."""
        return find(self.name)

    def give_hints(self, given: int, *, another: bool = False) -> None:
        """Keep the hints that a learner may see: those given before, the first once something fails, and another."""
        count = max(given, 1) + another if self.failure is not None else given
        self.hints, self.hints_left = self.hints[:count], len(self.hints[count:])

    def lines(self, width: int = WIDTH) -> Iterator[tuple[str, str]]:
        """The lines of the report, each with what it shows: a heading, a state, or a detail."""
        yield "heading", f"{self.name}  {self.entry.title}, in {self.where}"
        width_of_names = max(map(len, self.parts), default=0)
        for part, whose in self.parts.items():
            yield "detail", f"    {part:<{width_of_names}}  {whose}"
        for outcome in self.outcomes:
            yield from outcome.lines(width)
        if self.printed:
            yield "detail", "    it printed:"
            yield from (("detail", f"      {line}") for line in self.printed.splitlines()[-12:])
        if self.failure is not None and self.hints:
            total = len(self.hints) + self.hints_left
            start = f"    hint {len(self.hints)} of {total}  "
            yield from (("hint", line) for line in wrap(self.hints[-1], start, width))

    def __str__(self) -> str:
        """The report as plain text."""
        return "\n".join(line for _, line in self.lines())

    __repr__ = __str__

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Report":
        """A report from what `dataclasses.asdict` made of one."""
        return cls(**{**fields, "outcomes": [Outcome(**outcome) for outcome in fields["outcomes"]]})


def wrap(text: str, start: str, width: int) -> list[str]:
    """A text broken into lines that begin under one another; its own line breaks stay, and lines that are indented."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        beginning = start if not lines else " " * len(start)
        if paragraph.startswith(" ") or not paragraph:
            lines.append((beginning + paragraph).rstrip())
        else:
            lines += textwrap.wrap(
                paragraph,
                max(width, 2 * len(start)),
                initial_indent=beginning,
                subsequent_indent=" " * len(start),
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines
