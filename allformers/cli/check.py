"""`allformers check`: follow a file's named axes without running it."""

from pathlib import Path
from typing import Annotated

import typer

from allformers.cli.console import read_text


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.py ...", help="Python files with annotated tensors.")],
) -> None:
    """Follow annotated tensors through einops patterns, without running the file.

    Prints each axis of a pattern that its tensor does not have, each result that differs from its annotation, and, as
    hints, names that the vocabulary of allformers does not have. Exits with status 1 if there is a contradiction.
    """
    from allformers.inspection.check import check, summary
    from allformers.nn.axes import AXES

    found = 0
    for path in map(str, files):
        source = read_text(path)
        try:
            report = check(source, AXES)
        except SyntaxError as error:
            raise ValueError(f"{path} is not Python: {error}") from error
        print(summary(report, path), end="")
        found += len(report.findings)
    if found:
        raise typer.Exit(1)
