"""Targets that are shifted by one, and targets that are not."""

import math

import torch
from einops import rearrange

from allformers.experiments.experiment import Experiment, question_of
from allformers.inspection import figures
from allformers.models.gpt2.gpt2 import GPT2
from allformers.training.data import HELLO_WORLD
from allformers.training.loop import make_optimizer, next_token_loss
from allformers.training.recipes import hello_world


def shifted_targets(steps: int = 100) -> Experiment:
    """Why are the targets shifted by one?"""
    recipe = hello_world()
    tokens = torch.tensor([sorted(set(HELLO_WORLD)).index(character) for character in HELLO_WORLD])
    inputs, next_tokens = rearrange(tokens[:-1], "seq -> 1 seq"), rearrange(tokens[1:], "seq -> 1 seq")
    losses: dict[str, list[float]] = {"asked for the next token": [], "asked for the token it reads": []}
    next_losses: dict[str, float] = {}
    generated: dict[str, str] = {}
    for name, targets in zip(losses, (next_tokens, inputs), strict=True):
        torch.manual_seed(0)
        model = GPT2(recipe.model)
        optimizer = make_optimizer(model, recipe)
        for _ in range(steps):
            loss = next_token_loss(model(inputs), targets)
            losses[name].append(loss.item())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            next_losses[name] = next_token_loss(model.eval()(inputs), next_tokens).item()
        ids = model.generate(inputs[:, :1], max_new_tokens=12, temperature=0)[0].tolist()
        generated[name] = "".join(sorted(set(HELLO_WORLD))[token] for token in ids)
    (shifted, unshifted) = losses
    figure = figures.subplots(("the loss that each is trained on", losses, range(steps), "step"), log=(False, False))
    return Experiment(
        question=question_of(shifted_targets),
        numbers={
            "last loss, shifted": losses[shifted][-1],
            "last loss, not shifted": losses[unshifted][-1],
            "loss at the next token, shifted": next_losses[shifted],
            "loss at the next token, not shifted": next_losses[unshifted],
            "written, shifted": generated[shifted],
            "written, not shifted": generated[unshifted],
        },
        conclusion=(
            "Asked for the token that it is just reading, a model learns to copy: its loss falls to "
            f"{losses[unshifted][-1]:.3f}, but at the token that really comes next it is {next_losses[unshifted]:.1f}, "
            f"worse than guessing evenly ({math.log(recipe.model.vocab_size):.1f}), and it writes "
            f"{generated[unshifted]!r}. Asked for the next one, it reaches {next_losses[shifted]:.3f} and writes "
            f"{generated[shifted]!r}."
        ),
        figure=figure,
    )
