"""Values and names from outside, as messages show them: on one line, cut, and without control characters; warnings.

A file or a caller may give a name of a million letters, a list nested a thousand deep or letters that erase a terminal.
A message quotes enough of it to recognise it.
"""

import reprlib
import sys
import warnings
from collections.abc import Iterable

LONGEST = 80
"""The letters that are quoted of a value or a name."""


class _Short(reprlib.Repr):
    """Python's own `repr` of the beginning of a value: no more of it is looked at than is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict = 4, 8
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = self.maxdeque = self.maxarray = 8
        self.maxstring = self.maxlong = self.maxother = LONGEST

    def repr_int(self, x: int, level: int) -> str:
        """Say the length of a number that Python refuses to write in decimal, or that nobody would read."""
        return repr(x) if x.bit_length() < 256 else f"a whole number of {x.bit_length()} bits"


def shown(value: object) -> str:
    r"""Return a value as Python writes it, cut at 80 letters.

    >>> shown("one\ttwo")
    "'one\\ttwo'"
    >>> len(shown("a" * 1000)), len(shown([["a"] * 1000] * 1000))
    (80, 80)
    """
    return _cut(_Short().repr(value))


def shown_name(name: object) -> str:
    r"""Return a name without quotes, cut at 80 letters: of a weight, a field or a file.

    >>> shown_name("h.0.attn.bias"), shown_name("h.0\nattn")
    ('h.0.attn.bias', 'h.0\\nattn')
    """
    return _cut(escaped(str(name)[: LONGEST + 1]))


def shown_names(names: Iterable[object], most: int = 20) -> str:
    """Return names, separated by commas; beyond `most` of them their number is said.

    >>> shown_names(["wte", "wpe", "h.0"], most=2)
    'wte, wpe and 1 more'
    """
    every = list(names)
    listed = ", ".join(map(shown_name, every[:most]))
    return f"{listed} and {len(every) - most} more" if len(every) > most else listed


def warn(message: str) -> None:
    """Warn whoever has called this package: the line of code that Python shows is the caller's, not one of ours."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "allformers":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def escaped(text: str) -> str:
    """Return a text whose control characters, line ends and halves of characters are written as Python writes them."""
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
