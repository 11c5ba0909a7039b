"""The commands choose threads by the size of the work, and leave the choice to the environment where it says one."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from allformers import GPT2Config
from allformers.cli import app

CHOOSE = """
import torch
from allformers.cli.threads import choose_threads
everyone = torch.get_num_threads()
choose_threads(2**10)
few = torch.get_num_threads()
choose_threads(2**30)
print(everyone, few, torch.get_num_threads())
"""


@pytest.mark.parametrize("asked", [None, "3"])
def test_one_thread_for_little_and_all_for_much_unless_the_environment_says_how_many(asked: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    if asked is not None:
        environment["OMP_NUM_THREADS"] = asked
    printed = subprocess.run(
        [sys.executable, "-c", CHOOSE], env=environment, capture_output=True, text=True, check=True
    )
    everyone, few, many = map(int, printed.stdout.split())
    assert (few, many) == ((1, everyone) if asked is None else (everyone, everyone))


WAIT = """
import os, sys
from typer.testing import CliRunner
from allformers.cli import app
assert "torch" not in sys.modules
CliRunner().invoke(app, sys.argv[1:])
print(os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("command", "policy"), [("family", "passive"), ("bench", None)], ids=["a command", "the benchmark"]
)
def test_threads_that_wait_sleep_but_not_in_the_benchmark(command: str, policy: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    asked = [sys.executable, "-c", WAIT, command, "--no-such-option"]
    printed = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.split()[-1] == str(policy)


@pytest.mark.parametrize(("prompt", "written"), [(10, 200), (240, 16)])
def test_what_is_written_by_default_fits_the_context(prompt: int, written: int) -> None:
    shown = CliRunner().invoke(app, ["generate", "a" * prompt, "--temperature", "0"])
    assert shown.exit_code == 0
    assert f"{written} tokens in" in shown.stderr
    assert prompt + written <= GPT2Config.bundled().context_length
