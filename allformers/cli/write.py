"""`allformers generate`: continue a prompt with a model."""

import sys
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Annotated

import typer

from allformers.cli.console import (
    WEIGHTS_HELP,
    Dtype,
    Model,
    WeightFormat,
    announce_download,
    find_device,
    messages,
    prepare_for_inference,
    read_text,
    require_decoder,
)
from allformers.cli.threads import mean_macs_per_row, set_threads_for

if TYPE_CHECKING:
    from torch import Tensor

    from allformers.inputs.tokenizers import Tokenizer


class TokenizerName(StrEnum):
    """Tokenizers for the prompt; "auto" is the checkpoint's."""

    auto = "auto"
    gpt2 = "gpt2"
    bytes = "bytes"


def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue. Default, and -: standard input.")] = None,
    model: Model = "bundled",
    revision: Annotated[str | None, typer.Option(help="A branch, tag or commit on the hub.")] = None,
    tokenizer: Annotated[
        TokenizerName, typer.Option(help="The tokenizer; auto is the checkpoint's.")
    ] = TokenizerName.auto,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "-n",
            help="The most tokens to generate. Default: 200, or fewer if the context is full before.",
            show_default=False,
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="The softmax temperature; 0 is greedy decoding.")] = 0.7,
    top_k: Annotated[int | None, typer.Option(help="Sample from that many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Nucleus sampling: from the likeliest tokens that together have this probability."),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="End the text before this one, beside the model's own end of text; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The random seed: the same seed gives the same text.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="The dtype of the weights. Default: the checkpoint's.")] = None,
    device: Annotated[str, typer.Option(help="The device: cpu, cuda, cuda:1, mps ...")] = "cpu",
    weights: Annotated[WeightFormat, typer.Option(help=WEIGHTS_HELP)] = WeightFormat.plain,
    prefill_chunk_size: Annotated[
        int | None, typer.Option(help="Prefill in chunks of so many tokens, which takes less memory.")
    ] = None,
    compile: Annotated[  # noqa: A002
        bool, typer.Option(help="Compile the decoding step; this takes some 10 to 30 seconds first.")
    ] = False,
) -> None:
    """Generate text that continues a prompt, and print each token as it comes.

    The prompt and its continuation go to standard output; the speed goes to standard error.
    """
    text = _prompt(prompt)
    if stop is not None and "" in stop:
        raise ValueError("--stop needs a text, and the empty one is everywhere")
    import torch

    import allformers
    from allformers.inputs.tokenizers import TOKENIZER_CLASSES, load_tokenizer

    announce_download(model)
    loaded = allformers.load(
        model, revision=revision, dtype=getattr(torch, dtype) if dtype else None, device=find_device(device)
    )
    require_decoder(loaded, model)
    macs = mean_macs_per_row(loaded)
    set_threads_for(macs)
    prepare_for_inference(loaded, weights)
    chosen = (
        load_tokenizer(model, loaded.config.vocab_size, revision)
        if tokenizer is TokenizerName.auto
        else TOKENIZER_CLASSES[tokenizer]()
    )
    token_ids = chosen.encode(text)
    if not token_ids:
        if chosen.eos_token_id is None:
            raise ValueError("the prompt is empty, and the tokenizer has no token to begin a text with")
        token_ids = [chosen.eos_token_id]
    if max_new_tokens is None:
        room = loaded.config.context_length - len(token_ids)
        max_new_tokens = min(200, room) if room > 0 else 200
    stream = partial(
        loaded.stream,
        [token_ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_tokens=chosen.eos_token_ids,
        prefill_chunk_size=prefill_chunk_size,
    )
    if compile:
        from allformers.speed.steps import CompiledSteps, compile_steps

        if isinstance(compile_steps(loaded).decode_step, CompiledSteps):
            messages.print("[dim]compiling: some 10 to 30 seconds[/dim]")
            list(islice(stream(), 2))
    seq = len(token_ids) if prefill_chunk_size is None else min(prefill_chunk_size, len(token_ids))
    rows = _rows_read(seq, len(token_ids), loaded.config.context_length)
    _write(text, chosen, token_ids, _with_threads(stream(), rows, macs), stop or [])


def _rows_read(first_pass: int, prompt: int, context: int) -> Iterator[int]:
    """Positions computed for each new token: the prompt's, then one, then a whole context once the window slides."""
    yield min(first_pass, context)
    for length in count(prompt):
        yield 1 if length < context else context


def _with_threads(tokens: "Iterator[Tensor]", rows: Iterator[int], macs: float) -> Iterator[int]:
    """Yield the token ids as they come, and set the number of threads before each step by its size."""
    for seq in rows:
        set_threads_for(seq * macs)
        token = next(tokens, None)
        if token is None:
            return
        yield int(token)


def _prompt(prompt: str | None) -> str:
    """The prompt, from the command line or standard input.

    Raises:
        ValueError: there is none, or it is not UTF-8.
    """
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None or (prompt is None and sys.stdin.isatty()):
        raise ValueError('there is no prompt: give one, as in allformers generate "The for statement"')
    return read_text("-").replace("\r\n", "\n")


def _write(
    prompt: str, tokenizer: "Tokenizer", prompt_ids: list[int], token_ids: Iterator[int], stop: Sequence[str]
) -> None:
    """Print a text as it grows, then its speed in tokens a second."""
    times: list[float] = []

    def timed() -> Iterator[int]:
        for token_id in token_ids:
            times.append(time.perf_counter())
            if token_id not in tokenizer.eos_token_ids:
                yield token_id

    start = time.perf_counter()
    sys.stdout.write(prompt)
    for piece in until(stop, tokenizer.decode_stream(timed(), after=prompt_ids)):
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    if times:
        seconds = times[-1] - start
        messages.print(f"[dim]{len(times)} tokens in {seconds:.2f} s, {len(times) / seconds:.1f} tokens/s[/dim]")


def until(stop: Sequence[str], pieces: Iterator[str]) -> Iterator[str]:
    """The pieces of a text up to the first place where it goes on with one of the texts in `stop`.

    What may become one of them is held back until it has, or can no longer.
    """
    held = ""
    for piece in pieces:
        held += piece
        if found := [place for text in stop if (place := held.find(text)) >= 0]:
            yield held[: min(found)]
            return
        begun = max((size for text in stop for size in range(1, len(text)) if held.endswith(text[:size])), default=0)
        yield held[: len(held) - begun]
        held = held[len(held) - begun :]
    yield held
