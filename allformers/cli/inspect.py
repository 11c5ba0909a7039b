"""`allformers inspect`: figures of a model's activations on a text or an image."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from allformers.cli.console import (
    Model,
    Out,
    announce_download,
    encode,
    find_device,
    prepare_for_inference,
    tokenizer_of,
    write_figures,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from allformers.inspection import Activations


def inspect(
    prompt: Annotated[
        str | None,
        typer.Argument(help="A text; for a ViT the path of an image, or nothing for a generated one."),
    ] = None,
    model: Model = "bundled",
    layer: Annotated[
        int | None, typer.Option(help="Layer of the head to show large; by default that of the lowest entropy.")
    ] = None,
    head: Annotated[
        int | None, typer.Option(help="The head to show large; by default that of the lowest entropy.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many tokens, or labels, to show at each position.")] = 6,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps ...; auto is a GPU if there is one.")] = "cpu",
    out: Out = None,
) -> None:
    """Draw a model's attention, the norms of its residual stream, and its predictions after each block (logit lens).

    A decoder predicts the next token; a BERT the tokens at [MASK], or, if there is none, each token masked in turn; a
    ViT the label. Without --out, only the predictions are printed.
    """
    import allformers
    from allformers.checkpoints.pretrained import Classifier

    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    announce_download(model)
    loaded = allformers.load(model, device=find_device(device))
    if not loaded.checkpoint_format().head:
        raise ValueError(f"{model} is a {type(loaded).__name__}, which has no head and so predicts nothing")
    prepare_for_inference(loaded)
    look = _look_at_image if isinstance(loaded, Classifier) else _look_at_text
    look(loaded, model, prompt, (layer, head), top, out)


def _look_at_text(
    loaded: Any, model: str, prompt: str | None, chosen: tuple[int | None, int | None], top: int, out: Path | None
) -> None:
    import torch
    from einops import rearrange

    from allformers.generation.decoder import Decoder
    from allformers.inspection import capture, figures, lens

    tokenizer = tokenizer_of(loaded, model)
    token_ids = encode(prompt or "", tokenizer, loaded.config.context_length)
    inputs = rearrange(token_ids, "seq -> 1 seq").to(next(loaded.parameters()).device)
    captured = ("blocks.*", "blocks.*.x", "blocks.*.attention.weights", "logits")
    with torch.inference_mode(), capture(loaded, *captured) as activations:
        loaded(inputs)
    labels = [figures.label(tokenizer, int(token)) for token in token_ids]
    is_decoder = isinstance(loaded, Decoder)
    if is_decoder:
        positions, logits = list(range(len(labels))), activations["logits"].values[0]
    else:
        positions, logits = lens.masked_token_logits(loaded, inputs, tokenizer)
    row_labels, heading = [labels[position] for position in positions], "after" if is_decoder else "in place of"
    if out is None:
        _print_top_predictions(
            logits,
            row_labels,
            partial(figures.label, tokenizer),
            top,
            heading,
            "likeliest tokens after each token" if is_decoder else "likeliest tokens in each masked place",
        )
        return
    chosen_head = _choose_head(activations, *chosen)
    sections = {
        "Attention of all heads": (
            "A row is a query's position, a column a key's."
            + (" Above the diagonal are later keys, which the causal mask hides." if is_decoder else ""),
            figures.attention_grid(activations, labels),
        ),
        "One head": ("Each row adds up to one.", figures.attention_head(activations, labels, *chosen_head)),
    }
    if is_decoder:
        sections["One head as arcs"] = (
            "From each query back to its keys: the thicker, the larger the weight. Weights below 0.05 are not drawn.",
            figures.attention_arcs(activations, labels, *chosen_head),
        )
    if is_decoder:
        caption = "Each block adds to the residual stream, so its vectors grow; the first token's often most of all."
    else:
        caption = "Each block ends in a norm, whose gain decides the norm of the vectors."
    sections |= _stream_sections(activations, caption)
    sections["Logit lens"] = (
        "The model's predictions if it stopped after each block; the lighter, the more probable.",
        lens.logit_lens(activations, loaded, labels, tokenizer, "after" if is_decoder else "at"),
    )
    if is_decoder:
        title, caption = "Next tokens", "The likeliest tokens after each position."
    else:
        title, caption = "Masked tokens", "The likeliest tokens at each mask, or in place of each token in turn."
    sections[title] = (caption, figures.next_tokens(logits, row_labels, tokenizer, top, heading))
    write_figures(f"Inside {model}: {prompt}", sections, out)


def _look_at_image(
    loaded: Any, model: str, path: str | None, chosen: tuple[int | None, int | None], top: int, out: Path | None
) -> None:
    import torch

    from allformers.inputs import images
    from allformers.inspection import capture, figures, lens

    config = loaded.config
    inputs = images.example_image(config) if path is None else images.read_image(path, config, model)
    captured = ("blocks.*", "blocks.*.x", "blocks.*.attention.weights")
    with torch.inference_mode(), capture(loaded, *captured) as activations:
        logits = loaded(inputs.to(next(loaded.parameters()).device))
    names = images.label_names(model, config.num_labels)
    image_name = "a generated image" if path is None else Path(path).name
    if out is None:
        _print_top_predictions(logits, [image_name], names.__getitem__, top, "in", "likeliest labels")
        return
    rows, columns = (pixels // config.patch_size for pixels in inputs.shape[2:])
    labels = ["class", *(f"{row},{column}" for row in range(rows) for column in range(columns))]
    sections = {
        "The image as patches": (
            "Each square becomes one position; patches are numbered by row and column.",
            figures.patches(inputs[0], config.patch_size),
        ),
        "Attention of the class token": (
            "Its weight on each patch, in every head of every layer, all on one scale.",
            figures.attention_to_patches(activations, rows),
        ),
        "One head": (
            "A row is a query's position, a column a key's: the class token, then the patches.",
            figures.attention_head(activations, labels, *_choose_head(activations, *chosen)),
        ),
        **_stream_sections(activations, "Each block adds to the residual stream, so its vectors grow.", "class token"),
        "Logit lens": (
            "The labels' probabilities if the model stopped after each block; the last row is its answer.",
            lens.label_lens(activations, loaded, names, top),
        ),
    }
    write_figures(f"Inside {model}: {image_name}", sections, out)


def _stream_sections(
    activations: "Activations", caption: str, first: str = "first token"
) -> dict[str, tuple[str, "Figure"]]:
    """Draw the figures that all models share: attention entropy and norms of the residual stream."""
    from allformers.inspection import figures

    return {
        "Entropy of attention": (
            "Each head's attention entropy in bits, averaged over positions: 0 bits attend to one position only.",
            figures.head_entropy(activations),
        ),
        "Norms of the residual stream": (
            caption,
            figures.stream_norms(activations, first),
        ),
    }


def _choose_head(activations: "Activations", layer: int | None, head: int | None) -> tuple[int, int]:
    """Return the layer and head asked for; what is None is taken from the head of lowest entropy."""
    from allformers.inspection.lens import lowest_entropy_head

    default_layer, default_head = lowest_entropy_head(activations)
    return default_layer if layer is None else layer, default_head if head is None else head


def _print_top_predictions(
    logits: "Tensor", rows: list[str], name: Callable[[int], str], top: int, heading: str, title: str
) -> None:
    from rich.table import Table

    found = logits.float().softmax(-1).topk(min(top, logits.shape[-1]))
    table = Table(box=None, title=title, title_justify="left")
    table.add_column(heading, justify="right")
    for number in range(found.indices.shape[-1]):
        table.add_column("likeliest" if number == 0 else f"{number + 1}.")
    for text, answers, probabilities in zip(rows, found.indices.tolist(), found.values.tolist(), strict=True):
        cells = (f"{name(answer)} {p:.0%}" for answer, p in zip(answers, probabilities, strict=True))
        table.add_row(text, *cells)
    Console(width=None if sys.stdout.isatty() else 120, markup=False).print(table)
