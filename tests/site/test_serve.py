"""`mkdocs serve` in a fresh copy of the checkout: nothing is run before it, and it builds once for each change."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import PREPARED, build, checkout

LONG, QUIET = 400.0, 6.0
"""How many seconds to wait for a page, and for builds that should not happen."""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def start(command: list[str], folder: Path, output: Any) -> "subprocess.Popen[bytes]":
    """Start a process that can be interrupted, also where a shell in the background has these tests ignore it."""
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONUNBUFFERED": "1"},
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def interrupt(process: "subprocess.Popen[bytes]") -> int:
    """What Ctrl-C does, to a process and those that it has started."""
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(timeout=60)


class Server:
    """`mkdocs serve`, from its first line on."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.port, self.log = free_port(), log
        with log.open("wb") as output:
            self.process = start(["mkdocs", "serve", "--dev-addr", f"127.0.0.1:{self.port}"], folder, output)

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def builds(self) -> int:
        """How many builds have begun."""
        return len(re.findall("Building documentation", self.said()))

    def finished(self) -> int:
        """How many have ended well."""
        return len(re.findall("Documentation built", self.said()))

    def page(self, name: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{name}", timeout=60) as answer:
            return str(answer.read().decode())

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; an answer that does not come yet is none."""
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            assert self.process.poll() is None, self.said()
            assert "ERROR" not in self.said(), self.said()
            with contextlib.suppress(OSError, urllib.error.URLError):
                if holds():
                    return
            time.sleep(0.2)
        pytest.fail(self.said())


@pytest.fixture
def serve() -> Iterator[Callable[[Path, Path], Server]]:
    started: list[Server] = []

    def begin(folder: Path, log: Path) -> Server:
        started.append(Server(folder, log))
        return started[-1]

    yield begin
    for server in started:
        interrupt(server.process)


@pytest.mark.usefixtures("site")
def test_serving_builds_once_for_each_change(serve: Callable[[Path, Path], Server], tmp_path: Path) -> None:
    copy = checkout(tmp_path / "checkout")
    source = copy / "allformers" / "models" / "gpt2" / "gpt2.py"
    source.write_text(source.read_text(encoding="utf-8").replace("class MLP(", "# of this copy\nclass MLP(", 1))
    server = serve(copy, tmp_path / "log")
    server.until(lambda: "<title>" in server.page("index.html"))
    assert "# of this copy" in server.page("gpt2.html")  # and not of a checkout that is installed
    assert (server.builds(), server.finished()) == (1, 1)

    written = copy / "docs" / "pages" / "questions.md"
    written.write_text(f"{written.read_text(encoding='utf-8')}\nA sentence that was not there.\n")
    server.until(lambda: "A sentence that was not there." in server.page("questions.html"))
    time.sleep(QUIET)
    assert (server.builds(), server.finished()) == (2, 2), server.said()

    source.write_text(source.read_text(encoding="utf-8").replace("# of this copy", "# of this copy, changed", 1))
    server.until(lambda: "# of this copy, changed" in server.page("gpt2.html"))
    time.sleep(QUIET)
    assert (server.builds(), server.finished()) == (3, 3), server.said()
    assert not list(copy.glob("docs/pages/**/practice*/")) + list(copy.glob("docs/**/generated"))


@pytest.mark.site
def test_preparing_that_is_interrupted_leaves_whole_files(tmp_path: Path) -> None:
    copy = checkout(tmp_path / "checkout", prepared=False)
    preparing = start(["docs.engine.prepare"], copy, subprocess.DEVNULL)
    end = time.monotonic() + LONG
    while not list(copy.glob(f"{PREPARED}/*.json")) and time.monotonic() < end:
        assert preparing.poll() is None
        time.sleep(0.05)
    assert interrupt(preparing)
    found = [path for path in (copy / PREPARED).iterdir() if path.suffix == ".json"]
    assert found
    assert all(json.loads(path.read_text(encoding="utf-8")) for path in found)
    assert not list((copy / PREPARED).glob(".*"))


@pytest.mark.slow
def test_a_checkout_in_which_nothing_is_prepared_builds(tmp_path: Path) -> None:
    copy = checkout(tmp_path / "checkout", prepared=False)
    build(copy, tmp_path / "site")
    assert (tmp_path / "site" / "practice" / "gpt2.html").is_file()
    assert (tmp_path / "site" / "generated" / "weights.js").is_file()
    assert list((copy / PREPARED).iterdir())
