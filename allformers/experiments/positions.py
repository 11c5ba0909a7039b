"""Learned positions beyond the length that a model was trained on."""

import dataclasses

import torch
from einops import rearrange
from torch import nn

from allformers.experiments.experiment import Experiment, question_of
from allformers.inputs.tokenizers import ByteTokenizer
from allformers.inspection import figures
from allformers.models.gpt2.gpt2 import GPT2
from allformers.models.registry import load
from allformers.training.data import python_documentation


@torch.no_grad()
def positions() -> Experiment:
    """What do learned positions mean beyond the length that a model was trained on?"""
    model = load("bundled")
    trained = model.config.context_length
    longer = GPT2(dataclasses.replace(model.config, context_length=2 * trained)).eval()
    state = longer.state_dict()
    torch.manual_seed(0)
    for name, weight in model.state_dict().items():
        state[name][: len(weight)] = weight  # positions beyond the trained ones keep their random vectors
    refusal = ""
    try:
        model(torch.zeros(1, trained + 1, dtype=torch.long))
    except ValueError as error:
        refusal = str(error)
    text = torch.tensor(ByteTokenizer().encode(python_documentation()))[-16 * (2 * trained + 1) :]
    tokens = rearrange(text, "(batch seq) -> batch seq", batch=16)
    logits = longer(tokens[:, :-1])
    losses = nn.functional.cross_entropy(
        rearrange(logits, "batch seq vocab -> batch vocab seq"), tokens[:, 1:], reduction="none"
    )
    by_position = losses.mean(0)
    means = rearrange(by_position, "(batch seq) -> batch seq", seq=16).mean(-1).tolist()
    within, beyond = float(by_position[trained // 2 : trained].mean()), float(by_position[trained:].mean())
    figure = figures.line_plot(
        {"loss": means}, [str(16 * part) for part in range(len(means))], "position", "loss, in nats a token"
    )
    return Experiment(
        question=question_of(positions),
        numbers={"trained length": trained, "loss within": within, "loss beyond": beyond, "refusal": refusal},
        conclusion=(
            f"There is a vector for each of {trained} positions and none for the next: the model refuses a longer "
            f"text. Given random vectors for twice as many, it loses {within:.2f} nats a token on the second half of "
            f"what it knows and {beyond:.2f} beyond: a learned position says nothing about one that was never trained."
        ),
        figure=figure,
    )
