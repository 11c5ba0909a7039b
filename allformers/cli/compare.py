"""`allformers compare`: compare two texts in one model, or two models on one text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allformers.cli.console import Model, Out, encode, load_model, require_decoder, write_figures

if TYPE_CHECKING:
    from torch import Tensor

    from allformers.inputs.tokenizers import Tokenizer


def compare(
    prompts: Annotated[
        list[str],
        typer.Argument(help="Two texts or more, the first compared with each other one; or one text, with --with."),
    ],
    model: Model = "bundled",
    other: Annotated[
        str | None, typer.Option("--with", help="A second model for one text: a folder or a hub name.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="With --with: the largest relative difference that counts as equal.")
    ] = 1e-5,
    out: Out = None,
) -> None:
    """Compare two runs: one model on several texts, or two models on one text.

    Prints the first position that differs, the Jensen-Shannon divergence of the next-token distributions in bits, and
    the cosine similarity of the residual streams by layer.
    """
    loaded, tokenizer = load_model(model)
    require_decoder(loaded, model)
    texts = [encode(prompt, tokenizer, loaded.config.context_length) for prompt in prompts]
    if other is not None:
        if len(texts) != 1:
            raise ValueError(f"two models are compared on one text, not {len(texts)}")
        _compare_models(loaded, model, other, texts[0], tokenizer, tolerance, out)
    elif len(texts) < 2:
        raise ValueError("compare needs a second text, or a second model (--with)")
    else:
        _compare_texts(loaded, prompts, texts, tokenizer, out)


def _compare_texts(
    loaded: Any, prompts: list[str], texts: list["Tensor"], tokenizer: "Tokenizer", out: Path | None
) -> None:
    from allformers.inspection import compare_texts, figures

    runs, comparisons = compare_texts(loaded, texts)
    for prompt, run in zip(prompts, runs, strict=True):
        found = run.logits[-1].float().softmax(-1).topk(5)
        names = [figures.label(tokenizer, token) for token in found.indices.tolist()]
        likely = ", ".join(f"{name} {p:.0%}" for name, p in zip(names, found.values.tolist(), strict=True))
        print(f"{prompt!r}: next {likely}")
    divergence, similarity = {}, {}
    for prompt, text, comparison in zip(prompts[1:], texts[1:], comparisons, strict=True):
        if comparison.divergence_position is None:
            where = "the texts do not differ as far as both go"
        else:
            one, two = (figures.label(tokenizer, int(ids[comparison.divergence_position])) for ids in (texts[0], text))
            where = f"they part at position {comparison.divergence_position}: {one} and {two}"
        print(f"{prompts[0]!r} and {prompt!r}: {where}")
        after = comparison.divergence[comparison.divergence_position or 0 :]
        print(f"  divergence there and after, mean {_mean(after):.3f} bits")
        print("  cosine of the stream by block: " + ", ".join(f"{cosine:.3f}" for cosine in comparison.similarity))
        divergence[prompt], similarity[prompt] = comparison.divergence, comparison.similarity
    if out is not None:
        longest = max(map(len, divergence.values()))
        labels = [figures.label(tokenizer, int(token)) for token in texts[0]][:longest]
        blocks = [*map(str, range(len(comparisons[0].similarity) - 1)), "end"]
        sections = {
            "Divergence by position": (
                "The Jensen-Shannon divergence of the next-token distributions: 0 if equal, 1 if they share no token.",
                figures.line_plot(divergence, labels, "position in the first text", "bits"),
            ),
            "Similarity by block": (
                "The cosine of the two residual streams as each block receives them, from where the texts part.",
                figures.line_plot(similarity, blocks, "block that receives it", "cosine"),
            ),
        }
        write_figures(" | ".join(prompts), sections, out)


def _compare_models(
    loaded: Any, model: str, other: str, text: "Tensor", tokenizer: "Tokenizer", tolerance: float, out: Path | None
) -> None:
    from allformers.inspection import compare_models, figures

    second, _ = load_model(other)
    require_decoder(second, other)
    comparison = compare_models(loaded, second, text, tolerance)
    for name, difference in zip(comparison.names, comparison.differences, strict=True):
        mark = "  <- the first place where they differ" if name == comparison.first_difference else ""
        print(f"{name:>12}  {difference:.2e}{mark}")
    print(f"divergence of the next-token distributions, mean {_mean(comparison.divergence):.4f} bits")
    if comparison.first_difference is None:
        print(f"{model} and {other} do not differ by more than {tolerance:g} of the largest value anywhere")
    if out is not None:
        labels = [figures.label(tokenizer, int(token)) for token in text]
        sections = {
            "Difference by place": (
                "The largest difference in the residual stream, relative to its largest value.",
                figures.line_plot(
                    {"difference": comparison.differences}, comparison.names, "place", "relative difference"
                ),
            ),
            "Divergence by position": (
                "The Jensen-Shannon divergence of the two next-token distributions.",
                figures.line_plot({"divergence": comparison.divergence}, labels, "position", "bits"),
            ),
        }
        write_figures(f"{model} and {other}", sections, out)


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))
