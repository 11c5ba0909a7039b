"""`allformers trace`: list every named operation of a pass."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from allformers.cli.console import Dtype, encode, find_config, load_model

if TYPE_CHECKING:
    from allformers.inspection import Trace


class Form(StrEnum):
    """The output format of a trace."""

    table = "table"
    json = "json"
    mermaid = "mermaid"


def trace(
    name: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A preset (tiny, gpt2-xl, llama3-1-8b ...), a folder, or a hub name."),
    ],
    prompt: Annotated[str | None, typer.Option(help="Load the model and run it on this text, with times.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences, without a prompt.")] = 1,
    seq: Annotated[int | None, typer.Option(help="Tokens, without a prompt; a whole context if left out.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights, without a prompt.")] = Dtype.float32,
    form: Annotated[Form, typer.Option("--format", help="A table, JSON, or a diagram for Mermaid.")] = Form.table,
    everything: Annotated[bool, typer.Option("--all", help="Show each layer, not one for all that are alike.")] = False,
    output: Annotated[Path | None, typer.Option(help="A file to write to instead of the screen.")] = None,
) -> None:
    """List every named operation of a pass, with the size of each axis, FLOPs and bytes.

    Without a prompt nothing is computed, so this takes as little for the largest model as for the smallest.
    """
    import torch
    from einops import rearrange

    from allformers import inspection

    if prompt is not None:
        loaded, tokenizer = load_model(name)
        token_ids = rearrange(encode(prompt, tokenizer, loaded.config.context_length), "seq -> 1 seq")
        loaded(token_ids) if form is not Form.mermaid else None  # warm-up, so that lazy initialisation is not timed
        traced = inspection.trace(loaded, token_ids, name)
    else:
        model_class, config = find_config(name)
        seq = config.context_length if seq is None else seq
        if batch < 1 or not 1 <= seq <= config.context_length:
            raise ValueError(
                f"batch must be at least 1 and seq from 1 to {config.context_length}, not {batch} and {seq}"
            )
        on_meta = inspection.meta_model(model_class, config, getattr(torch, dtype))
        inputs = on_meta.dummy_input(batch, seq, "meta")
        inputs = inputs.to(getattr(torch, dtype)) if inputs.is_floating_point() else inputs
        traced = inspection.trace(on_meta, inputs, name)
    if form is Form.table:
        if output is None:
            _print_trace(traced, everything, Console(width=None if sys.stdout.isatty() else 180))
        else:
            with output.open("w", encoding="utf-8") as file:
                _print_trace(traced, everything, Console(file=file, width=180))
        return
    text = traced.to_json() + "\n" if form is Form.json else traced.to_mermaid()
    print(text, end="") if output is None else output.write_text(text, encoding="utf-8")


def _print_trace(traced: "Trace", everything: bool, console: Console) -> None:
    from rich.table import Table

    timed = any(operation.milliseconds is not None for operation in traced.operations)
    table = Table(box=None, pad_edge=False, title=traced.title, title_justify="left")
    for heading in ("module", "line", "operation", "pattern", "sizes"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("module", "line", "operation"))
    for heading in ("MFLOP", "MB read", "MB written", *(["ms"] if timed else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [(operation, 1) for operation in traced.operations] if everything else traced.collapsed()
    for operation, count in rows:
        cells = [
            (f"{count} x " if count > 1 else "") + (operation.module or "(model)"),
            f"{Path(operation.file).name}:{operation.line}",
            operation.kind,
            operation.pattern,
            ", ".join(f"{axis} {size:,}" for axis, size in operation.sizes.items()),
            f"{count * operation.flops / 1e6:,.2f}" if operation.flops else "",
            f"{count * operation.bytes_read / 1e6:,.2f}",
            f"{count * operation.bytes_written / 1e6:,.2f}" if operation.bytes_written else "view",
        ]
        table.add_row(*cells, *([f"{operation.milliseconds or 0.0:,.3f}"] if timed else []))
    console.print(table, markup=False, highlight=False)
    console.print(
        f"\n{len(traced.operations):,} operations, {traced.flops / 1e9:,.3f} GFLOPs; in MFLOPs:", highlight=False
    )
    for module, flops in (traced.by_module() if everything else traced.by_kind_of_module()).items():
        console.print(f"  {module or '(model)'}: {flops / 1e6:,.2f}", highlight=False)
