"""Comparison of two runs: where they diverge, and by how much.

Runs of one model on several texts, or of several models on one text. Compared are the residual stream after each block
and the distributions over the next token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.inspection.capture import activation_names, capture
from allformers.nn.shapes import checked


@dataclass(frozen=True)
class RunResult:
    """The residual stream and the logits of one run on one text.

    Attributes:
        token_ids: the text.
        stream: the residual stream as each block receives it, then as the last one leaves it, after the final norm.
        logits: scores of the next token at each position.
    """

    token_ids: Int[Tensor, "seq"]
    stream: list[Float[Tensor, "seq embed"]]
    logits: Float[Tensor, "seq vocab"]


@dataclass(frozen=True)
class TextComparison:
    """One model on two texts, position by position from their beginnings, as far as both go.

    Attributes:
        divergence_position: the first position whose tokens differ; None if there is none before one text ends. The
            runs are the same before it: no position sees a later one.
        divergence: at each position, the Jensen-Shannon divergence of the two next-token distributions in bits: 0 for
            equal ones and 1 for distributions with nothing in common.
        similarity: for each point of the stream, the mean cosine of the two vectors over positions from
            `divergence_position` on (over all positions if the texts do not differ).
    """

    divergence_position: int | None
    divergence: list[float]
    similarity: list[float]


@dataclass(frozen=True)
class ModelComparison:
    """Two models on one text.

    Attributes:
        names: of the activations compared, in the order of the pass: the stream, then the logits.
        differences: for each, the largest difference relative to the largest value.
        first_difference: the name of the first that differs by more than the tolerance; None if none does.
        divergence: at each position, the Jensen-Shannon divergence of the two next-token distributions, in bits.
    """

    names: tuple[str, ...]
    differences: tuple[float, ...]
    first_difference: str | None
    divergence: list[float]


@checked
def run(model: nn.Module, token_ids: Int[Tensor, "seq"]) -> RunResult:
    """Run a model on a text and keep the stream and the logits.

    The model is one of this package or written like one; any other, such as one of transformers', is asked for its
    `hidden_states`.
    """
    batch = rearrange(token_ids, "seq -> 1 seq").to(next(model.parameters()).device)
    with torch.inference_mode():
        if not activation_names(model):
            output: Any = model(batch, output_hidden_states=True)
            stream, logits = list(output.hidden_states), output.logits
        else:
            with capture(model, "blocks.*.x", "blocks.*", "logits") as activations:
                model(batch)
            stream = activations.by_layer("x")
            norm: Any = model.final_norm
            stream.append(norm(activations.by_layer("")[-1]))
            logits = activations["logits"].values
    return RunResult(token_ids, [rearrange(x, "1 seq embed -> seq embed") for x in stream], logits[0])


@checked
def compare_texts(model: nn.Module, texts: Sequence[Int[Tensor, "_"]]) -> tuple[list[RunResult], list[TextComparison]]:
    """Run a model on several texts, and compare each with the first.

    Raises:
        ValueError: there are fewer than two texts, or one is empty.
    """
    if len(texts) < 2:
        raise ValueError(f"comparing takes at least two texts, not {len(texts)}")
    if any(len(text) == 0 for text in texts):
        raise ValueError("a text to compare is empty")
    runs = [run(model, text) for text in texts]
    return runs, [_compare_runs(runs[0], other) for other in runs[1:]]


def _compare_runs(one: RunResult, other: RunResult) -> TextComparison:
    length = min(len(one.token_ids), len(other.token_ids))
    differs = one.token_ids[:length] != other.token_ids[:length]
    divergence_position = int(differs.nonzero()[0]) if differs.any() else None
    after = slice(divergence_position or 0, length)
    similarity = [
        torch.cosine_similarity(x[after].double(), y[after].double(), dim=-1).mean().item()
        for x, y in zip(one.stream, other.stream, strict=True)
    ]
    divergence = jensen_shannon(one.logits[:length], other.logits[:length]).tolist()
    return TextComparison(divergence_position, divergence, similarity)


@checked
def compare_models(
    one: nn.Module, other: nn.Module, token_ids: Int[Tensor, "seq"], tolerance: float = 1e-5
) -> ModelComparison:
    """Run two models on one text, and name the first activation in which they differ.

    Args:
        one: a model of this package, or one of transformers'.
        other: likewise, with as many layers and as wide: a checkpoint before and after training, a model and its
            reference.
        token_ids: the text.
        tolerance: differences relative to the largest value that do not count.

    Raises:
        ValueError: they do not have the same number of layers, the same width or the same vocabulary.
    """
    runs = run(one, token_ids), run(other, token_ids)
    shapes = [(len(run.stream) - 1, run.stream[0].shape[-1], run.logits.shape[-1]) for run in runs]
    if shapes[0] != shapes[1]:
        sizes = [f"{layers} layers, width {width}, vocabulary {vocab}" for layers, width, vocab in shapes]
        raise ValueError(f"the models differ in size and cannot be compared: {sizes[0]}; {sizes[1]}")
    layers = shapes[0][0]
    names = ("embed", *(f"blocks.{layer}" for layer in range(layers - 1)), "final_norm", "logits")
    differences = tuple(
        ((x.double() - y.double().to(x.device)).abs().max() / x.double().abs().max().clamp_min(1e-30)).item()
        for x, y in zip([*runs[0].stream, runs[0].logits], [*runs[1].stream, runs[1].logits], strict=True)
    )
    first_difference = next((name for name, by in zip(names, differences, strict=True) if not by <= tolerance), None)
    divergence = jensen_shannon(runs[0].logits, runs[1].logits.to(runs[0].logits.device)).tolist()
    return ModelComparison(names, differences, first_difference, divergence)


@checked
def jensen_shannon(
    logits: Float[Tensor, "*positions vocab"], others: Float[Tensor, "*positions vocab"]
) -> Float[Tensor, "*positions"]:
    """Return the Jensen-Shannon divergence of two distributions, in bits: 0 for equal ones, 1 if they share nothing.

    The mean of the Kullback-Leibler divergences of each from their average. Source: Lin 1991, "Divergence Measures
    Based on the Shannon Entropy".
    """
    p, q = logits.double().softmax(-1), others.double().softmax(-1)
    mixture = (p + q) / 2
    parts = (torch.xlogy(p, p) - torch.xlogy(p, mixture) + torch.xlogy(q, q) - torch.xlogy(q, mixture)) / 2
    nats = reduce(parts, "... vocab -> ...", "sum")
    return (nats / torch.tensor(2.0).log()).clamp_min(0).to(logits.dtype)


@checked
def entropy(weights: Float[Tensor, "*positions seq_k"]) -> Float[Tensor, "*positions"]:
    """Return the entropy of probabilities, in bits: 0 for a certainty, log2 n for n equal ones."""
    bits = -torch.xlogy(weights.double(), weights.double()) / torch.tensor(2.0).log()
    return reduce(bits, "... seq_k -> ...", "sum").to(weights.dtype)
