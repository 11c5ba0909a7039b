"""Importing a learner's files, each with the exercises that it imports in turn."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator

import torch

from allformers.practice.checking import Submission, read_file, run_checks
from allformers.practice.course import Entry, entries
from allformers.practice.exercise import Fault
from allformers.practice.folder import Folder, imported_exercises
from allformers.practice.report import Outcome


class Loader:
    """Imports what a learner wrote, and leaves the interpreter as it was.

    A file may import others by their exercises' names. Such a part is the learner's own if it passes its own checks,
    and the package's if not: so every exercise can be the first.

    Attributes:
        parts: the parts that were imported, each with whose it was.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.parts: dict[str, str] = {}

    def run_checks(
        self, entry: Entry, on_start: Callable[[str, str], None] = lambda check, what: None
    ) -> Iterator[Outcome]:
        """Check what the folder has for an exercise, up to the first check that fails."""
        with _interpreter_restored(self.folder):
            yield from run_checks(entry.load(), lambda: self.load(entry), on_start)

    def load(self, entry: Entry, within: tuple[str, ...] = ()) -> Submission:
        """Import what the folder has for an exercise, and before it the parts that it is put together from.

        Raises:
            Fault: it does not run, or does not define what was asked for.
        """
        path = self.folder.file(entry).resolve()
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Fault(f"{path.name} cannot be read: {error}") from None
        for part in imported_exercises(source, {other.stem: other for other in entries()}):
            if part.name not in self.parts and part.name not in (entry.name, *within):
                self.parts[part.name] = self._load_part(part, (entry.name, *within))
        return read_file(entry.load(), path)

    def _load_part(self, part: Entry, within: tuple[str, ...]) -> str:
        """Make a part ready to be imported, and say whose it is."""
        why = "is not started"
        if self.folder.file(part).is_file():
            outcomes = list(run_checks(part.load(), lambda: self.load(part, within)))
            if outcomes[-1].state != "failed":
                return "yours"
            failed = outcomes[-1].check
            why = "is not written yet" if failed == "written" else f"fails at {failed}"
        sys.modules[part.stem] = importlib.import_module(f"allformers.practice.exercises.{part.stem}")
        return f"the package's: yours {why}"


@contextlib.contextmanager
def _interpreter_restored(folder: Folder) -> Iterator[None]:
    """Take back what an import of a learner's file, or what it does, may change for the next one."""
    modules, path, dtype = set(sys.modules), list(sys.path), torch.get_default_dtype()
    sys.path.insert(0, str(folder.path.resolve()))
    ours = {entry.stem for entry in entries()}
    try:
        yield
    finally:
        sys.path[:] = path
        for name in list(sys.modules):
            if name in ours or (name not in modules and _is_in_folder(sys.modules[name], folder)):
                del sys.modules[name]
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)


def _is_in_folder(module: object, folder: Folder) -> bool:
    return str(getattr(module, "__file__", "")).startswith(str(folder.path.resolve()))
