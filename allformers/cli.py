"""The command `allformers`: write with a model, train one, see what one is made of, time one."""

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from allformers.inspection import Summary
    from allformers.tokenizers import Tokenizer

app = typer.Typer(
    name="allformers",
    help="Transformers to read and run: write with a model, train one, see what one is made of, time one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
messages = Console(stderr=True)


class Dtype(StrEnum):
    """What a number is stored as."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class TokenizerName(StrEnum):
    """Which tokenizer reads the prompt."""

    auto = "auto"
    gpt2 = "gpt2"
    bytes = "bytes"


def version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        from allformers import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command as a whole."""


@app.command()
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; read from standard input if left out or -.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A folder, a model's name on the Hugging Face hub, or the bundled model.")
    ] = "bundled",
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit on the hub.")] = None,
    tokenizer: Annotated[
        TokenizerName, typer.Option(help="What turns the prompt into tokens; the checkpoint says, if it can.")
    ] = TokenizerName.auto,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens to write, at most.")] = 300,
    temperature: Annotated[float, typer.Option(help="0 is always the likeliest token; higher is freer.")] = 0.7,
    top_k: Annotated[int | None, typer.Option(help="Choose among that many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest tokens with that much probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; as in the checkpoint if left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
) -> None:
    """Continue a text, and show it as it is written.

    The prompt and its continuation go to standard output; the speed goes to standard error.
    """
    text = _prompt(prompt)
    import torch

    import allformers
    from allformers.tokenizers import NAMED, load_tokenizer

    _announce(model)
    loaded = allformers.load(
        model, revision=revision, dtype=getattr(torch, dtype) if dtype else None, device=_device(device)
    )
    chosen = load_tokenizer(model, loaded.config.vocab_size) if tokenizer is TokenizerName.auto else NAMED[tokenizer]()
    token_ids = chosen.encode(text)
    if not token_ids:
        if chosen.end_of_text is None:
            raise ValueError("there is nothing to continue: the prompt is empty")
        token_ids = [chosen.end_of_text]
    stop_tokens = () if chosen.end_of_text is None else (chosen.end_of_text,)
    tokens = loaded.stream(
        [token_ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=stop_tokens,
    )
    _write(text, chosen, (int(token) for token in tokens), stop_tokens)


def _prompt(prompt: str | None) -> str:
    """The prompt, from the command line or standard input."""
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise ValueError('there is nothing to continue: give a prompt, as in allformers generate "The for statement"')
    return sys.stdin.read()


def _announce(model: str) -> None:
    """Say so before what may take a while: asking the hub."""
    from allformers.checkpoints import is_hub_name

    if is_hub_name(model):
        messages.print(f"[dim]looking for {model} on the Hugging Face hub[/dim]")


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def _write(prompt: str, tokenizer: "Tokenizer", token_ids: Iterator[int], stop_tokens: tuple[int, ...]) -> None:
    """Print a text as it grows, then say how fast it did."""
    times: list[float] = []

    def timed() -> Iterator[int]:
        for token_id in token_ids:
            times.append(time.perf_counter())
            if token_id not in stop_tokens:
                yield token_id

    start = time.perf_counter()
    sys.stdout.write(prompt)
    for piece in tokenizer.decode_stream(timed()):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if times:
        seconds = times[-1] - start
        messages.print(f"[dim]{len(times)} tokens in {seconds:.2f} s, {len(times) / seconds:.1f} tokens/s[/dim]")


@app.command()
def train(
    output: Annotated[Path, typer.Argument(help="A folder for the trained model; made if it is not there.")],
    file: Annotated[
        Path | None, typer.Option(help="A text file to learn from, instead of Python's documentation.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Its highest value.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the weights, the batches and dropout.")] = None,
    validate_every: Annotated[int, typer.Option(help="Steps between measurements of the validation loss.")] = 500,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
) -> None:
    """Train a small byte-level GPT-2; without options, the bundled model again.

    The folder gets the weights in Hugging Face's format, the tokenizer, and `training.json`: the recipe, the corpus's
    digest and the loss reached.
    """
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from allformers import training
    from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
    from allformers.tokenizers import ByteTokenizer

    given = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    recipe = training.Recipe(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    if validate_every < 1:
        raise ValueError(f"validate_every must be at least 1, not {validate_every}")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; the trained model needs a folder")
    place = _device(device)
    text = training.python_documentation() if file is None else _read_text(file)
    tokenizer = ByteTokenizer()
    learn, measure = training.split(torch.tensor(tokenizer.encode(text)), recipe.validation_fraction)
    config = GPT2Config.bundled()
    torch.manual_seed(recipe.seed)
    model = GPT2(config).to(place)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    messages.print(f"{numbers:,} parameters; {len(learn):,} tokens to learn from, {len(measure):,} to measure on")

    validation_loss = float("nan")
    columns = (
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("validation {task.fields[validation]}"),
        TextColumn("{task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages) as bar:
        task = bar.add_task("", total=recipe.steps, loss=float("nan"), validation="-", speed=0.0)
        seconds, clock = 0.0, time.perf_counter()
        for progress in training.train(model, learn, recipe):
            seconds += time.perf_counter() - clock
            if progress.step % validate_every == 0 or progress.step == recipe.steps:
                validation_loss = training.evaluate(model, measure, recipe.seq_length)
                bar.console.print(f"step {progress.step}: loss {progress.loss:.4f}, validation {validation_loss:.4f}")
            bar.update(
                task,
                completed=progress.step,
                loss=progress.loss,
                validation="-" if math.isnan(validation_loss) else f"{validation_loss:.3f}",
                speed=progress.step * recipe.batch_size * recipe.seq_length / seconds,
            )
            clock = time.perf_counter()
    model.save_pretrained(output)
    tokenizer.save(output)
    record = {
        "command": "allformers train",
        "recipe": dataclasses.asdict(recipe),
        "corpus": "pydoc_data.topics" if file is None else file.name,
        "corpus_sha256": training.digest(text),
        "corpus_characters": len(text),
        "parameters": numbers,
        "validation_loss_nats_per_token": round(validation_loss, 4),
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch.__version__,
    }
    (output / "training.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    messages.print(f"saved to {output}; write with it: allformers generate --model {output} PROMPT")


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error


@app.command()
def summary(
    name: Annotated[
        str,
        typer.Argument(
            metavar="PRESET",
            help="tiny, bundled, gpt2-small, gpt2-medium, gpt2-large, gpt2-xl; or a folder or a hub name.",
        ),
    ],
    dtype: Annotated[Dtype, typer.Option(help="Of the weights and the cache.")] = Dtype.float32,
) -> None:
    """Show what a model is made of, with named axes, and what it costs.

    Nothing of the model is allocated, so this takes as little for the largest as for the smallest.
    """
    import torch

    from allformers.checkpoints import CheckpointError
    from allformers.inspection import summarise
    from allformers.models import READING_ORDER, load_config

    presets = {
        preset.replace("_", "-"): (model_class, make)
        for model_class in (entry.load() for entry in READING_ORDER)
        for preset, make in model_class.format.config_class.presets().items()
    }
    if name.replace("_", "-") in presets:
        model_class, make = presets[name.replace("_", "-")]
        config = make()
    else:
        _announce(name)
        try:
            model_class, config = load_config(name)
        except CheckpointError as error:
            raise ValueError(f"{error}. The presets are: {', '.join(presets)}") from error
    _print_summary(summarise(model_class, config, getattr(torch, dtype)), name, config, dtype)


def _print_summary(summary: "Summary", name: str, config: Any, dtype: str) -> None:
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(title=f"{name}: {summary.parameters:,} parameters", title_justify="left", box=None, pad_edge=False)
    table.add_column("module", no_wrap=console.width >= 80)
    table.add_column("axes")
    for heading in ("sizes", "parameters", "MFLOP/token"):
        table.add_column(heading, justify="right", no_wrap=True)
    for part in summary.modules:
        where = part.name if part.copies == 1 else f"{part.copies} x {part.name.partition('*.')[2]}"
        named, shape = part.weights.get("weight", ("scores and mixing", ()))
        parameters = part.parameters * part.copies
        flops = part.flops_per_token * part.copies
        table.add_row(
            where,
            named,
            " x ".join(f"{size:,}" for size in shape),
            f"{parameters:,}" if parameters else "tied" if part.weights else "",
            f"{flops / 1e6:,.2f}" if flops else "",
        )
    table.add_section()
    table.add_row("total", "", "", f"{summary.parameters:,}", f"{summary.flops_per_token / 1e6:,.2f}")
    console.print(table)
    axes = ", ".join(f"{axis} {size:,}" for axis, size in config.axes.items())
    console.print(f"\naxes: {axes}")
    console.print(f"weights in {dtype}: {_size(summary.weight_bytes)}")
    whole = summary.cache_bytes_per_token * config.context_length
    console.print(
        f"cache in {dtype}: {_size(summary.cache_bytes_per_token)} for each token, "
        f"{_size(whole)} for a whole context of {config.context_length:,}"
    )
    console.print(
        "parameters: biases counted in; FLOPs: of a pass over a whole context, for each token, matrix products only"
    )


def _size(number: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= scale:
            return f"{number / scale:,.1f} {unit}"
    return f"{number:,.0f} bytes"


@app.command()
def bench(
    rows: Annotated[
        list[str] | None, typer.Argument(help="Rows to time, by part of their names: prefill, decode, train, linear.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Size of the model.")] = "gpt2-small",
    rounds: Annotated[int, typer.Option(help="How often each contender is timed.")] = 5,
    threads: Annotated[
        int | None, typer.Option(help="Threads for everybody; PyTorch's own choice if left out.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="A file for the figures.")] = None,
) -> None:
    """Time this package beside transformers: same weights, same threads, one process, in turns; checks on.

    The ratio is how many times as long the fastest peer takes: above 1, allformers is faster.
    """
    import torch
    from rich.table import Table

    from allformers import bench as benchmark
    from allformers.models.gpt2.gpt2 import GPT2Config

    presets = GPT2Config.presets()
    if preset.replace("-", "_") not in presets:
        raise ValueError(f"there is no preset {preset}; there are: {', '.join(presets).replace('_', '-')}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)
    config = presets[preset.replace("-", "_")]()
    timings = []
    try:
        for timing in benchmark.run(config, rows or (), rounds):
            timings.append(timing)
            messages.print(f"[dim]{timing.row}: {timing.ratio:.2f}[/dim]")
    except ImportError as error:
        raise ValueError(str(error)) from error
    names = list(dict.fromkeys(name for timing in timings for name in timing.milliseconds))
    table = Table(title=f"{preset}, float32, {torch.get_num_threads()} threads, median of {rounds}, in ms", box=None)
    table.add_column("", no_wrap=True)
    for name in (*names, "ratio"):
        table.add_column(name, justify="right")
    for timing in timings:
        cells = (f"{timing.median(name):,.1f}" if name in timing.milliseconds else "" for name in names)
        table.add_row(timing.row, *cells, f"{timing.ratio:.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if output is not None:
        figures = {timing.row: {"milliseconds": timing.milliseconds, "ratio": timing.ratio} for timing in timings}
        about = {"preset": preset, "dtype": "float32", "threads": torch.get_num_threads(), "torch": torch.__version__}
        output.write_text(json.dumps({**about, "rows": figures}, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the command: exit status 2 and one line on standard error for bad input."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "critical")  # each of its retries would be a paragraph
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        status = 130
    except BrokenPipeError:  # the reader of our output has gone: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (ValueError, TypeError, OSError, typer.Abort) as error:
        status = _complain(error)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a usage error: ours to mend, so show where it happened
            raise
        status = _complain(error)
    raise SystemExit(status if isinstance(status, int) else 0)


def _complain(error: BaseException) -> int:
    describe = getattr(error, "format_message", None)
    message = describe() if describe else str(error) or type(error).__name__
    print("allformers:", "; ".join(line.strip() for line in message.splitlines()), file=sys.stderr)
    return 2
