"""Checking a function or a class that is alive, with no file of its own: what a notebook's cells define."""

import inspect
import sys
from types import SimpleNamespace
from typing import Any

from allformers.practice.checking import Submission, run_checks
from allformers.practice.course import Entry, entries, find
from allformers.practice.exercise import Fault
from allformers.practice.report import Report


def check_live(*given: Any) -> Report:
    """Check what was written for an exercise; see `allformers.practice.check`."""
    if len(given) == 1 and callable(given[0]):
        (thing,) = given
        entry = _entry_of_name(getattr(thing, "__name__", ""))
    elif len(given) == 2 and isinstance(given[0], str) and callable(given[1]):
        entry, thing = find(given[0]), given[1]
    else:
        raise ValueError('give a function or a class, or its exercise and it: check("attention", MyAttention)')
    exercise = entry.load()
    report = Report(entry.name, f"`{getattr(thing, '__name__', thing)}`")
    report.outcomes += run_checks(exercise, lambda: _submission(entry, thing))
    report.hints = list(exercise.hints)
    report.give_hints(0)
    return report


def _entry_of_name(name: str) -> Entry:
    """The exercise in which something of this name is written."""
    found = [entry for entry in entries() for thing in entry.load().solution[-1:] if thing.__name__ == name]
    hunts = [entry for entry in found if entry.load().bug is not None]
    chosen = [entry for entry in found if entry not in hunts] or hunts
    if len(chosen) != 1:
        several = ", ".join(entry.name for entry in chosen)
        where = f"is written in {several}" if several else "is written in no exercise"
        raise ValueError(f"`{name}` {where}: say which is meant, as in check({entries()[0].name!r}, {name})")
    return chosen[0]


def _submission(entry: Entry, thing: Any) -> Submission:
    """The submission: the thing itself, and beside it whatever else its exercise asks for."""
    original = inspect.unwrap(thing)
    beside = getattr(original, "__globals__", None) or vars(sys.modules.get(thing.__module__, SimpleNamespace()))
    things: list[Any] = []
    for wanted in entry.load().solution[:-1]:
        if wanted.__name__ not in beside:
            raise Fault(f"`{wanted.__name__}` is not defined", f"It stands beside `{thing.__name__}`.")
        things.append(beside[wanted.__name__])
    things.append(thing)
    try:
        source = "\n\n".join(inspect.cleandoc("\n" + inspect.getsource(one)) for one in things)
    except (OSError, TypeError):  # what was typed at a prompt cannot be read again
        source = None
    written = [member for one in things for member in (one, *vars(one).values()) if inspect.isfunction(member)]
    files = frozenset(inspect.unwrap(function).__code__.co_filename for function in written)
    return Submission(tuple(things), source, files)
