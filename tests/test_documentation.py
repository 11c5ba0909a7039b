"""What the README and the pages say is run: every Python example, and every command's arguments."""

import doctest
import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from allformers.cli import app
from allformers.inspection.family import family
from docs.engine.facts import rows_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("allformers/models/*/README.md"))]


def fences(page: Path, language: str) -> list[str]:
    """The contents of a page's code blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_print_what_the_page_says(page: Path) -> None:
    source = "\n\n".join(block for block in fences(page, "python") if block.startswith(">>>"))
    examples = doctest.DocTestParser().get_doctest(source, {}, str(page), str(page), 0)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=report.append)
    assert not report, "".join(report)


def test_code_shown_in_the_readme_is_code_of_the_package() -> None:
    shown = [block for block in fences(ROOT / "README.md", "python") if not block.startswith(">>>")]
    assert shown
    package = "\n".join(file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("allformers/**/*.py")))
    unindented = re.sub(r"^ +", "", package, flags=re.MULTILINE)
    for block in shown:
        assert re.sub(r"^ +", "", block, flags=re.MULTILINE) in unindented


def test_the_readme_says_what_each_model_added_and_how_long_it_is() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The family\n")[2].partition("\n## ")[0]
    _, _, *rows = (line for line in section.splitlines() if line.startswith("|"))
    assert rows == [
        f"| {member.entry.class_name} | {member.added[0].upper()}{member.added[1:]} | {member.lines} "
        f"| {member.modules} | {member.configuration} | {member.tables} |"
        for member in family()
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_exist_and_take_the_options_shown(page: Path) -> None:
    for block in fences(page, "bash"):
        for part in re.split(r"\n|&&|\|", block.replace("\\\n", " ")):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == "torchrun":
                words = words[words.index("-m") + 1 :]
            if words and Path(words[0]).name == "allformers":
                command, words = typer.main.get_command(app), words[1:]
                while words and hasattr(command, "get_command"):
                    chosen = command.get_command(typer.Context(command), words[0])
                    assert chosen is not None, f"there is no command {words[0]}"
                    command, words = chosen, words[1:]
                command.make_context(command.name, words)  # raises for an option that does not exist


def test_the_readmes_table_of_times_is_what_was_recorded() -> None:
    readme = " ".join((ROOT / "README.md").read_text().split())
    contenders = [
        "allformers",
        "allformers, packed",
        "allformers, compiled",
        "transformers, eager",
        "transformers, sdpa",
    ]
    for name in ("benchmark", "benchmark-training"):
        record = json.loads((ROOT / "docs" / "records" / f"{name}.json").read_text())
        assert record["command"].partition(" --json")[0] in readme
        assert f"transformers {record['transformers']} and PyTorch {record['torch'].partition('+')[0]}" in readme
        for what, row in rows_of(record).items():
            if what.startswith(("prefill", "decode", "train")):
                cells = [f"{row.median(one):,.1f}" if one in row.measured else "" for one in contenders]
                line = f"| {what}, {row.unit} | {' | '.join(cells)} | {row.ratio(row.best):.2f} |"
                assert " ".join(line.split()) in readme, line
