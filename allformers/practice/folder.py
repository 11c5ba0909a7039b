"""A learner's folder: one file for each exercise that was started, and how far each has come.

What a learner wrote is never overwritten. `.progress.json` holds what the checks found and how many hints were given.
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allformers.checkpoints.atomic import atomic_write, sha256
from allformers.practice.course import Entry, entries
from allformers.practice.report import Report

PROGRESS = ".progress.json"
TESTS = "test_practice.py"
TESTS_SOURCE = '''"""The checks of `allformers practice check` as tests: run `pytest` on this folder."""

from allformers.practice.testing import *  # noqa: F403
'''


@dataclass(frozen=True)
class Folder:
    """A folder to practise in.

    Attributes:
        path: its path; it need not be there yet.
    """

    path: Path

    def file(self, entry: Entry) -> Path:
        """The file in which a learner writes an exercise."""
        return self.path / f"{entry.stem}.py"

    def started(self) -> list[Entry]:
        """The exercises that have a file, in teaching order."""
        return [entry for entry in entries() if self.file(entry).is_file()]

    def start(self, entry: Entry) -> Path:
        """Write the file that an exercise begins with, and, the first time, the one for pytest.

        Raises:
            FileExistsError: there is a file already; it stays as it is.
        """
        from allformers.practice.source import stub

        path = self.file(entry)
        if path.exists():
            raise FileExistsError(
                f"{path} is there already, and stays as it is: go on with it, or move it away to begin afresh"
            )
        text = stub(entry.load())
        self.path.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        tests = self.path / TESTS
        if not tests.exists():
            tests.write_text(TESTS_SOURCE, encoding="utf-8")
        return path

    def state(self, entry: Entry) -> str:
        """The progress of an exercise, in a few words."""
        path = self.file(entry)
        if not path.is_file():
            return "not started"
        known = self._progress().get(entry.name, {})
        found = known.get("found")
        if found is None:
            return "started"
        said = "passed" if found == "passed" else f"fails at {found}"
        checked = known.get("sha256", known.get("digest"))  # "digest": its name in older folders
        return said if checked == sha256(path) else f"{said}, changed since"

    def record(self, report: Report) -> None:
        """Remember what the checks found, and how many hints were given."""
        progress = self._progress()
        progress[report.name] = {
            "found": "passed" if report.passed else report.failure.check if report.failure else None,
            "sha256": sha256(self.file(report.entry)),
            "hints": len(report.hints),
        }
        with atomic_write(self.path / PROGRESS) as draft:
            draft.write_text(json.dumps(progress, indent=2) + "\n", encoding="utf-8")

    def hints(self, entry: Entry) -> int:
        """The number of hints that were given for an exercise."""
        return int(self._progress().get(entry.name, {}).get("hints", 0))

    def _progress(self) -> dict[str, dict[str, Any]]:
        path = self.path / PROGRESS
        if not path.exists():
            return {}
        try:
            progress = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(progress, dict) or not all(isinstance(one, dict) for one in progress.values()):
                raise TypeError("it holds no table of exercises")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}): remove it, and only its hints are forgotten") from None
        return progress


def imported_exercises(source: str, own: Mapping[str, Entry]) -> list[Entry]:
    """The exercises whose files a piece of source imports."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return [own[name] for name in dict.fromkeys(imported) if name in own]
