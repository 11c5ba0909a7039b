"""What the package says of itself in several places agrees: versions, and what was tested with what may be used."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import allformers

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    Requirement(text)
    for texts in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in texts
    if not text.startswith("allformers[")
]


def pinned() -> dict[str, Version]:
    """The version of each package that everything was tested with."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if len(pin) != 2] == []
    return {canonicalize_name(name): Version(number) for name, number in pins}


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "docs" / "pages" / "changes.md").read_text(encoding="utf-8")
    assert allformers.__version__ == citation["version"]
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] == allformers.__version__


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_what_was_tested_may_be_used(requirement: Requirement) -> None:
    pins = pinned()
    assert canonicalize_name(requirement.name) in pins
    assert pins[canonicalize_name(requirement.name)] in requirement.specifier


def test_pins_are_published_versions() -> None:
    """A build for one kind of machine, such as `2.13.0+cpu`, could not be installed on another."""
    assert {name: str(pin) for name, pin in pinned().items() if pin.local} == {}


def test_the_readme_installs_what_was_pinned() -> None:
    blocks = re.findall(
        r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    commands = re.findall(r"pip install (.*)", "".join(blocks))
    assert commands
    assert [command for command in commands if not command.startswith("-c .ci/constraints.txt ")] == []
