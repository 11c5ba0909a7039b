"""`allformers practice`: a course of exercises, from splitting heads to a whole GPT-2, each with its checks."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from allformers.practice.course import entries, find
from allformers.practice.folder import TESTS, Folder
from allformers.practice.report import WIDTH, Report

practice = typer.Typer(
    name="practice",
    help="""Exercises: write a transformer part by part, and have each part checked.

    Without a command, list the exercises and their state.""",
    invoke_without_command=True,
)

FolderOption = Annotated[
    Path | None,
    typer.Option("--folder", help="The folder of your files. Default: the current one if it is such, or `practice`."),
]
STYLES = {"heading": "bold", "passed": "green", "failed": "bold red", "noted": "yellow", "hint": "cyan", "detail": ""}


@practice.callback()
def overview(context: typer.Context, folder: FolderOption = None) -> None:
    """List the exercises in teaching order, each with its state."""
    context.obj = folder
    if context.invoked_subcommand is None:
        _list(_folder(context, folder))


def _folder(context: typer.Context, given: Path | None) -> Folder:
    """The folder of the exercises: the given one, the current one if it is such, or `practice`."""
    is_one = Path(TESTS).is_file() and not Path("practice").is_dir()
    return Folder(given or context.obj or Path("." if is_one else "practice"))


def _list(folder: Folder) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "exercise", "what it teaches", "state"):
        table.add_column(column, justify="left" if column else "right", no_wrap=column != "what it teaches")
    section, passed = "", 0
    for entry in entries():
        if entry.section != section:
            section = entry.section
            table.add_row("", Text(section, style="bold"), "", "", end_section=False)
        state = folder.state(entry)
        style = "green" if state == "passed" else "red" if state.startswith("fails") else "dim"
        style = "yellow" if state == "started" or state.endswith("changed since") else style
        teaches = entry.teaches[0].upper() + entry.teaches[1:]
        table.add_row(str(entry.number), entry.name, teaches, Text(state, style=style))
        passed += state == "passed"
    Console().print(table)
    print(f"\n{passed} of {len(entries())} passed")
    following = next((entry for entry in entries() if folder.state(entry) == "not started"), None)
    if following is not None:
        Console().print(f"next: [bold]allformers practice start {following.name}[/bold]")


@practice.command()
def start(
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Exercises. Default: the next one that is not started."),
    ] = None,
    folder: FolderOption = None,
) -> None:
    """Start an exercise: write its file, with the task and functions without a body."""
    place = _folder(context, folder)
    chosen = [find(name) for name in names or []]
    if not chosen:
        chosen = [entry for entry in entries() if place.state(entry) == "not started"][:1]
    if not chosen:
        raise ValueError("all exercises have been started: see `allformers practice`")
    given = folder or context.obj
    option = "" if given is None else f" --folder {given}"
    for entry in chosen:
        print(place.start(entry))
        do = "find the mistake and mend it" if entry.section == "Hunts" else "write what is missing"
        Console(stderr=True).print(
            f"{do}, then: [bold]allformers practice check {entry.name}{option}[/bold]", soft_wrap=True
        )


@practice.command()
def check(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Exercises. Default: all that are started.")
    ] = None,
    hint: Annotated[bool, typer.Option("--hint", help="Print the next hint.")] = False,
    timeout: Annotated[float, typer.Option(help="The most seconds that an exercise may take.")] = 20,
    folder: FolderOption = None,
) -> None:
    """Run the checks of exercises, each up to its first failure.

    The exit status is 0 if all pass, and 1 otherwise.
    """
    from allformers.practice.worker import Worker

    place = _folder(context, folder)
    chosen = [find(name) for name in names or []] or place.started()
    if not chosen:
        raise ValueError(f"no exercise has been started in {place.path}: begin with `allformers practice start`")
    for entry in chosen:
        if not place.file(entry).is_file():
            raise ValueError(f"{place.file(entry)} does not exist: begin with `allformers practice start {entry.name}`")
    if hint and len(chosen) > 1:
        raise ValueError("--hint needs the name of one exercise")
    shown = Console(highlight=False, soft_wrap=True)
    reports: list[Report] = []
    with Worker(place, timeout) as worker:
        for entry in chosen:
            report = worker.check(entry.name)
            report.give_hints(place.hints(entry), another=hint and place.hints(entry) > 0)
            place.record(report)
            reports.append(report)
            for kind, line in report.lines(min(WIDTH, shown.width)):
                shown.print(Text(line, style=STYLES[kind]))
            if report.failure is not None:
                more = f"check {entry.name} --hint" if report.hints_left else f"solution {entry.name}"
                shown.print(Text(f"    more: allformers practice {more}", style="dim"))
            print()
    passed = sum(report.passed for report in reports)
    print(f"{passed} of {len(reports)} passed")
    if passed < len(reports):
        raise typer.Exit(1)


@practice.command()
def solution(name: Annotated[str, typer.Argument(help="The exercise.")]) -> None:
    """Print the solution of an exercise, and the page that explains it."""
    from allformers.practice.source import answer

    exercise = find(name).load()
    print(answer(exercise))
    print(f"# explained in {exercise.page}, on the site")
