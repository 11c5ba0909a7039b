"""Whatever a checkpoint holds, loading ends in the reference's model or in an error that names the file and the field.

Each case is a sound tiny checkpoint of one of the families in which a few things are changed, by a random generator
that the seed and the case's number determine. It is loaded in another process, within 2 GiB and 10 seconds. Where a
model comes of it and the reference loads the same files, their logits are equal.

    pytest -n 0 -s -m fuzz                                      # ALLFORMERS_FUZZ_CASES, 1,000 unless set
    python tests/fuzz/child.py SEED NUMBER FOLDER               # one case alone, whose checkpoint stays in FOLDER
"""

import collections
import json
import os
import queue
import secrets
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

CHILD = Path(__file__).with_name("child.py")
SECONDS = 10
SECONDS_OF_REFERENCE = 60
SECONDS_TO_START = 120

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is limited as Linux does it"),
]


class Child:
    """A process that loads one case after the other, and is started anew when a case has ended it."""

    def __init__(self, seed: int, bases: Path) -> None:
        self.command = [sys.executable, str(CHILD), str(seed), str(bases)]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until it can take cases."""
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.listener = threading.Thread(target=self._listen, args=(self.process, self.lines), daemon=True)
        self.listener.start()
        assert self._next(SECONDS_TO_START) == "ready\n"

    def run(self, number: int) -> dict[str, Any]:
        """What came of a case."""
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        about: dict[str, Any] = {"number": number, "kind": "", "family": "", "what": "", "message": ""}
        for seconds, late in ((SECONDS, "FAULT: takes too long"), (SECONDS_OF_REFERENCE, "loaded alone")):
            try:
                line = self._next(seconds)
            except queue.Empty:
                self.stop()
                return about | {"outcome": late}
            if not line:
                status = self.process.wait()
                self.stop()
                return about | {
                    "outcome": "FAULT: the process ended" if seconds == SECONDS else late,
                    "message": status,
                }
            about |= json.loads(line)
        return about

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.listener.join()
            with self.process:
                self.process = None

    def _next(self, seconds: float) -> str:
        return self.lines.get(timeout=seconds)

    @staticmethod
    def _listen(process: subprocess.Popen[str], lines: "queue.Queue[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")


def test_a_load_ends_in_the_references_model_or_in_a_refusal_by_name(tmp_path: Path) -> None:
    from child import write_bases

    cases = int(os.environ.get("ALLFORMERS_FUZZ_CASES", "1000"))
    seed = int(os.environ.get("ALLFORMERS_FUZZ_SEED", str(secrets.randbelow(2**32))))
    first = int(os.environ.get("ALLFORMERS_FUZZ_FIRST", "0"))
    write_bases(tmp_path)
    child = Child(seed, tmp_path)
    try:
        found = [child.run(number) for number in range(first, first + cases)]
    finally:
        child.stop()
    table = collections.Counter((about["kind"], about["outcome"]) for about in found)
    rows = [f"{kind:8} {outcome:40} {count:6}" for (kind, outcome), count in sorted(table.items())]
    slowest = max(float(about.get("seconds", 0)) for about in found)
    print(f"\nALLFORMERS_FUZZ_SEED={seed}, {cases} cases, the slowest {slowest:.1f} s", *rows, sep="\n")
    faults = [about for about in found if about["outcome"].startswith("FAULT")]
    lines = [
        f"{about['number']} {about['family']} {about['kind']}: {about['what']}\n"
        f"    {about['outcome']}: {str(about['message'])[:300]}"
        for about in faults
    ]
    assert not faults, "\n".join([f"{len(faults)} of {cases} cases, with ALLFORMERS_FUZZ_SEED={seed}:", *lines])
