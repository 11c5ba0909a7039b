"""The scale of attention scores, and how soft it keeps softmax."""

import torch
from einops import einsum

from allformers.experiments.experiment import Experiment, question_of
from allformers.inspection import figures


@torch.no_grad()
def scale() -> Experiment:
    """Why are attention scores divided by the square root of head_dim?"""
    torch.manual_seed(0)
    widths = [4, 8, 16, 32, 64, 128, 256]
    variance: dict[str, list[float]] = {"q · k": [], "q · k / √head_dim": []}
    largest: dict[str, list[float]] = {name: [] for name in variance}
    for width in widths:
        queries, keys = torch.randn(500, width), torch.randn(64, width)
        scores = einsum(queries, keys, "seq head_dim, seq_k head_dim -> seq seq_k")
        for name, factor in zip(variance, (1.0, width**-0.5), strict=True):
            variance[name].append(float((scores * factor).var()))
            largest[name].append(float((scores * factor).softmax(-1).amax(-1).mean()))
    plain, scaled = largest.values()
    figure = figures.line_plots(
        {"variance of the scores": variance, "largest of 64 weights, on average": largest},
        widths,
        "head_dim",
        log=(True, False),
    )
    return Experiment(
        question=question_of(scale),
        numbers={"head_dim": widths, "variance": variance, "largest weight": largest},
        conclusion=(
            f"The variance of the scores of random queries and keys is {variance['q · k'][0]:.1f} in heads of width "
            f"{widths[0]} and {variance['q · k'][-1]:.0f} at width {widths[-1]}, since as many terms are added up. "
            f"Softmax then gives {plain[-1]:.0%} of the weight to one of 64 keys, and where one key has it all no "
            "gradient reaches the others. Divided by √head_dim, the variance is "
            f"{min(variance['q · k / √head_dim']):.2f} to {max(variance['q · k / √head_dim']):.2f} and the largest "
            f"weight {scaled[-1]:.0%} at any width."
        ),
        figure=figure,
    )
