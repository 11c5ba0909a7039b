"""The checks as tests for pytest: what the `test_practice.py` in a learner's folder consists of.

Every exercise that was started gives one test for each of its checks; a test that fails says what the course says.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from allformers.practice.checking import check_names
from allformers.practice.course import Entry, find
from allformers.practice.folder import Folder
from allformers.practice.report import Report
from allformers.practice.worker import Worker

__all__ = ["pytest_generate_tests", "reports", "test_practice"]


class Reports:
    """The reports on a learner's exercises, each made when it is first asked for."""

    def __init__(self) -> None:
        self.workers: dict[Path, Worker] = {}
        self.known: dict[tuple[Path, str], Report] = {}

    def of(self, path: Path, entry: Entry) -> Report:
        """The report on what a folder has for an exercise."""
        worker = self.workers.setdefault(path, Worker(Folder(path)))
        if (path, entry.name) not in self.known:
            report = self.known[path, entry.name] = worker.check(entry.name)
            report.give_hints(worker.folder.hints(entry))
            worker.folder.record(report)
        return self.known[path, entry.name]


@pytest.fixture(scope="session")
def reports() -> Iterator[Reports]:
    """The reports, and a process for each folder that makes them."""
    session = Reports()
    yield session
    for worker in session.workers.values():
        worker.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each check of each exercise that was started."""
    if metafunc.function.__name__ == "test_practice":
        started = Folder(metafunc.definition.path.parent).started()
        found = [(entry.name, check, what) for entry in started for check, what in check_names(entry.load())]
        ids = [f"{name}: {what or check}" for name, check, what in found]
        metafunc.parametrize(("name", "check", "what"), found, ids=ids)


def test_practice(name: str, check: str, what: str, reports: Reports, request: pytest.FixtureRequest) -> None:
    """One check of one exercise."""
    report = reports.of(request.path.parent, find(name))
    outcome = next((one for one in report.outcomes if (one.check, one.what) == (check, what)), None)
    if outcome is None:
        pytest.skip("there is nothing to check" if report.passed else "an earlier check fails")
    if outcome.state == "failed":
        pytest.fail(str(report), pytrace=False)
