"""The commands choose threads by the size of the work, and leave the choice to the environment where it says one."""

import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from allformers import GPT2Config
from allformers.cli import app

CHOOSE = """
import os, torch
from allformers.cli.threads import set_threads_for
everyone = torch.get_num_threads()
for size in (2**10, 2**30):
    set_threads_for(size)
    print(torch.get_num_threads() if torch.get_num_threads() != everyone else "everyone")
os.environ["OMP_NUM_THREADS"] = "3"
set_threads_for(2**10)
print(torch.get_num_threads() if torch.get_num_threads() != everyone else "everyone")
"""


def test_one_thread_for_little_and_all_for_much_unless_the_environment_says_how_many() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
    printed = subprocess.run(
        [sys.executable, "-c", CHOOSE], env=environment, capture_output=True, text=True, check=True
    )
    few = "everyone" if os.cpu_count() == 1 else "1"
    assert printed.stdout.split() == [few, "everyone", "everyone"]


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
