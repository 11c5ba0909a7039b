"""Processes that check a learner's code, so that nothing in it can break the command that asked, or the next exercise.

`with Worker(folder) as worker` starts a server, and `worker.check("attention")` asks it for a report. The server
imports PyTorch once, never runs a learner's code, and forks a process for each exercise, in a session of its own. When
that process ends, or at the time limit, all that it has started is killed: on Linux orphans become the server's
children, so that none escapes. Elsewhere there is no such adoption and forking is not safe everywhere: there each
exercise gets a server of its own, and a process that begins a session of its own is not found.

What the checks find is written to a file, line by line, which is opened anew for each line: a learner's code may close
or fill whatever files are open.
"""

import contextlib
import ctypes
import dataclasses
import faulthandler
import importlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import allformers
from allformers.practice.course import Entry, find
from allformers.practice.folder import Folder
from allformers.practice.report import Outcome, Report

GRACE = 30
"""Seconds beyond the time limit, until a server that does not answer is killed."""

MAX_SECONDS = 86_400
"""The longest time limit: a day."""

MAX_OUTPUT_BYTES = 2**26
"""Bytes that a learner's code may print."""

MAX_MEMORY_BYTES = 2**32
"""Bytes of address space that a learner's code may add to what PyTorch takes; on Linux only."""

FORKS = sys.platform == "linux"
"""True if one server forks a process for each exercise, and adopts the orphans of that process."""


class Worker:
    """The server, as its owner sees it. Started when first needed.

    Args:
        folder: the folder of the learner's files.
        seconds: the time limit for one exercise.
    """

    def __init__(self, folder: Folder, seconds: float = 20) -> None:
        if not 0 < seconds <= MAX_SECONDS:
            raise ValueError(f"a time limit must be above 0 seconds and at most {MAX_SECONDS}, not {seconds:g}")
        self.folder, self.seconds = folder, seconds
        self.process: subprocess.Popen[str] | None = None
        self.temporary = tempfile.TemporaryDirectory(prefix="allformers-practice-", ignore_cleanup_errors=True)
        self.place = Path(self.temporary.name).resolve()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server, and what it has started."""
        self._end()
        self.temporary.cleanup()

    def check(self, name: str) -> Report:
        """Check what the folder has for an exercise. Its report holds all hints; whoever shows it gives as many."""
        entry = find(name)
        report = Report(entry.name, str(self.folder.file(entry)))
        for file in ("answers", "printed", "trace"):
            (self.place / file).write_bytes(b"")
        process = self.process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(self.seconds + GRACE, process.kill)
        try:
            late.start()
            process.stdin.write(json.dumps({"check": entry.name, "seconds": self.seconds}) + "\n")
            process.stdin.flush()
            ended = json.loads(process.stdout.readline() or "null")
        except (BrokenPipeError, ValueError):
            ended = None
        finally:
            late.cancel()
        done, at = self._read_answers(report)
        if not done:
            report.outcomes.append(Outcome(at[0], "failed", at[1], self._exit_reason(ended)))
        if ended is None or not FORKS:
            self._end()
        with (self.place / "printed").open("rb") as printed:
            printed.seek(max(0, os.path.getsize(printed.name) - 4000))
            report.printed = printed.read().decode("utf-8", errors="replace")
        return report

    def _read_answers(self, report: Report) -> tuple[bool, tuple[str, str]]:
        """Read into a report what the checks found; return whether they came to their end, and the last that began."""
        at = ("import", "")
        for line in (self.place / "answers").read_text(encoding="utf-8", errors="replace").splitlines():
            told = json.loads(line)
            if "at" in told:
                at = (told["at"][0], told["at"][1])
            if "outcome" in told:
                report.outcomes.append(Outcome(**told["outcome"]))
            report.parts |= told.get("parts", {})
            report.hints = told.get("hints", report.hints)
            if "done" in told:
                return True, at
        return False, at

    def _start(self) -> "subprocess.Popen[str]":
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"}
        here = str(Path(allformers.__file__ or "").parents[1])
        environment["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-P", "-m", "allformers.practice.worker", str(self.folder.path.resolve())]
        return subprocess.Popen(
            [*command, str(self.place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # a Ctrl-C is for us; we then end it
        )

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):  # what was not sent will not be
            if process.stdin is not None:
                process.stdin.close()  # upon which it kills what it has started, and ends
        try:
            process.wait(timeout=5 if FORKS else 0.1)
        except subprocess.TimeoutExpired:
            process.kill()
        for group in (process.pid, self._group()):
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def _group(self) -> int:
        """The process group of the last exercise, should the server have been killed before it could kill that."""
        return int((self.place / "group").read_text(encoding="utf-8"))

    def _exit_reason(self, ended: dict[str, Any] | None) -> str:
        """The reason in words why a process ended before its time."""
        trace = (self.place / "trace").read_text(encoding="utf-8", errors="replace")
        if trace.startswith("Timeout") or (ended and ended["late"]):
            return f"still running after {self.seconds:g} s, so it was stopped{self._location(trace)}"
        if ended is None:
            return "it ended the process that runs the exercises"
        status = ended["status"]
        if status < 0:
            return f"it crashed the process ({signal.Signals(-status).name}){self._location(trace)}"
        return f"it ended the process, with status {status}: `os._exit` does that"

    def _location(self, trace: str) -> str:
        """The innermost line of the learner's own files in a trace of `faulthandler`."""
        for file, number, function in re.findall(r'File "(.+)", line (\d+) in (.+)', trace):
            if Path(file).parent == self.folder.path.resolve():
                inside = "" if function == "<module>" else f" of `{function}`"
                lines = Path(file).read_text(encoding="utf-8").splitlines()
                return f"\nin {Path(file).name}, line {number}{inside}:\n    {lines[int(number) - 1].strip()}"
        return ""


# -- The server --------------------------------------------------------------------------------------------------------


def main() -> None:
    """Take the names of exercises, one a line, and check each in a process of its own."""
    folder, place = Folder(Path(sys.argv[1])), Path(sys.argv[2])
    asked, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    if FORKS:
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans below become children of this process
    import torch

    from allformers.practice.loading import Loader

    importlib.import_module("allformers.inspection.check")  # for the checks that fail
    torch.set_num_threads(1)  # tensors this small only lose by sharing the work
    for line in os.fdopen(os.dup(asked), encoding="utf-8"):
        wanted = json.loads(line)
        entry, seconds = find(wanted["check"]), float(wanted["seconds"])
        hints = entry.load().hints
        if not FORKS:
            _check(Loader(folder), entry, hints, seconds, place)
            os.write(answers, json.dumps({"status": 0, "late": False}).encode() + b"\n")
            continue
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            leave = os._exit
            try:
                os.close(asked)
                os.close(answers)
                os.setsid()
                _check(Loader(folder), entry, hints, seconds, place)
            finally:
                leave(1)
        (place / "group").write_text(str(child), encoding="utf-8")
        status = _wait(child, asked, seconds + 2)
        _kill_children()
        late = time.monotonic() - started >= seconds
        os.write(answers, json.dumps({"status": os.waitstatus_to_exitcode(status), "late": late}).encode() + b"\n")
    os._exit(0)


def _wait(child: int, asked: int, seconds: float) -> int:
    """Wait for the process of an exercise, and return its status; kill it at the limit, or if nobody waits for it."""
    ended = os.pidfd_open(child)
    ready, _, _ = select.select([ended, asked], [], [], seconds)
    os.close(ended)
    if ended not in ready:
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _kill_children() -> None:
    """Kill all children of this process, and the orphans that thereby become its children, until none is left."""
    while True:
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError):
                parent = status.read_text(errors="replace").rpartition(")")[2].split()[1]
                if int(parent) == os.getpid():
                    os.kill(int(status.parent.name), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


# -- The process of an exercise ----------------------------------------------------------------------------------------


def _check(loader: Any, entry: Entry, hints: tuple[str, ...], seconds: float, place: Path) -> None:
    """Check an exercise, and tell what is found; in a process that was forked for it, and ends with it."""
    tell = _teller(place / "answers")
    printed = os.open(place / "printed", os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(printed, standard)
    trace = open(place / "trace", "ab", buffering=0)  # noqa: SIM115  (for as long as the process lasts)
    _limit()
    faulthandler.enable(trace)
    faulthandler.dump_traceback_later(seconds, exit=True, file=trace)
    stop_clock, leave = faulthandler.cancel_dump_traceback_later, os._exit
    tell(hints=hints)
    for outcome in loader.run_checks(entry, lambda check, what: tell(at=(check, what))):
        tell(outcome=dataclasses.asdict(outcome))
    stop_clock()
    with contextlib.suppress(Exception):  # it may have been closed, or put in the place of another
        sys.stdout.flush()
    tell(parts=loader.parts)
    tell(done=True)
    if FORKS:
        leave(0)


def _teller(path: Path) -> Callable[..., None]:
    """Return a function that writes a line to a file, whatever a learner's code has done to the functions it needs."""
    encode, opened, write, close, getpid = json.JSONEncoder().encode, os.open, os.write, os.close, os.getpid
    own, name, flags = getpid(), str(path), os.O_WRONLY | os.O_APPEND

    def tell(**told: Any) -> None:
        if getpid() != own:  # a process that the learner's code has forked
            return
        file = opened(name, flags)
        write(file, encode(told).encode() + b"\n")
        close(file)

    return tell


def _limit() -> None:
    """Limit what a learner's code may print and the memory that it may take, where the system can."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES))
    if FORKS:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
