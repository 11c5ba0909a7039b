"""What the README, the pages and the docstrings show is so: examples print what stands below them, names exist."""

import ast
import contextlib
import doctest
import fnmatch
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import typer
from einops import rearrange

import allformers
from allformers import cli
from allformers.inspection import capture
from docs.engine.facts import rows_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("allformers/models/*/README.md"))]
MODULES = sorted(ROOT.glob("allformers/**/*.py"))

KINDS = {
    "python": "an example with `>>>`, a program, code of the package, or, with a title, of somebody else",
    "console": "commands behind `$`, each with what it prints",
    "bash": "commands whose output is not shown",
    "text": "anything else: a figure, a pattern, a record of a long run",
}
"""The languages of code blocks, and what stands in them."""

OTHERS_OPTIONS = {"--nproc-per-node"}
"""Options in prose that are not of our command."""

LEARNERS_FILES = {"practice/split_heads.py", "test_practice.py"}
"""Files in prose that come to be on the reader's machine."""


class Block(NamedTuple):
    """A code block of a page.

    Attributes:
        line: of the page, where its contents begin, counted from 0.
        language: the first word behind the opening fence.
        title: of code that is not ours.
        mark: what the comment in the line before says: `<!-- slow -->` or `<!-- network -->`, else nothing.
        code: its contents, without the indentation of the whole.
    """

    line: int
    language: str
    title: str
    mark: str
    code: str


FENCE = re.compile(
    r"^(?:(?P<before> *)<!-- (?P<mark>\w+) -->\n)?(?P<indent> *)(?P<fence>```+)(?P<language>[\w-]*)(?P<more>[^\n]*)\n"
    r"(?P<code>.*?)^(?P=indent)(?P=fence) *$",
    re.DOTALL | re.MULTILINE,
)


@cache
def blocks(page: Path) -> list[Block]:
    """A page's code blocks, in order, those inside of notes and steps too."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            text.count("\n", 0, found.start("code")),
            found["language"],
            found["more"].strip(),
            found["mark"] or "",
            textwrap.dedent(found["code"]),
        )
        for found in FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", text)


def kind_of(block: Block) -> str:
    """What a block of Python is: an example, a program, somebody else's code, or an excerpt from the package."""
    if block.code.startswith(">>> "):
        return "example"
    if block.title:
        return "other"
    return "program" if re.match(r"(from|import) ", block.code) else "excerpt"


def runs(page: Path) -> Iterator[Any]:
    """A page as it is run by default, and again with all that is marked, where something is."""
    name = str(page.relative_to(ROOT))
    yield pytest.param(page, {""}, id=name)
    for mark in sorted({block.mark for block in blocks(page)} - {""}):
        yield pytest.param(page, {"", mark}, id=f"{name}, {mark}", marks=getattr(pytest.mark, mark))


@pytest.mark.parametrize(("page", "marks"), [run for page in PAGES for run in runs(page)])
def test_examples_print_what_the_page_says(
    page: Path, marks: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, in one namespace and one folder, as somebody would who types along."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    report: list[str] = []
    for block in blocks(page):
        if block.mark not in marks:
            continue
        if block.language == "console":
            report += differences(page, block, monkeypatch)
        elif block.language == "python" and kind_of(block) == "example":
            examples = doctest.DocTestParser().get_doctest(block.code, {}, page.name, str(page), block.line)
            examples.globs = names
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
            runner.run(examples, out=report.append, clear_globs=False)
        elif block.language == "python" and kind_of(block) == "program":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile("\n" * block.line + block.code, str(page), "exec"), names)
    assert not report, "\n".join(report)


def differences(page: Path, block: Block, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the commands of a block print something else than it shows, as doctest reports it."""
    checker, flags = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.REPORT_NDIFF
    for command, shown in commands(block):
        printed = "".join(f"{line.rstrip()}\n" for line in output_of(command, monkeypatch).splitlines())
        if not checker.check_output(shown, printed, flags):
            told = checker.output_difference(doctest.Example(command, shown), printed, flags)
            yield f"{page.relative_to(ROOT)}:{block.line}: $ {command}\n{told}"


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """The commands of a block, each with the output below it; of a `bash` block there is none."""
    code = block.code.replace("\\\n", " ")
    if block.language == "console":
        assert code.startswith("$ "), code
        for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown
    else:
        yield from ((line, "") for line in code.splitlines())


def output_of(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints to standard output; if it fails, what it says to standard error follows.

    Our own run in this process, which saves them their imports; all else is left to the shell.
    """
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    for colour in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(colour, raising=False)
    if not command.startswith("allformers ") or set(command) & set("|&;<>$`*"):
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        return done.stdout + done.stderr * bool(done.returncode)
    monkeypatch.setattr(sys, "argv", shlex.split(command, comments=True))
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said), pytest.raises(SystemExit) as stopped:
        cli.main()
    return printed.getvalue() + said.getvalue() * bool(stopped.value.code)


def test_other_output_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(shown: str) -> list[str]:
        block = Block(0, "console", "", "", f"$ allformers --version\n{shown}\n")
        return list(differences(ROOT / "README.md", block, monkeypatch))

    assert told(allformers.__version__) == []
    assert told("...") == []
    assert len(told("0.0.0")) == 1


def every_block(*languages: str) -> Iterator[tuple[str, Block]]:
    """All code blocks of all pages in these languages, or in any, each with its place."""
    for page in PAGES:
        for block in blocks(page):
            if not languages or block.language in languages:
                yield f"{page.relative_to(ROOT)}:{block.line}", block


def test_every_block_says_what_it_is() -> None:
    unknown = [where for where, block in every_block() if block.language not in KINDS]
    assert unknown == [], f"a code block's language is one of {', '.join(KINDS)}"


def test_code_shown_on_a_page_is_code_of_the_package() -> None:
    def flat(code: str) -> str:
        return re.sub(r"^ +", "", code, flags=re.MULTILINE)

    package = flat("\n".join(file.read_text(encoding="utf-8") for file in MODULES))
    excerpts = [(where, block) for where, block in every_block("python") if kind_of(block) == "excerpt"]
    assert [where for where, block in excerpts if flat(block.code) not in package] == []


def test_plain_pytorch_on_the_page_of_gpt2_computes_the_same() -> None:
    """Each block gets what the model named, and whatever it calls by a name of the model's is what the model had."""
    model = allformers.load("bundled").eval()
    with capture(model, "blocks.0.attention.*") as activations:
        model(model.dummy_input(2, 7, "cpu"))
    named = {name.rpartition(".")[2]: tensor.values for name, tensor in activations.items()}
    together = torch.stack([named[name] for name in ("queries", "keys", "values")])
    fused = rearrange(together, "qkv batch heads seq head_dim -> batch seq (qkv heads head_dim)")
    shown = [block.code for block in blocks(ROOT / "docs/pages/gpt2.md") if "PyTorch" in block.title]
    assert shown
    for code in shown:
        names: dict[str, Any] = {**model.config.axes, "batch": 2, "seq": 7, "torch": torch, **named, "fused": fused}
        names |= {"scale": names["head_dim"] ** -0.5}
        exec(code, names)
        written = {n.id for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        compared = written & set(named)
        assert compared, code
        for name in compared:
            torch.testing.assert_close(names[name], named[name], msg=lambda text, name=name: f"{name}: {text}")


# Commands


def check_command(words: list[str], whole: bool) -> None:
    """Raise if a command of ours does not exist, or does not take these options.

    A whole one is read as the command line would; in prose one may lack something, or have NAMES to be replaced.
    """
    command = typer.main.get_command(cli.app)
    while words and hasattr(command, "get_command"):
        if words[0].isupper():
            return
        chosen = command.get_command(typer.Context(command), words[0])
        assert chosen is not None, f"there is no command {words[0]}"
        command, words = chosen, words[1:]
    if whole:
        try:
            command.make_context(command.name, words)
        except typer.Exit:  # --help
            pass
        except Exception as error:
            raise AssertionError(f"{command.name} {shlex.join(words)}: {error}") from error
    else:
        unknown = {word.partition("=")[0] for word in words if word.startswith("-") and word != "-"} - options(command)
        assert not unknown, f"{command.name} has no option {', '.join(sorted(unknown))}"


def check_line(line: str, whole: bool = True) -> None:
    """Check every command of ours in a line of shell, every module that Python is to run, and every file of ours."""
    words = shlex.split(line, comments=True)
    parts: list[list[str]] = [[]]
    for word in words:
        if word in ("&&", "|", "||", ";", ">"):
            parts.append([])
        else:
            parts[-1].append(word)
    for part in parts:
        while part and re.fullmatch(r"\w+=\S*", part[0]):
            part = part[1:]
        program = Path(part[0]).name if part else ""
        if program in ("torchrun", "python", "python3") and "-m" in part:
            part = part[part.index("-m") + 1 :]
            assert importlib.util.find_spec(part[0]) is not None, f"there is no module {part[0]}"
            program = part[0]
        if program == "allformers":
            check_command(part[1:], whole)
        for word in part:
            if re.match(r"(allformers|docs|tests|\.ci)/", word):
                assert (ROOT / word).exists(), f"there is no file {word}"


def test_commands_on_a_page_exist_and_take_the_options_shown() -> None:
    wrong = []
    for where, block in every_block("bash", "console"):
        for command, _ in commands(block):
            try:
                check_line(command)
            except AssertionError as error:
                wrong.append(f"{where}: {error}")
    assert wrong == []


# Names


@cache
def files() -> tuple[str, ...]:
    """All files of the project, as paths from its root."""
    folders = ("allformers", "docs", "tests", ".ci", ".github")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts]
    return tuple(path.relative_to(ROOT).as_posix() for path in [*found, *ROOT.glob("*")])


def options(command: Any) -> set[str]:
    """Every option of a command and of those below it."""
    found = {"--help", *(name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts))}
    for name in getattr(command, "list_commands", lambda _: [])(typer.Context(command)):
        found |= options(command.get_command(typer.Context(command), name))
    return found


@cache
def all_options() -> set[str]:
    """Every option of every command of ours."""
    return options(typer.main.get_command(cli.app))


@cache
def exists(name: str) -> bool:
    """Whether a dotted name is a module, or can be had of one: a class's annotated fields too."""
    module, rest = name, []
    while module:
        with contextlib.suppress(ModuleNotFoundError):
            found: Any = importlib.import_module(module)
            break
        module, _, last = module.rpartition(".")
        rest.insert(0, last)
    else:
        return False
    for attribute in rest:
        if attribute in getattr(found, "__annotations__", {}) and not hasattr(found, attribute):
            return True
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True


def wrong_names(text: str) -> Iterator[str]:
    """Files, modules, commands and options between backticks that do not exist."""
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
        words = " ".join(span.split())
        if re.match(r"(\.venv/bin/)?(allformers|torchrun|python\d?)( |$)", words):
            try:
                check_line(words.partition(" ...")[0], whole=False)
            except AssertionError as error:
                yield f"{words}: {error}"
        if re.fullmatch(r"(allformers|docs)(\.[A-Za-z_]\w*)+", words.partition("(")[0]) and not exists(
            words.partition("(")[0]
        ):
            yield words
        for path in re.findall(
            r"(?:^|(?<= ))[\w.*/-]+\.(?:py|md)(?=$|[ :,])|^(?:allformers|docs|tests|\.ci)/[\w.*/-]*", words
        ):
            pattern = re.sub(r"\bname\.", "*.", path.strip("/"))  # "name" stands for a name
            if path not in LEARNERS_FILES and not any(
                fnmatch.fnmatch(file, end) for file in files() for end in (pattern, f"*/{pattern}")
            ):
                yield path
        if words.startswith("--"):
            yield from sorted(set(re.findall(r"(?<!\S)--[a-z][\w-]*", words)) - all_options() - OTHERS_OPTIONS)


def test_what_a_page_names_exists() -> None:
    """But for the page of changes, which names what there was."""
    wrong = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in PAGES
        if page.stem != "changes"
        for name in wrong_names(prose(page.read_text(encoding="utf-8")))
    ]
    assert wrong == []


def test_wrong_names_are_noticed() -> None:
    right = [
        "allformers/nn/axes.py",
        "axes.py",
        "allformers.nn.axes.AXES",
        "allformers family",
        "--model",
        "docs/pages/",
    ]
    right += ["allformers.training.recipes.Recipe.steps", "allformers train RECIPE --corpus NAME", "models/*/*.py"]
    assert list(wrong_names(" ".join(f"`{name}`" for name in right))) == []
    wrong = [
        "allformers/axes.py",
        "no.py",
        "allformers.nn.no",
        "allformers no",
        "allformers family --no",
        "--no",
        "docs/no/",
    ]
    wrong += ["allformers.training.recipes.Recipe.no", "no/*.py"]
    for name in wrong:
        assert len(list(wrong_names(f"`{name}`"))) == 1, name


# Docstrings


def docstrings(module: Path) -> Iterator[tuple[int, str]]:
    """All documentation in a module, with its line: of modules, classes, functions and constants."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        for one in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant) and isinstance(one.value.value, str):
                yield one.lineno, inspect.cleandoc(one.value.value)


@cache
def every_docstring() -> list[tuple[Path, str, str]]:
    """All documentation in the package: its module, its place and itself."""
    found = [(module, line, text) for module in MODULES for line, text in docstrings(module)]
    return [(module, f"{module.relative_to(ROOT)}:{line}", text) for module, line, text in found]


def test_what_a_docstring_names_exists() -> None:
    assert [f"{where}: {name}" for _, where, text in every_docstring() for name in wrong_names(text)] == []


def code_without_prompt(text: str) -> Iterator[str]:
    """Indented passages of a docstring that are Python, and no example."""
    for found in re.finditer(
        r"(?:^(?P<above>\S.*)\n)?(?P<passage>(?:^ {4}.*\n|^\n(?= {4}))+)", f"{text}\n", re.MULTILINE
    ):
        passage = textwrap.dedent(found["passage"]).strip()
        if (found["above"] or "") in SECTIONS or passage.startswith(">>> "):
            continue
        with contextlib.suppress(SyntaxError):
            if any(
                isinstance(node, ast.Call | ast.alias | ast.Assign | ast.With | ast.FunctionDef)
                for node in ast.walk(ast.parse(passage))
            ):
                yield passage


SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")


def test_code_in_a_docstring_is_an_example_that_runs() -> None:
    """Behind `>>>`, then pytest runs it. The tasks of exercises are shown to learners, and run with them."""
    told = [(where, text) for module, where, text in every_docstring() if "exercises" not in module.parts]
    assert [f"{where}: {code}" for where, text in told for code in code_without_prompt(text)] == []


# Figures


def test_the_readmes_table_of_times_holds_what_was_recorded() -> None:
    """If it has one: cell by cell, by value, in the columns that are called as a contender."""
    recorded = {}
    for name in ("benchmark", "benchmark-training"):
        recorded |= rows_of(json.loads((ROOT / "docs" / "records" / f"{name}.json").read_text(encoding="utf-8")))
    columns: list[str] = []
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        row = recorded.get(cells[0].rpartition(", ")[0] or cells[0]) if cells else None
        if row is None:
            columns = cells if any(re.search(r"\w", cell) for cell in cells) else columns
            continue
        for column, cell in zip(columns, cells, strict=True):
            if column in row.measured and cell:
                shown = float(cell.replace(",", ""))
                assert shown == pytest.approx(row.median(column), rel=1e-2, abs=0.05), (line, column)
