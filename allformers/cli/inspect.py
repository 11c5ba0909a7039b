"""`allformers inspect`: look inside a model while it reads."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from allformers.cli.console import Model, Out, announce, encode, find_device, lay_out, tokenizer_of, write_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from allformers.inspection import Activations


def inspect(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text that the model reads; for a ViT a picture, or nothing for a made one."),
    ] = None,
    model: Model = "bundled",
    layer: Annotated[
        int | None, typer.Option(help="Of the head to show large; the most sharpest one's if left out.")
    ] = None,
    head: Annotated[int | None, typer.Option(help="The head to show large.")] = None,
    top: Annotated[int, typer.Option(help="How many tokens, or labels, to show at each place.")] = 6,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps ...; auto is a GPU if there is one.")] = "cpu",
    out: Out = None,
) -> None:
    """Draw what happens inside a model while it reads: attention, the stream, what it would answer after each block.

    Of a model that writes, what it expects next; of a BERT, what it would fill in where the text says [MASK], or, if
    nowhere, for each token taken out in turn; of a ViT, what it sees. Without --out, that alone is printed.
    """
    import allformers
    from allformers.checkpoints.pretrained import Classifier

    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    announce(model)
    loaded = allformers.load(model, device=find_device(device))
    lay_out(loaded)
    look = _look_at_image if isinstance(loaded, Classifier) else _look_at_text
    look(loaded, model, prompt, (layer, head), top, out)


def _look_at_text(
    loaded: Any, model: str, prompt: str | None, place: tuple[int | None, int | None], top: int, out: Path | None
) -> None:
    import torch
    from einops import rearrange

    from allformers.generation.decoder import Decoder
    from allformers.inspection import capture, figures, lens

    tokenizer = tokenizer_of(loaded, model)
    token_ids = encode(prompt or "", tokenizer, loaded.config.context_length)
    given = rearrange(token_ids, "seq -> 1 seq").to(next(loaded.parameters()).device)
    wanted = ("blocks.*", "blocks.*.x", "blocks.*.attention.weights", "logits")
    with torch.inference_mode(), capture(loaded, *wanted) as activations:
        loaded(given)
    labels = [figures.label(tokenizer, int(token)) for token in token_ids]
    writes = isinstance(loaded, Decoder)
    if writes:
        places, logits = list(range(len(labels))), activations["logits"].values[0]
    else:
        places, logits = lens.fill_masks(loaded, given, tokenizer)
    asked, of = [labels[at] for at in places], "after" if writes else "in place of"
    if out is None:

        def name(token: int) -> str:
            return figures.label(tokenizer, token) if token < tokenizer.vocab_size else "(none)"

        _print_likeliest(
            logits,
            asked,
            name,
            top,
            of,
            "what the model expects after each token" if writes else "what the model would fill in",
        )
        return
    largest = _choose_head(activations, *place)
    sections = {
        "Attention of all heads": (
            "A row is a position that looks, a column one that is looked at."
            + (" Above the diagonal lies what comes later, which no position sees." if writes else ""),
            figures.attention_grid(activations, labels),
        ),
        "One head": ("Each row adds up to one.", figures.attention_head(activations, labels, *largest)),
    }
    if writes:
        sections["One head as arcs"] = (
            "From each token to those that it looks back at: the thicker, the more. Below 0.05 nothing is drawn.",
            figures.attention_arcs(activations, labels, *largest),
        )
    if writes:
        told = "Each block adds to the residual stream, so its vectors grow; the first token's often most of all."
    else:
        told = "Each block ends in a norm, whose gain decides how long the vectors are."
    sections |= _stream_sections(activations, told)
    sections["Logit lens"] = (
        "What the model would answer if it stopped after each block; the lighter, the surer.",
        lens.logit_lens(activations, loaded, labels, tokenizer, "after" if writes else "at"),
    )
    if writes:
        title, told = "What comes next", "The likeliest tokens after each position."
    else:
        title, told = "What is missing", "The likeliest tokens where one is missing, or in place of each in turn."
    sections[title] = (told, figures.next_tokens(logits, asked, tokenizer, top, of))
    write_figures(f"Inside {model}: {prompt}", sections, out)


def _look_at_image(
    loaded: Any, model: str, path: str | None, place: tuple[int | None, int | None], top: int, out: Path | None
) -> None:
    import torch

    from allformers.inputs import images
    from allformers.inspection import capture, figures, lens

    config = loaded.config
    given = images.example_image(config) if path is None else images.read_image(path, config, model)
    wanted = ("blocks.*", "blocks.*.x", "blocks.*.attention.weights")
    with torch.inference_mode(), capture(loaded, *wanted) as activations:
        logits = loaded(given.to(next(loaded.parameters()).device))
    names = images.label_names(model, config.num_labels)
    what = "a made picture" if path is None else Path(path).name
    if out is None:
        _print_likeliest(logits, [what], names.__getitem__, top, "in", "what the model sees")
        return
    rows = config.axes["rows"]
    labels = ["image", *(f"{row},{column}" for row in range(rows) for column in range(rows))]
    sections = {
        "The image as patches": (
            "Each square becomes one position; patches are numbered by row and column.",
            figures.patches(given[0], config.patch_size),
        ),
        "Where the whole image looks": (
            "The position that stands for the whole image, in every head of every layer: how much of each patch it "
            "takes, all on one scale.",
            figures.attention_to_patches(activations, rows),
        ),
        "One head": (
            "A row is a position that looks, a column one that is looked at: the whole image, then the patches.",
            figures.attention_head(activations, labels, *_choose_head(activations, *place)),
        ),
        **_stream_sections(activations, "Each block adds to the residual stream, so its vectors grow.", "whole image"),
        "What it shows": (
            "The labels' scores if the model stopped after each block; the last row is its answer.",
            lens.label_lens(activations, loaded, names, top),
        ),
    }
    write_figures(f"Inside {model}: {what}", sections, out)


def _stream_sections(
    activations: "Activations", told: str, first: str = "first token"
) -> dict[str, tuple[str, "Figure"]]:
    """What is drawn of every model alike."""
    from allformers.inspection import figures

    return {
        "Entropy of attention": (
            "How spread out each head's attention is, on average over positions: 0 bits look at one position only.",
            figures.head_entropy(activations),
        ),
        "Length of the stream": (
            told,
            figures.stream_norms(activations, first),
        ),
    }


def _choose_head(activations: "Activations", layer: int | None, head: int | None) -> tuple[int, int]:
    """The head that was asked for; what was left open is as in the most sharpest one."""
    from allformers.inspection.lens import lowest_entropy_head

    sharpest = lowest_entropy_head(activations)
    return sharpest[0] if layer is None else layer, sharpest[1] if head is None else head


def _print_likeliest(
    logits: "Tensor", rows: list[str], name: Callable[[int], str], top: int, of: str, title: str
) -> None:
    from rich.table import Table

    found = logits.float().softmax(-1).topk(min(top, logits.shape[-1]))
    table = Table(box=None, title=title, title_justify="left")
    table.add_column(of, justify="right")
    for number in range(found.indices.shape[-1]):
        table.add_column("likeliest" if number == 0 else f"{number + 1}.")
    for text, answers, probabilities in zip(rows, found.indices.tolist(), found.values.tolist(), strict=True):
        told = (f"{name(answer)} {p:.0%}" for answer, p in zip(answers, probabilities, strict=True))
        table.add_row(text, *told)
    Console(width=None if sys.stdout.isatty() else 120, markup=False).print(table)
