"""One matrix for token embedding and unembedding, or two."""

import dataclasses

from allformers.experiments.experiment import Experiment, question_of
from allformers.inspection import figures, summarise
from allformers.models.gpt2.checkpoint import SIZES
from allformers.models.gpt2.gpt2 import GPT2


def weight_tying() -> Experiment:
    """What does tying the unembedding to the token embedding save?"""
    parameters: dict[str, list[float]] = {"tied": [], "untied": []}
    presets = {size.name: size.config for size in SIZES}
    for config in presets.values():
        for name, tied in zip(parameters, (True, False), strict=True):
            summary = summarise(GPT2, dataclasses.replace(config, tie_embeddings=tied))
            parameters[name].append(summary.parameters)
    saved = {
        name: 1 - tied / untied
        for name, tied, untied in zip(presets, parameters["tied"], parameters["untied"], strict=True)
    }
    small, large = saved["gpt2-small"], saved["gpt2-xl"]
    figure = figures.bar_plots({"share of all parameters": list(saved.values())}, list(saved), "saved")
    return Experiment(
        question=question_of(weight_tying),
        numbers={
            "parameters": {name: dict(zip(presets, row, strict=True)) for name, row in parameters.items()},
            **saved,
        },
        conclusion=(
            "One matrix of vocab x embed numbers instead of two. Of the parameters that there would be without "
            f"tying, that saves {small:.0%} in GPT-2 small and {large:.0%} in XL, since the blocks grow with the "
            "square of the width and the vocabulary's matrix only in proportion to it."
        ),
        figure=figure,
    )
