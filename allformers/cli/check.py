"""`allformers check`: follow a file's named axes without running it."""

from pathlib import Path
from typing import Annotated

import typer

from allformers.cli.console import read_text


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.py ...", help="Python files with annotated tensors.")],
) -> None:
    """Follow annotated tensors through einops patterns, without running the file.

    Prints each axis of a pattern that its tensor does not have, and each result that differs from its annotation. Hints
    are axes with a second name, and names that the vocabulary of allformers does not have. The last line counts the
    tensors that were followed, and lists those that were not. Exits with status 1 if there is a contradiction.
    """
    from allformers.inspection.check import check, summary
    from allformers.nn.axes import AXES

    for path in files:
        if path.is_dir():
            raise ValueError(f"{path} is a folder: give the files in it, such as {path}/*.py")
        if path.suffix == ".ipynb":
            raise ValueError(
                f"{path} is a notebook: make a file of it first, with jupyter nbconvert --to script {path}"
            )
    sources = {str(path): read_text(str(path)).removeprefix("\ufeff") for path in files}
    found = 0
    for name, source in sources.items():
        try:
            report = check(source, AXES)
        except SyntaxError as error:
            is_magic = (error.text or "").lstrip().startswith(("%", "!"))
            told = ". In a notebook this line is a command: remove it here" if is_magic else ""
            where = name if error.lineno is None else f"{name}, line {error.lineno}"
            raise ValueError(f"{where}: this is not Python: {error.msg}{told}") from error
        print(summary(report, name), end="")
        found += len(report.findings)
    if found:
        raise typer.Exit(1)
