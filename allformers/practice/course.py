"""The course: which exercises there are, and in which order. What is said of them is read off their files."""

import ast
import difflib
import functools
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from allformers.practice.exercise import Exercise

SECTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Warm-ups": (
            "split-heads",
            "merge-heads",
            "patches",
            "contraction",
        ),
        "The parts": (
            "embedding",
            "gelu",
            "layer-norm",
            "attention-scores",
            "causal-mask",
            "softmax",
            "attention",
            "mlp",
            "block",
        ),
        "The whole": (
            "gpt2",
            "loss",
            "training-step",
        ),
        "Writing": (
            "greedy",
            "temperature",
            "top-k",
            "top-p",
            "kv-cache",
        ),
        "The family": (
            "rotary",
            "rms-norm",
            "grouped-query-attention",
            "swiglu",
            "llama",
        ),
        "Hunts": (
            "hunt-transposed",
            "hunt-mask",
            "hunt-softmax",
            "hunt-scale",
            "hunt-gelu",
            "hunt-cache",
        ),
    }
)
"""The sections, in teaching order, each with its exercises: a name and the file `exercises/name.py`."""


class Entry(NamedTuple):
    """The course's record of an exercise, read without importing it.

    Attributes:
        number: its place in the course, from 1.
        name: the name on the command line, such as `split-heads`.
        section: the part of the course that it stands in.
        title: the beginning of its file's first sentence.
        teaches: the rest of that sentence.
        task: everything after that sentence: what is to be done, in Markdown.
    """

    number: int
    name: str
    section: str
    title: str
    teaches: str
    task: str

    @property
    def stem(self) -> str:
        """The name of its module, here and in a learner's folder."""
        return self.name.replace("-", "_")

    def load(self) -> "Exercise":
        """Import it."""
        exercise: Exercise = import_module(f"allformers.practice.exercises.{self.stem}").exercise
        return exercise


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All exercises, in teaching order."""
    names = [(section, name) for section, listed in SECTIONS.items() for name in listed]
    return tuple(_entry(number, section, name) for number, (section, name) in enumerate(names, 1))


def _entry(number: int, section: str, name: str) -> Entry:
    path = Path(__file__).parent / "exercises" / f"{name.replace('-', '_')}.py"
    told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first, _, task = told.partition("\n\n")
    title, _, teaches = re.sub(r"\s+", " ", first).partition(": ")
    return Entry(number, name, section, title, teaches, task)


def find(name: str) -> Entry:
    """An exercise by its name, or by its number.

    Raises:
        ValueError: there is none; the message names the one that is spelt most like it, or lists all.
    """
    wanted = name.removesuffix(".py").replace("_", "-")
    for entry in entries():
        if wanted in {entry.name, str(entry.number)}:
            return entry
    names = [entry.name for entry in entries()]
    near = difflib.get_close_matches(wanted, names, 1, cutoff=0.7)
    raise ValueError(
        f"there is no exercise {name}; " + (f"do you mean {near[0]}?" if near else f"there are: {', '.join(names)}")
    )


def entry_of(exercise: "Exercise") -> Entry:
    """An exercise's place in the course."""
    return find(exercise.module.rpartition(".")[2])
