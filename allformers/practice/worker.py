"""A worker process that checks a learner's code, so that nothing in it can break the command that asked.

`with Worker(folder) as worker` starts it, and `worker.check("attention")` asks it for a report. It imports PyTorch once
and then takes one exercise after the other. Where it ends before its time (a crash, `os._exit`, a loop without an end),
what is known is put into the report, and the next exercise gets a new process. Both sides talk in lines of JSON, by way
of pipes that the learner's code does not see.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, TextIO

import allformers
from allformers.practice.course import find
from allformers.practice.folder import Folder
from allformers.practice.report import Outcome, Report

GRACE = 30
"""Seconds beyond the time limit, until a process that does not end by itself is ended."""

MAX_OUTPUT_BYTES = 2**26
"""Bytes that a learner's code may print."""


class Worker:
    """The process, as its owner sees it. Started when first needed.

    Args:
        folder: the folder of the learner's files.
        seconds: the time limit for one exercise.
    """

    def __init__(self, folder: Folder, seconds: float = 20) -> None:
        if not seconds > 0:
            raise ValueError(f"a time limit must be above 0 seconds, not {seconds:g}")
        self.folder, self.seconds = folder, seconds
        self.process: subprocess.Popen[str] | None = None
        self.temporary = tempfile.TemporaryDirectory(prefix="allformers-practice-")
        self.printed, self.trace = (Path(self.temporary.name) / name for name in ("printed", "trace"))

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._end()
        self.temporary.cleanup()

    def check(self, name: str) -> Report:
        """Check what the folder has for an exercise. Its report holds all hints; whoever shows it gives as many."""
        entry = find(name)
        path = self.folder.file(entry)
        report = Report(entry.name, str(path))
        process = self.process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        at, rest = ("import", ""), ""
        late = threading.Timer(self.seconds + GRACE, process.kill)
        try:
            late.start()
            process.stdin.write(json.dumps({"check": entry.name}) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                told = json.loads(line)
                if "done" in told:
                    break
                if "at" in told:
                    at = (told["at"][0], told["at"][1])
                if "outcome" in told:
                    report.outcomes.append(Outcome(**told["outcome"]))
                report.parts |= told.get("parts", {})
                report.hints = told.get("hints", report.hints)
            else:
                rest = self._exit_reason()
        except BrokenPipeError:
            rest = self._exit_reason()
        finally:
            late.cancel()
        if rest:
            report.outcomes.append(Outcome(at[0], "failed", at[1], rest))
        report.printed = self.printed.read_text(encoding="utf-8", errors="replace")[-4000:]
        return report

    def _start(self) -> "subprocess.Popen[str]":
        self.trace.write_bytes(b"")
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"}
        here = str(Path(allformers.__file__ or "").parents[1])
        environment["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-P", "-m", "allformers.practice.worker", str(self.folder.path), str(self.seconds)]
        return subprocess.Popen(
            [*command, str(self.printed), str(self.trace)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,  # a Ctrl-C is for us; we then end it
        )

    def _end(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):  # what was not sent will not be
                        pipe.close()

    def _exit_reason(self) -> str:
        """The reason in words why a process ended before its time."""
        assert self.process is not None
        status = self.process.wait()
        self._end()
        trace = self.trace.read_text(encoding="utf-8", errors="replace")
        if trace.startswith("Timeout"):
            return f"still running after {self.seconds:g} s, so it was stopped{self._location(trace)}"
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


# -- The other side ----------------------------------------------------------------------------------------------------


def main() -> None:
    """Take the names of exercises, one a line, and tell what their checks find."""
    folder, seconds = Folder(Path(sys.argv[1])), float(sys.argv[2])
    asked, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    printed = open(sys.argv[3], "ab", buffering=0)  # noqa: SIM115  (for as long as the process lasts)
    trace = open(sys.argv[4], "ab", buffering=0)  # noqa: SIM115
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (printed.fileno(), 1), (printed.fileno(), 2)):
        os.dup2(ours, theirs)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES))
    except ImportError:  # Windows has no such limit
        pass
    import torch

    from allformers.practice.loading import Loader

    torch.set_num_threads(1)  # tensors this small only lose by sharing the work
    faulthandler.enable(trace)
    for line in asked:
        printed.truncate(0)
        loader = Loader(folder)
        entry = find(json.loads(line)["check"])
        _send(answers, hints=entry.load().hints)
        faulthandler.dump_traceback_later(seconds, exit=True, file=trace)
        for outcome in loader.run_checks(entry, lambda check, what: _send(answers, at=(check, what))):
            _send(answers, outcome=dataclasses.asdict(outcome))
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        _send(answers, parts=loader.parts)
        _send(answers, done=True)


def _send(answers: TextIO, **told: Any) -> None:
    answers.write(json.dumps(told) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
