"""`allformers generate`: write with a model."""

import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Annotated

import typer

from allformers.cli.console import (
    LAYOUT_HELP,
    Dtype,
    Layout,
    announce,
    find_device,
    lay_out,
    messages,
    require_decoder,
)
from allformers.cli.threads import choose_threads, mean_product

if TYPE_CHECKING:
    from torch import Tensor

    from allformers.inputs.tokenizers import Tokenizer


class TokenizerName(StrEnum):
    """Which tokenizer reads the prompt."""

    auto = "auto"
    gpt2 = "gpt2"
    bytes = "bytes"


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
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            help="Tokens to write, at most; if left out 200, or what the model's context has room for.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is always the likeliest token; higher is freer.")] = 0.7,
    top_k: Annotated[int | None, typer.Option(help="Choose among that many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose among the likeliest tokens with that much probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Of the weights; as in the checkpoint if left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps ...")] = "cpu",
    weights: Annotated[Layout, typer.Option(help=LAYOUT_HELP)] = Layout.plain,
    prefill: Annotated[
        int | None, typer.Option(help="Read a long prompt in pieces of so many tokens, which takes less memory.")
    ] = None,
    compile: Annotated[  # noqa: A002
        bool, typer.Option(help="Compile all that happens between two tokens; takes some 10 to 30 seconds first.")
    ] = False,
) -> None:
    """Continue a text, and show it as it is written.

    The prompt and its continuation go to standard output; the speed goes to standard error.
    """
    text = _prompt(prompt)
    import torch

    import allformers
    from allformers.inputs.tokenizers import NAMED, load_tokenizer

    announce(model)
    loaded = allformers.load(
        model, revision=revision, dtype=getattr(torch, dtype) if dtype else None, device=find_device(device)
    )
    require_decoder(loaded, model)
    product = mean_product(loaded)
    choose_threads(product)
    lay_out(loaded, weights)
    chosen = load_tokenizer(model, loaded.config.vocab_size) if tokenizer is TokenizerName.auto else NAMED[tokenizer]()
    token_ids = chosen.encode(text)
    if not token_ids:
        if chosen.eos_token_id is None:
            raise ValueError("there is nothing to continue: the prompt is empty")
        token_ids = [chosen.eos_token_id]
    if max_new_tokens is None:
        room = loaded.config.context_length - len(token_ids)
        max_new_tokens = min(200, room) if room > 0 else 200
    stop_tokens = () if chosen.eos_token_id is None else (chosen.eos_token_id,)
    stream = partial(
        loaded.stream,
        [token_ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=stop_tokens,
        prefill=prefill,
    )
    if compile:
        from allformers.speed.steps import CompiledSteps, compile_steps

        if isinstance(compile_steps(loaded).decode_step, CompiledSteps):
            messages.print("[dim]compiling: some 10 to 30 seconds[/dim]")
            list(islice(stream(), 2))
    seq = len(token_ids) if prefill is None else min(prefill, len(token_ids))
    rows = _rows_read(seq, len(token_ids), loaded.config.context_length)
    _write(text, chosen, _with_threads(stream(), rows, product), stop_tokens)


def _rows_read(prefill: int, prompt: int, context: int) -> Iterator[int]:
    """Positions that the model reads for each new token: the prompt's, then one, and all once the window slides."""
    yield min(prefill, context)
    for length in count(prompt):
        yield 1 if length < context else context


def _with_threads(tokens: "Iterator[Tensor]", rows: Iterator[int], product: float) -> Iterator[int]:
    """The token ids as they come, each step with the threads that its work is worth."""
    for seq in rows:
        choose_threads(seq * product)
        token = next(tokens, None)
        if token is None:
            return
        yield int(token)


def _prompt(prompt: str | None) -> str:
    """The prompt, from the command line or standard input."""
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise ValueError('there is nothing to continue: give a prompt, as in allformers generate "The for statement"')
    return sys.stdin.read()


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
