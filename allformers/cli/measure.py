"""`allformers summary`, `evaluate`, `bench` and `family`: parameters and costs, perplexity, speed, the family tree."""

import json
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from allformers.cli.console import (
    MODEL_HELP,
    WEIGHTS_HELP,
    Dtype,
    WeightFormat,
    announce_download,
    find_config,
    find_device,
    find_presets,
    format_bytes,
    messages,
    prepare_for_inference,
    read_text,
    require_decoder,
)
from allformers.cli.threads import mean_macs_per_row, set_threads_for

if TYPE_CHECKING:
    from allformers.inspection import Summary


def summary(
    name: Annotated[
        str,
        typer.Argument(
            metavar="PRESET",
            help="A preset (tiny, bundled, gpt2-small, llama3-1-8b ...), a folder or a hub name.",
        ),
    ],
    dtype: Annotated[Dtype, typer.Option(help="The dtype of the weights and the KV cache.")] = Dtype.float32,
) -> None:
    """Print a model's weights with named axes, and its parameters, FLOPs and memory.

    No memory is allocated for the model, so this works for the largest as for the smallest.
    """
    import torch

    from allformers.inspection import summarise

    model_class, config = find_config(name)
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
    console.print(f"weights in {dtype}: {format_bytes(summary.weight_bytes)}")
    whole = summary.cache_bytes_per_token * config.context_length
    console.print(
        f"cache in {dtype}: {format_bytes(summary.cache_bytes_per_token)} for each token, "
        f"{format_bytes(whole)} for a whole context of {config.context_length:,}"
    )
    console.print(
        "parameters include biases; FLOPs are per token, of a forward pass over a whole context, matrix products only"
    )


def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    text: Annotated[str, typer.Argument(help="A text file, or - for standard input.")],
    stride: Annotated[
        int | None,
        typer.Option(
            help="Tokens by which the window moves. Default: one less than the window, so that each is predicted once."
        ),
    ] = None,
    window: Annotated[int | None, typer.Option(help="Tokens in a window. Default: the model's context.")] = None,
    batch_size: Annotated[int, typer.Option(help="Windows in a batch.")] = 1,
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit on the hub.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="The dtype of the weights. Default: the checkpoint's.")] = None,
    device: Annotated[
        str, typer.Option(help="The device: cpu, cuda, mps ...; auto is a GPU if there is one.")
    ] = "auto",
    weights: Annotated[WeightFormat, typer.Option(help=WEIGHTS_HELP)] = WeightFormat.plain,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measure how well a model predicts a text: perplexity and bits per byte.

    The text is evaluated in windows of at most the model's context. A window's first token has no
    context and is not predicted, so by default windows overlap by one token, and all tokens but the
    text's first are predicted once. A shorter stride gives tokens more context, and takes longer.
    """
    import torch

    import allformers
    from allformers.inputs.tokenizers import load_tokenizer
    from allformers.training import evaluation

    content = read_text(text)
    announce_download(model)
    loaded = allformers.load(
        model, revision=revision, dtype=getattr(torch, dtype) if dtype else None, device=find_device(device)
    )
    require_decoder(loaded, model)
    macs = mean_macs_per_row(loaded)  # before weights are quantized
    prepare_for_inference(loaded, weights)
    token_ids = torch.tensor(
        load_tokenizer(model, loaded.config.vocab_size, revision).encode(content), dtype=torch.long
    )
    context = loaded.config.context_length
    window = context if window is None else window
    if window > context + 1:
        raise ValueError(
            f"a window of {window} tokens is too long: the context of {model} is {context}, so a window has at most "
            f"{context + 1} tokens, the last of which is only predicted"
        )
    stride = max(1, window - 1) if stride is None else stride
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    set_threads_for(min(window, len(token_ids)) * batch_size * macs)
    found = evaluation.evaluate(loaded, token_ids, window, stride, batch_size)
    size, words = len(content.encode()), max(1, len(content.split()))
    figures = {
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte(len(token_ids), size),
        "word_perplexity": evaluation.perplexity(found.nats_per_unit(len(token_ids), words)),
        "tokens": len(token_ids),
        "predicted_tokens": found.num_tokens,
        "bytes": size,
        "words": words,
        "window": window,
        "stride": stride,
    }
    print(f"perplexity          {figures['perplexity']:,.4f}")
    print(f"loss                {figures['loss']:.4f} nats a token")
    print(f"bits per byte       {figures['bits_per_byte']:.4f}")
    print(f"perplexity by word  {figures['word_perplexity']:,.4f}  (words are separated by white space)")
    print(
        f"{found.num_tokens:,} of {len(token_ids):,} tokens predicted; {size:,} bytes, {words:,} words; "
        f"window {window:,}, stride {stride:,}"
    )
    if output is not None:
        output.write_text(json.dumps({"model": model, **figures}, indent=2) + "\n", encoding="utf-8")


def bench(
    rows: Annotated[
        list[str] | None,
        typer.Argument(
            help="Rows to measure, by part of their names: prefill, decode, train, load, import, call, linear; for "
            "encoders, forward; and scale, which runs only on request. Default: all but scale."
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="A preset of any model of the family.")] = "gpt2-small",
    rounds: Annotated[int, typer.Option(help="Rounds, in each of which every contender runs once.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of all contenders. Default: PyTorch's choice.")] = None,
    device: Annotated[str, typer.Option(help="The device: cpu, cuda, cuda:1 ...")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="The dtype of the weights, except in training.")] = Dtype.float32,
    precision: Annotated[
        str, typer.Option(help="The precision of training: float32, or bfloat16 by autocast.")
    ] = "float32",
    compile: Annotated[  # noqa: A002
        bool, typer.Option(help="Compile all models for training and single calls, and transformers' for all rows.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
) -> None:
    """Measure this package beside transformers: same weights, same threads, one process, in turns; checks on.

    The ratio is the speed-up over the fastest peer: peer time / our time, median over rounds; likewise for memory. The
    roofline is the least that the machine could take, by its peak rates in the same run; for the row call, the time of
    a pass recorded by TorchScript.
    """
    import torch
    from rich.table import Table

    from allformers.benchmark.contenders import OURS, Settings
    from allformers.benchmark.run import run
    from allformers.generation.decoder import Decoder
    from allformers.training.recipes import PRECISIONS

    if precision not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, not {precision!r}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        torch.set_num_threads(threads)
    presets = find_presets()
    if preset.replace("_", "-") not in presets:
        raise ValueError(f"there is no preset {preset}; there are: {', '.join(presets)}")
    model_class, config = presets[preset.replace("_", "-")]
    if not issubclass(model_class, Decoder):
        messages.print(f"[dim]{model_class.__name__} is an encoder: it has no rows decode and train[/dim]")
    settings = Settings(str(find_device(device)), dtype, precision, compile)
    measured = []
    try:
        for row in run(config, rows or (), rounds, settings):
            measured.append(row)
            messages.print(f"[dim]{row.name}: {row.ratio():.2f}[/dim]")
    except ImportError as error:
        raise ValueError(str(error)) from error
    how = f"{dtype}{', compiled' if compile else ''}, {device}, {torch.get_num_threads()} threads"
    table = Table(title=f"{preset}, {how}, median of {rounds} ± half the spread", box=None, title_justify="left")
    for name in ("", "", "time", "ratio", "times the roofline"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for row in measured:
        for place, name in enumerate(row.measured):
            ratio = f"{row.ratio(name):.2f}" if name.startswith(OURS) else ""
            taken = f"{row.median(name):,.1f} {row.unit} ±{row.spread(name):4.0%}"
            roofline = f"{row.median(name) / row.roofline:.2f}" if row.roofline else ""
            table.add_row("" if place else row.name, name, taken, ratio, roofline)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if output is not None:
        figures = {row.name: row.to_record() for row in measured}
        about = {"preset": preset, "torch": torch.__version__, "threads": torch.get_num_threads()}
        about |= {"transformers": version("transformers"), "device": device, "dtype": dtype, "precision": precision}
        about |= {"compile": compile, "rounds": rounds, "command": shlex.join(["allformers", *sys.argv[1:]])}
        output.write_text(json.dumps({**about, "rows": figures}, indent=2) + "\n", encoding="utf-8")


def family() -> None:
    """Print the family tree of the models, from the imports of their files, with what each added."""
    from rich.tree import Tree

    from allformers.inspection.family import family as members

    branches: dict[str | None, Tree] = {None: Tree("transformers", hide_root=True)}
    for member in members():
        others = f" [dim](parts of {', '.join(member.takes_from)} too)[/dim]" if member.takes_from else ""
        size = f"{member.lines} lines of code: {member.modules} of modules, {member.configuration} of configuration, "
        size += f"{member.tables} of tables"
        line = f"[bold]{member.entry.name}[/bold]: {member.added} {size}{others}"
        branches[member.entry.name] = branches[member.parent].add(line)
    Console(width=None if sys.stdout.isatty() else 120).print(branches[None])
