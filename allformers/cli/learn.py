"""`allformers train` and `allformers data`: train by a recipe, draw loss curves, tokenise a text."""

import contextlib
import dataclasses
import inspect
import os
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
import typer.main
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from allformers.cli.console import find_device, messages
from allformers.cli.threads import set_threads_for

if TYPE_CHECKING:
    from allformers.training.recipes import Recipe
    from allformers.training.runs import LogEntry

DERIVED_FIELDS = {
    "vocab_size": "the tokenizer",
    "context_length": "seq_length",
    "mlp_dim": "embedding_dim: four times as wide",
}
"""Fields of a model's configuration that are no options, and the setting that each follows from."""


class _Recipes(TyperGroup):
    """Group of the recipes' commands, each made when it is first used, since its imports take a second."""

    def list_commands(self, ctx: Any) -> list[str]:
        from allformers.training.recipes import RECIPES

        return [*RECIPES, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from allformers.training.recipes import RECIPES

        if cmd_name not in RECIPES:
            return super().get_command(ctx, cmd_name)
        alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
        alone.command(cmd_name)(_command(RECIPES[cmd_name]))
        return typer.main.get_command(alone)


train = typer.Typer(
    name="train",
    cls=_Recipes,
    help="""Train a model by a recipe, or draw the curves of runs.

    Every value of a recipe can be changed: allformers train RECIPE --help shows them all, and the loss to expect.""",
    no_args_is_help=True,
)
data = typer.Typer(name="data", help="Prepare texts to train on.", no_args_is_help=True)


def documented(described: type) -> dict[str, str]:
    """Parse a description of each attribute from the docstring of a class, or from the comment behind each field."""
    section = (inspect.getdoc(described) or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, flags=re.MULTILINE)
    if entries:
        return {name: " ".join(text.split()).rstrip(".").replace("`", "") for name, text in entries}
    fields = re.findall(r"^    (\w+): [^#\n]*# (.*)$", inspect.getsource(described), flags=re.MULTILINE)
    return {name: _without_names_first(comment) for name, comment in fields}


def _without_names_first(comment: str) -> str:
    """Move the names in `config.json`, with which a field's comment begins, to its end."""
    names, _, meaning = comment.partition(": ")
    if not all("_" in word for word in re.split(", | and ", names)):
        return comment
    return f"{meaning} ({names} in config.json)" if meaning else f"called {names} in config.json"


def _option(owner: type, field: "dataclasses.Field[Any]", value: Any, panel: str) -> inspect.Parameter:
    """Make a command-line option of a dataclass's field, with the field's description as help."""
    kind = get_type_hints(owner)[field.name]
    about = documented(owner)[field.name].replace("if None", "if left out")
    option = typer.Option(help=about[0].upper() + about[1:], rich_help_panel=panel, show_default=value != "")
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=Annotated[kind, option]
    )


def _is_plain(kind: Any) -> bool:
    """True if a value of this type can be given on a command line."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return set(kinds) <= {bool, int, float, str, type(None)}


def _command(make: Callable[[], "Recipe"]) -> Callable[..., None]:
    """Make the command that trains by a recipe, with an option for each of its fields."""
    from allformers.training.recipes import Recipe
    from allformers.training.runs import Budget

    recipe = make()
    shape = type(recipe.model)
    recipe_fields = [f for f in dataclasses.fields(Recipe) if _is_plain(get_type_hints(Recipe)[f.name])]
    shape_fields = [f for f in dataclasses.fields(shape) if f.name not in DERIVED_FIELDS]
    budget_fields = dataclasses.fields(Budget)

    def run_command(output: Path, file: Path | None, resume: bool, device: str, parallel: str, **options: Any) -> None:
        from allformers.training.recipes import init_from_checkpoint

        def chosen(fields: Any) -> dict[str, Any]:
            return {field.name: options[field.name] for field in fields}

        changed = {
            field: value for field, value in chosen(shape_fields).items() if value != getattr(recipe.model, field)
        }
        mlp_dim = options["embedding_dim"] * recipe.model.mlp_dim // recipe.model.embedding_dim
        model = dataclasses.replace(
            recipe.model, **chosen(shape_fields), context_length=options["seq_length"], mlp_dim=mlp_dim
        )
        asked = dataclasses.replace(recipe, model=model, **chosen(recipe_fields))
        if options["init_from"]:
            if changed:
                raise ValueError(
                    f"{', '.join(changed)} cannot be changed: the model comes from the checkpoint "
                    f"{options['init_from']}"
                )
            asked = init_from_checkpoint(asked, options["init_from"])
        _train(asked, output, file, resume, Budget(**chosen(budget_fields)), device, parallel, options["tensorboard"])

    def parameter(name: str, kind: Any, about: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
        kind = Annotated[kind, about]
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    paragraphs = (inspect.getdoc(make) or "").split("\n\n")
    # Without line breaks in a paragraph: the help breaks lines at the width of the window.
    run_command.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    run_command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            parameter(
                "output", Path, typer.Argument(metavar="OUTPUT", help="The run's folder; made if it does not exist.")
            ),
            parameter(
                "file",
                Path | None,
                typer.Option(help="The file of the recipe's corpus, instead of a download; its SHA-256 is checked."),
                None,
            ),
            parameter("resume", bool, typer.Option(help="Resume from the folder's newest checkpoint, if any."), False),
            parameter("device", str, typer.Option(help="cpu, cuda, mps ...; auto is a GPU if there is one."), "auto"),
            parameter(
                "parallel",
                str,
                typer.Option(help="Under torchrun: ddp (each process has the model) or fsdp (each has a shard of it)."),
                "ddp",
            ),
            parameter("tensorboard", bool, typer.Option(help="Write the metrics for TensorBoard too."), False),
            *(_option(Budget, field, field.default, "Stop early") for field in budget_fields),
            *(_option(Recipe, field, getattr(recipe, field.name), "The recipe") for field in recipe_fields),
            *(_option(shape, field, getattr(recipe.model, field.name), "The model") for field in shape_fields),
        ]
    )
    run_command.__annotations__ = {}
    return run_command


def _train(
    recipe: "Recipe",
    output: Path,
    file: Path | None,
    resume: bool,
    budget: Any,
    device: str,
    parallel: str,
    tensorboard: bool,
) -> None:
    """Train, and show progress on standard error, by the main process only."""
    from allformers.training.runs import find_checkpoints, read_result
    from allformers.training.train import train

    rows = (recipe.micro_batch_size or recipe.batch_size) * recipe.seq_length
    set_threads_for(rows * 3 * recipe.model.embedding_dim**2)  # a linear layer of a decoder has about so many weights
    is_main_process = os.environ.get("RANK", "0") == "0"
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TextColumn("{task.fields[mfu]:.0%} MFU"),
        TimeRemainingColumn(),
    )
    entry: LogEntry | None = None
    with _PreparationBar() as on_progress, contextlib.ExitStack() as shown:
        bar = Progress(*columns, console=messages, disable=not is_main_process)
        task = bar.add_task("", total=recipe.steps, loss=float("nan"), speed=0.0, mfu=0.0)
        for entry in train(
            recipe,
            output,
            file=file,
            resume=resume,
            budget=budget,
            device=find_device(device),
            parallel=parallel,
            tensorboard=tensorboard,
            on_progress=on_progress,
        ):
            if not bar.live.is_started:  # not before there is something to show
                shown.enter_context(bar)
            speed = entry.tokens_per_second
            bar.update(task, completed=entry.step, loss=entry.loss, speed=speed, mfu=entry.mfu or 0.0)
            if is_main_process and (entry.validation_loss is not None or entry.sample is not None):
                _print_entry(entry)
    if not is_main_process:
        return
    result = read_result(output)
    where = output if result["step"] == recipe.steps else find_checkpoints(output)[-1]
    messages.print(f"{result['stop_reason']}, at step {result['step']:,}, after {result['seconds']:,.0f} s of training")
    messages.print(f"write with it: allformers generate --model {where} PROMPT", soft_wrap=True, highlight=False)


def _print_entry(entry: "LogEntry") -> None:
    """Print a validation or a sample, above the progress bar."""
    validation = "" if entry.validation_loss is None else f", validation {entry.validation_loss:.4f}"
    messages.print(
        f"step {entry.step:,}: loss {entry.loss:.4f}{validation}, {entry.tokens_per_second:,.0f} tokens/s, "
        f"{entry.seconds:,.0f} s"
    )
    if entry.sample is not None:
        messages.print(entry.sample, style="dim", soft_wrap=True, markup=False, highlight=False)


class _PreparationBar:
    """Progress bar of a text's preparation, not shown for one that is done at once."""

    def __init__(self) -> None:
        self.bar = Progress(
            TextColumn("preparing"),
            BarColumn(),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=messages,
            transient=True,
        )
        self.task: Any = None

    def __enter__(self) -> "_PreparationBar":
        return self

    def __call__(self, done: int, total: int) -> None:
        if self.task is None and done < total:
            self.bar.start()
            self.task = self.bar.add_task("", total=total)
        if self.task is not None:
            self.bar.update(self.task, completed=done)
            if done >= total:
                self.bar.stop()

    def __exit__(self, *_: object) -> None:
        if self.bar.live.is_started:
            self.bar.stop()


@train.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, to be drawn in one figure.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The figure's path, without its ending; by default `losses` in the first folder."),
    ] = None,
    by: Annotated[str, typer.Option(help="The x axis: steps, tokens or seconds.")] = "steps",
) -> None:
    """Draw the loss curves of runs, as PNG and as SVG."""
    from allformers.inspection.figures import save
    from allformers.training.curves import loss_curves

    place = output or runs[0] / "losses"
    for path in save(loss_curves(runs, by), place):
        print(path)


@data.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="hello-world, python-docs, tiny-shakespeare; a text file, a folder of them, or -.")
    ],
    output: Annotated[Path, typer.Argument(help="A new folder for the tokens.")],
    tokenizer: Annotated[str, typer.Option(help="bytes, characters or gpt2; or a checkpoint's name.")] = "bytes",
    file: Annotated[Path | None, typer.Option(help="The file of a named corpus, instead of a download.")] = None,
    glob: Annotated[str, typer.Option(help="Pattern of the files to take from a folder.")] = "**/*",
) -> None:
    """Tokenise a text once: `allformers train RECIPE --corpus OUTPUT` then maps the tokens into memory.

    So a text may be larger than memory. The SHA-256 hashes tell whether two machines have prepared the same.
    """
    import allformers.training.data as texts
    from allformers.inputs.tokenizers import load_tokenizer
    from allformers.models.registry import load_config

    chosen: Any = tokenizer
    if tokenizer not in texts.TOKENIZERS:
        chosen = load_tokenizer(tokenizer, load_config(tokenizer)[1].vocab_size)
    with _PreparationBar() as on_progress:
        tokens = texts.prepare(source, output, chosen, file=file, glob=glob, on_progress=on_progress)
    print(
        f"{len(tokens.ids):,} tokens of {tokens.tokenizer.vocab_size:,} kinds, from {tokens.num_bytes:,} bytes of text"
    )
    print(f"text    SHA-256 {tokens.text_sha256}")
    print(f"tokens  SHA-256 {tokens.tokens_sha256}")
