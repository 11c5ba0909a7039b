"""`allformers inspect`, `trace`, `compare` and `experiment`: look inside a model, at its operations, at two runs."""

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from allformers.cli.console import Dtype, announce, find_config, find_device, messages, require_decoder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from allformers.inspection import Seen, Trace
    from allformers.tokenizers import Tokenizer


class Form(StrEnum):
    """How a trace is shown."""

    table = "table"
    json = "json"
    mermaid = "mermaid"


Model = Annotated[str, typer.Option(help="A folder, a model's name on the Hugging Face hub, or the bundled model.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="A folder for figures (PNG and SVG), or a file.html for all in one page.")
]


def _load(model: str, device: str = "cpu") -> tuple[Any, "Tokenizer"]:
    import allformers

    announce(model)
    loaded = allformers.load(model, device=find_device(device))
    return loaded, _tokenizer(loaded, model)


def _tokenizer(loaded: Any, model: str) -> "Tokenizer":
    """The tokenizer of a model that reads text.

    Raises:
        ValueError: it reads images.
    """
    from allformers.tokenizers import load_tokenizer

    if hasattr(loaded, "classify"):
        raise ValueError(f"{model} is a {type(loaded).__name__}, which reads images and no text")
    return load_tokenizer(model, loaded.config.vocab_size)


def _encode(text: str, tokenizer: "Tokenizer", context_length: int) -> "Tensor":
    import torch

    token_ids = tokenizer.encode(text)
    if not token_ids:
        raise ValueError("there is nothing to look at: the prompt is empty")
    if len(token_ids) > context_length:
        raise ValueError(f"the prompt has {len(token_ids)} tokens; this model reads {context_length} at most")
    return torch.tensor(token_ids)


def _write(title: str, sections: dict[str, tuple[str, "Figure"]], out: Path) -> None:
    """Put figures in a folder, or in a page of their own."""
    from allformers import figures

    if out.suffix == ".html":
        if not out.parent.is_dir():
            raise ValueError(f"there is no folder {out.parent} to put {out.name} in")
        out.write_text(figures.to_html(title, sections), encoding="utf-8")
        print(out)
        return
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: name a folder, or a file that ends in .html")
    out.mkdir(parents=True, exist_ok=True)
    for name, (_, figure) in sections.items():
        plain = "".join(c if c.isalnum() else "-" for c in name.lower())
        for path in figures.save(figure, out / "-".join(part for part in plain.split("-") if part)):
            print(path)


def inspect(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text that the model reads; for a ViT a picture, or nothing for a made one."),
    ] = None,
    model: Model = "bundled",
    layer: Annotated[
        int | None, typer.Option(help="Of the head to show large; the most focused one's if left out.")
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

    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    announce(model)
    loaded = allformers.load(model, device=find_device(device))
    look = _look_at_image if hasattr(loaded, "classify") else _look_at_text
    look(loaded, model, prompt, (layer, head), top, out)


def _look_at_text(
    loaded: Any, model: str, prompt: str | None, place: tuple[int | None, int | None], top: int, out: Path | None
) -> None:
    import torch
    from einops import rearrange

    from allformers import figures
    from allformers.inspection import capture

    tokenizer = _tokenizer(loaded, model)
    token_ids = _encode(prompt or "", tokenizer, loaded.config.context_length)
    given = rearrange(token_ids, "seq -> 1 seq").to(next(loaded.parameters()).device)
    wanted = ("blocks.*", "blocks.*.x", "blocks.*.attention.weights", "logits")
    with torch.inference_mode(), capture(loaded, *wanted) as seen:
        loaded(given)
    labels = [figures.label(tokenizer, int(token)) for token in token_ids]
    writes = hasattr(loaded, "generate")
    if writes:
        places, logits = list(range(len(labels))), seen["logits"].values[0]
    else:
        places, logits = _fill_in(loaded, given, tokenizer)
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
    largest = _choose_head(seen, *place)
    sections = {
        "Attention of all heads": (
            "A row is a position that looks, a column one that is looked at."
            + (" Above the diagonal lies what comes later, which no position sees." if writes else ""),
            figures.attention_grid(seen, labels),
        ),
        "One head": ("Each row adds up to one.", figures.attention_head(seen, labels, *largest)),
    }
    if writes:
        sections["One head as arcs"] = (
            "From each token to those that it looks back at: the thicker, the more. Below 0.05 nothing is drawn.",
            figures.attention_arcs(seen, labels, *largest),
        )
    if writes:
        told = "Each block adds to the residual stream, so its vectors grow; the first token's often most of all."
    else:
        told = "Each block ends in a norm, whose gain decides how long the vectors are."
    sections |= _stream_sections(seen, told)
    sections["Logit lens"] = (
        "What the model would answer if it stopped after each block; the lighter, the surer.",
        figures.logit_lens(seen, loaded, labels, tokenizer, "after" if writes else "at"),
    )
    if writes:
        title, told = "What comes next", "The likeliest tokens after each position."
    else:
        title, told = "What is missing", "The likeliest tokens where one is missing, or in place of each in turn."
    sections[title] = (told, figures.next_tokens(logits, asked, tokenizer, top, of))
    _write(f"Inside {model}: {prompt}", sections, out)


def _fill_in(loaded: Any, given: "Tensor", tokenizer: "Tokenizer") -> tuple[list[int], "Tensor"]:
    """What a model that reads both sides would fill in: at the places where a token is missing, or for each in turn.

    Returns:
        The places, and for each the scores of all tokens.

    Raises:
        ValueError: the tokenizer has no token that says: missing.
    """
    import torch

    if tokenizer.missing is None:
        raise ValueError("the model's tokenizer has no token for what is missing, such as [MASK], to look at")
    special = getattr(tokenizer, "special", {})
    ids = given[0].tolist()
    missing = [place for place, token in enumerate(ids) if token == tokenizer.missing]
    places = missing or [place for place, token in enumerate(ids) if token not in special]
    found = []
    with torch.inference_mode():
        for place in places:
            asked = given.clone()
            asked[0, place] = tokenizer.missing
            found.append(loaded(asked)[0, place])
    if not found:
        raise ValueError("there is nothing to look at: the prompt is empty")
    return places, torch.stack(found)


def _look_at_image(
    loaded: Any, model: str, path: str | None, place: tuple[int | None, int | None], top: int, out: Path | None
) -> None:
    import torch

    from allformers import figures, images
    from allformers.inspection import capture

    config = loaded.config
    given = images.example_image(config) if path is None else images.read_image(path, config, model)
    wanted = ("blocks.*", "blocks.*.x", "blocks.*.attention.weights")
    with torch.inference_mode(), capture(loaded, *wanted) as seen:
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
            figures.attention_to_patches(seen, rows),
        ),
        "One head": (
            "A row is a position that looks, a column one that is looked at: the whole image, then the patches.",
            figures.attention_head(seen, labels, *_choose_head(seen, *place)),
        ),
        **_stream_sections(seen, "Each block adds to the residual stream, so its vectors grow.", "whole image"),
        "What it shows": (
            "The labels' scores if the model stopped after each block; the last row is its answer.",
            figures.label_lens(seen, loaded, names, top),
        ),
    }
    _write(f"Inside {model}: {what}", sections, out)


def _stream_sections(seen: "Seen", told: str, first: str = "first token") -> dict[str, tuple[str, "Figure"]]:
    """What is drawn of every model alike."""
    from allformers import figures

    return {
        "Entropy of attention": (
            "How spread out each head's attention is, on average over positions: 0 bits look at one position only.",
            figures.head_entropy(seen),
        ),
        "Length of the stream": (
            told,
            figures.stream_norms(seen, first),
        ),
    }


def _choose_head(seen: "Seen", layer: int | None, head: int | None) -> tuple[int, int]:
    """The head that was asked for; what was left open is as in the most focused one."""
    focused = _most_focused(seen)
    return focused[0] if layer is None else layer, focused[1] if head is None else head


def _most_focused(seen: "Seen") -> tuple[int, int]:
    """The layer and head whose attention is least spread out, of those that look at more than their own position."""
    from allformers.inspection.compare import entropy

    best, place = float("inf"), (0, 0)
    for layer, weights in enumerate(seen.by_layer("attention.weights")):
        own = weights[0].diagonal(dim1=-2, dim2=-1).mean(-1)
        for head, bits in enumerate(entropy(weights[0].float()).mean(-1).tolist()):
            if bits < best and (own[head] < 0.5 or weights.shape[-1] == 1):
                best, place = bits, (layer, head)
    return place


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
        loaded, tokenizer = _load(name)
        token_ids = rearrange(_encode(prompt, tokenizer, loaded.config.context_length), "seq -> 1 seq")
        loaded(token_ids) if form is Form.table else None  # once without a clock, so that nothing is made while it runs
        traced = inspection.trace(loaded, token_ids, name)
    else:
        model_class, config = find_config(name)
        seq = config.context_length if seq is None else seq
        if batch < 1 or not 1 <= seq <= config.context_length:
            raise ValueError(
                f"batch must be at least 1 and seq from 1 to {config.context_length}, not {batch} and {seq}"
            )
        empty = inspection.on_meta(model_class, config, getattr(torch, dtype))
        given = empty.example(batch, seq, "meta")
        given = given.to(getattr(torch, dtype)) if given.is_floating_point() else given
        traced = inspection.trace(empty, given, name)
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


def compare(
    prompts: Annotated[
        list[str], typer.Argument(help="Two texts or more, the first compared with each; or one, with --with.")
    ],
    model: Model = "bundled",
    other: Annotated[
        str | None, typer.Option("--with", help="Another model, to compare with on one text: a folder or a hub name.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="With --with: relative differences that do not count.")] = 1e-5,
    out: Out = None,
) -> None:
    """Put two runs side by side: one model on several texts, or two models on one text.

    Shows where they part, how far apart the next-token distributions are (Jensen-Shannon divergence, in bits), and how
    alike the residual streams are by layer.
    """
    loaded, tokenizer = _load(model)
    require_decoder(loaded, model)
    texts = [_encode(prompt, tokenizer, loaded.config.context_length) for prompt in prompts]
    if other is not None:
        if len(texts) != 1:
            raise ValueError(f"two models are compared on one text, not {len(texts)}")
        _compare_models(loaded, model, other, texts[0], tokenizer, tolerance, out)
    elif len(texts) < 2:
        raise ValueError("name a second text to compare with, or another model (--with)")
    else:
        _compare_texts(loaded, prompts, texts, tokenizer, out)


def _compare_texts(
    loaded: Any, prompts: list[str], texts: list["Tensor"], tokenizer: "Tokenizer", out: Path | None
) -> None:
    from allformers import figures
    from allformers.inspection import compare_texts

    passes, comparisons = compare_texts(loaded, texts)
    for prompt, run in zip(prompts, passes, strict=True):
        found = run.logits[-1].float().softmax(-1).topk(5)
        names = [figures.label(tokenizer, token) for token in found.indices.tolist()]
        likely = ", ".join(f"{name} {p:.0%}" for name, p in zip(names, found.values.tolist(), strict=True))
        print(f"{prompt!r}: next {likely}")
    divergence, similarity = {}, {}
    for prompt, text, comparison in zip(prompts[1:], texts[1:], comparisons, strict=True):
        if comparison.part_at is None:
            where = "the texts do not differ as far as both go"
        else:
            one, two = (figures.label(tokenizer, int(ids[comparison.part_at])) for ids in (texts[0], text))
            where = f"they part at position {comparison.part_at}: {one} and {two}"
        print(f"{prompts[0]!r} and {prompt!r}: {where}")
        print(f"  divergence there and after, mean {_mean(comparison.divergence[comparison.part_at or 0 :]):.3f} bits")
        print("  cosine of the stream by block: " + ", ".join(f"{cosine:.3f}" for cosine in comparison.similarity))
        divergence[prompt], similarity[prompt] = comparison.divergence, comparison.similarity
    if out is not None:
        longest = max(map(len, divergence.values()))
        labels = [figures.label(tokenizer, int(token)) for token in texts[0]][:longest]
        blocks = [*map(str, range(len(comparisons[0].similarity) - 1)), "end"]
        sections = {
            "Divergence by position": (
                "How far the two next-token distributions are apart: 0 for equal ones, 1 for ones that share nothing.",
                figures.lines_by_place(divergence, labels, "position in the first text", "bits"),
            ),
            "Similarity by block": (
                "The cosine of the two residual streams as each block receives them, from where the texts part.",
                figures.lines_by_place(similarity, blocks, "block that receives it", "cosine"),
            ),
        }
        _write(" | ".join(prompts), sections, out)


def _compare_models(
    loaded: Any, model: str, other: str, text: "Tensor", tokenizer: "Tokenizer", tolerance: float, out: Path | None
) -> None:
    from allformers import figures
    from allformers.inspection import compare_models

    second, _ = _load(other)
    require_decoder(second, other)
    comparison = compare_models(loaded, second, text, tolerance)
    for place, difference in zip(comparison.places, comparison.differences, strict=True):
        mark = "  <- the first place where they differ" if place == comparison.first else ""
        print(f"{place:>12}  {difference:.2e}{mark}")
    print(f"divergence of the next-token distributions, mean {_mean(comparison.divergence):.4f} bits")
    if comparison.first is None:
        print(f"{model} and {other} do not differ by more than {tolerance:g} of the largest value anywhere")
    if out is not None:
        labels = [figures.label(tokenizer, int(token)) for token in text]
        sections = {
            "Difference by place": (
                "The largest difference in the residual stream, relative to its largest value.",
                figures.lines_by_place(
                    {"difference": comparison.differences}, comparison.places, "place", "relative difference"
                ),
            ),
            "Divergence by position": (
                "How far the two next-token distributions are apart.",
                figures.lines_by_place({"divergence": comparison.divergence}, labels, "position", "bits"),
            ),
        }
        _write(f"{model} and {other}", sections, out)


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def experiment(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="causal-mask, pre-norm, positions, shifted-targets, sampling, scale, kv-cache, weight-tying; or all."
        ),
    ] = None,
    out: Out = None,
) -> None:
    """Answer a learner's question by an experiment: numbers, a figure, and what they say."""
    from allformers.experiments import EXPERIMENTS

    unknown = [name for name in names or () if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"there is no experiment {unknown[0]}; there are: {', '.join(EXPERIMENTS)}")
    sections = {}
    for name in names or EXPERIMENTS:
        found = EXPERIMENTS[name]()
        messages.print(f"[dim]{name}[/dim]")
        print(f"{found.question}\n{found.conclusion}\n")
        sections[found.question if out is not None and out.suffix == ".html" else name] = (
            found.conclusion,
            found.figure,
        )
    if out is not None:
        _write("Experiments", sections, out)
