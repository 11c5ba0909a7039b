"""Every exercise of the course: its solution passes, its stub and plausible mistakes fail where and as they should."""

import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from einops import rearrange

from allformers.inspection import capture, compare_models
from allformers.models.registry import load
from allformers.practice.course import Entry, entries, find
from allformers.practice.folder import Folder
from allformers.practice.loading import Loader
from allformers.practice.report import Report
from allformers.practice.source import code, stub

HERE = Path(__file__).parent


@functools.cache
def solution(entry: Entry) -> str:
    """The code that solves an exercise."""
    return code(entry.load(), solved=True)


Checked = Callable[[Entry, str], Report]


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    """Check a file's text as an exercise's, in this process."""

    def checked(entry: Entry, text: str) -> Report:
        folder = Folder(tmp_path)
        folder.file(entry).write_text(text, encoding="utf-8")
        loader = Loader(folder)
        return Report(entry.name, "a file", list(loader.run_checks(entry)), loader.parts)

    return checked


def mistakes() -> list[pytest.param]:
    """Every wrong solution: what is replaced in the solution, by what, where that fails, and what is said.

    The first three of each exercise are for every day.
    """
    found = []
    for entry in entries():
        if (HERE / "wrong" / f"{entry.stem}.py").is_file():
            for number, row in enumerate(importlib.import_module(f"wrong.{entry.stem}").WRONG, 1):
                marks = pytest.mark.slow if number > 3 else ()
                found.append(pytest.param(entry, *row, id=f"{entry.name} {number}", marks=marks))
    return found


each_exercise = pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)


@each_exercise
def test_the_solution_passes_every_check(entry: Entry, checked: Checked) -> None:
    report = checked(entry, solution(entry))
    assert report.passed, report
    assert [outcome.check for outcome in report.outcomes if outcome.state == "noted"] == [], report


@each_exercise
def test_what_a_learner_begins_with_is_not_there_yet(entry: Entry, checked: Checked) -> None:
    exercise = entry.load()
    report = checked(entry, stub(exercise))
    assert [(outcome.check, outcome.state) for outcome in report.outcomes] == [
        ("import", "passed"),
        ("written", "failed"),
    ]
    assert ("not mended yet" if exercise.bug else "not written yet") in report.outcomes[-1].seen


NAMES_AND_NUMBERS = re.compile(r"`[^`]+`|\d+(?:\.\d+)?|\w+Error")
"""What holds of a sentence in those tables; the rest may be said otherwise."""


@pytest.mark.parametrize(("entry", "replace", "by", "check", "says"), mistakes())
def test_a_mistake_is_found_where_it_shows(
    entry: Entry, replace: str, by: str, check: str, says: str, checked: Checked
) -> None:
    right = solution(entry)
    assert right.count(replace) == 1, f"the solution has {replace!r} {right.count(replace)} times, expected once"
    failure = checked(entry, right.replace(replace, by)).failure
    assert failure is not None, "the mistake is not found"
    assert (failure.what or failure.check) == check, failure
    assert all(word in failure.seen for word in NAMES_AND_NUMBERS.findall(says)), failure


def test_a_failure_says_which_axes_contradict_each_other(checked: Checked) -> None:
    """Found by reading: the result of the pattern is not what the annotation says."""
    entry = next(entry for entry in entries() if entry.name == "split-heads")
    right = solution(entry)
    wrong = right.replace("(heads head_dim) -> batch heads seq", "(heads head_dim) -> batch seq heads")
    assert wrong != right
    failure = checked(entry, wrong).failure
    assert failure is not None
    assert all(word in failure.expected for word in ("line", "`seq`", "`heads`", "batch seq heads head_dim")), failure


@each_exercise
def test_an_exercise_has_three_mistakes_and_three_hints(entry: Entry) -> None:
    rows = [row for row in mistakes() if row.values[0] == entry]
    assert len(rows) >= 3, f"tests/practice/wrong/{entry.stem}.py should have at least three wrong solutions"
    assert len(entry.load().hints) == 3


def test_every_table_of_mistakes_belongs_to_an_exercise() -> None:
    tables = {path.stem for path in (HERE / "wrong").glob("*.py")}
    assert tables == {entry.stem for entry in entries()}


@each_exercise
def test_an_exercise_says_what_it_is_and_what_comes_before(entry: Entry) -> None:
    exercise = entry.load()
    assert entry.title
    assert entry.teaches.endswith(".")
    assert len(entry.task) > 300
    known = [other.name for other in entries()]
    for earlier in exercise.prerequisites:
        assert known.index(earlier) < known.index(entry.name)
    module, _, symbol = re.fullmatch(r"(allformers(?:\.[a-z0-9_]+)+)(\.)(\w+(?:\.\w+)*)", exercise.part_of).groups()
    thing = importlib.import_module(module)
    for name in symbol.split("."):
        thing = getattr(thing, name)


def test_an_exercise_is_found_by_name_number_or_file() -> None:
    first = entries()[0]
    for name in (first.name, first.stem, f"{first.stem}.py", str(first.number)):
        assert find(name) == first
    with pytest.raises(ValueError, match=r"poetry.*split-heads"):
        find("poetry")


def test_the_tools_find_what_is_hunted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the task of the hunt for the mask proposes works on a learner's own class, and shows the mistake."""
    (tmp_path / "hunt_mask.py").write_text(stub(find("hunt-mask").load()), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    trained = load("bundled").eval()
    model = importlib.import_module("hunt_mask").GPT2(trained.config).eval()
    model.load_state_dict(trained.state_dict())
    token_ids = torch.tensor(list(b"The for statement"))
    assert compare_models(model, trained, token_ids).first_difference == "blocks.0"
    with capture(model, "blocks.0.attention.weights", "mask") as activations:
        model(rearrange(token_ids, "seq -> 1 seq"))
    row = activations["blocks.0.attention.weights"].values[0, 0, 0]
    assert (row > 0).sum() == 2
    assert activations["mask"].axes == ("batch", "1", "seq", "seq_k")
