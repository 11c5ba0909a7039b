"""The command `allformers`: generate text, train, evaluate, inspect and benchmark models."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, TextIO

import typer

from allformers.cli.check import check
from allformers.cli.compare import compare
from allformers.cli.experiment import ExperimentCommand, experiment
from allformers.cli.inspect import inspect
from allformers.cli.learn import data, train
from allformers.cli.measure import bench, evaluate, family, summary
from allformers.cli.practice import practice
from allformers.cli.show import show
from allformers.cli.threads import set_passive_wait_policy
from allformers.cli.trace import trace
from allformers.cli.write import generate

app = typer.Typer(
    name="allformers",
    help="Readable transformers: generate text, train, evaluate, inspect and benchmark models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from allformers import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Apply the options of the whole command."""
    if context.invoked_subcommand != "bench":  # which measures all contenders with PyTorch's own settings
        set_passive_wait_policy()


app.command()(generate)
app.add_typer(train)
app.add_typer(data)
app.command()(evaluate)
app.command()(summary)
app.command()(inspect)
app.command()(trace)
app.command()(show)
app.command()(check)
app.command()(compare)
app.command(cls=ExperimentCommand)(experiment)
app.command()(bench)
app.command()(family)
app.add_typer(practice)


def main() -> None:
    """Run the command: exit status 2 and one line on standard error for bad input."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # each of its retries would be a paragraph
    status = _run() if _streams_are_open() else 2
    # What is left is written here, where an error can still be said, and not when Python ends.
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard(1)
    except OSError as error:
        _discard(1)
        status = _print_error(ValueError(f"standard output cannot be written to: {error.strerror}"))
    raise SystemExit(status if isinstance(status, int) else 0)


def _run() -> Any:
    """Run the command, and return its exit status."""
    try:
        with _plain_warnings():
            return app(standalone_mode=False)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has closed it, which is no error
        return 0
    except SystemExit as end:  # typer ends so when the reader has gone
        return 0 if isinstance(end.__context__, BrokenPipeError) else end.code
    except (ValueError, TypeError, OSError, typer.Abort) as error:
        return _print_error(error)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error but a bug: show where it happened
            raise
        return _print_error(error)


def _streams_are_open() -> bool:
    """Make the standard streams fit to write to; False, with a line of why, if there is no standard output.

    Python has None for a stream that is closed, as services and cron close them. The next file that is opened would
    take its number, and so whatever is printed.
    """
    if sys.stderr is None:
        _discard(2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  (until the process ends)
    if sys.stdout is None:
        print("allformers: standard output is closed: redirect it to a file or to /dev/null", file=sys.stderr)
        _discard(1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        return False
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may not know a character: show ? instead of breaking off
        sys.stdout.reconfigure(errors="replace")
    return True


def _discard(descriptor: int) -> None:
    """Let what is written to a standard stream from here on go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print each warning once, in one line, without the line of source that Python shows."""
    shown: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if str(message) not in shown and os.environ.get("RANK", "0") == "0":
            print("allformers: warning:", message, file=sys.stderr)
        shown.add(str(message))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _print_error(error: BaseException) -> int:
    """Print an error in one line and return the exit status."""
    describe = getattr(error, "format_message", None)
    message = describe() if describe else str(error) or type(error).__name__
    if os.environ.get("RANK", "0") == "0":  # of several processes that fail alike, only one prints
        try:
            print("allformers:", "; ".join(line.strip() for line in message.splitlines()), file=sys.stderr, flush=True)
        except OSError:  # a full disk takes no message either
            _discard(2)
    return 2
