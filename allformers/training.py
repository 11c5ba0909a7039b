"""Training a language model, in the order a step happens: batch, forward, loss, backward, clip, step, schedule.

A text of N tokens holds N - 1 lessons: after these tokens comes that one. Because no position sees a later one, a
single forward pass answers all of them at once, and the loss is how surprised the model was on average.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.generation import evaluating
from allformers.shapes import checked


def python_documentation() -> str:
    """The built-in corpus: Python's own documentation of its syntax and semantics, some 465,000 characters.

    It comes with every CPython (`pydoc_data.topics`, what `help("for")` shows), so nothing has to be fetched. Its text
    differs a little from version to version; `digest` tells.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def digest(text: str) -> str:
    """The SHA-256 of a corpus, to tell whether two runs read the same."""
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, apart from the model and the text. The defaults are those of the bundled model.

    Attributes:
        steps: optimiser steps.
        batch_size: sequences a step.
        seq_length: tokens that each of them predicts.
        learning_rate: its highest value, reached after the warm-up.
        final_learning_rate: where the cosine decay ends.
        warmup_steps: steps over which the learning rate rises from zero, while Adam's averages settle.
        weight_decay: how strongly matrices are pulled towards zero; biases and norms are not.
        beta2: memory of AdamW's average of squared gradients.
        clip_norm: gradients longer than this are shortened to it.
        validation_fraction: how much of the text, at its end, is kept apart to measure on.
        seed: of the initial weights, the batches and dropout.
    """

    steps: int = 5000
    batch_size: int = 16
    seq_length: int = 256
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 200
    weight_decay: float = 0.1
    beta2: float = 0.99
    clip_norm: float = 1.0
    validation_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "seq_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be between 0 and 1, not {self.validation_fraction}")


class Progress(NamedTuple):
    """What a training step reports."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


@checked
def split(
    tokens: Int[Tensor, "seq"], validation_fraction: float
) -> tuple[Int[Tensor, "train_seq"], Int[Tensor, "validation_seq"]]:
    """Cut a text in two: the first part to learn from, the end to measure on."""
    cut = round(len(tokens) * (1 - validation_fraction))
    return tokens[:cut], tokens[cut:]


@checked
def draw_batch(
    tokens: Int[Tensor, "text"], batch_size: int, seq_length: int, generator: torch.Generator
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Cut `batch_size` random passages from a text: what the model reads, and what it should answer.

    The targets are the inputs moved on by one: at position s the model has read tokens 0 to s, and the right answer is
    token s + 1.

    Raises:
        ValueError: the text is too short for one passage.
    """
    if len(tokens) <= seq_length:
        raise ValueError(
            f"a text of {len(tokens)} tokens is too short to cut passages of {seq_length} + 1 from it: give a longer "
            "text or a smaller seq_length"
        )
    starts = torch.randint(len(tokens) - seq_length, (batch_size,), generator=generator)
    offsets = torch.arange(seq_length + 1)
    passages = tokens[rearrange(starts, "batch -> batch 1") + rearrange(offsets, "seq -> 1 seq")]
    return passages[:, :-1].long(), passages[:, 1:].long()


@checked
def next_token_loss(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """The mean surprise, in nats, at the tokens that came: minus the log of the probability each was given.

    A model that knows nothing spreads its bets evenly and scores ln(vocab).
    """
    return F.cross_entropy(
        rearrange(logits, "batch seq vocab -> (batch seq) vocab"), rearrange(targets, "batch seq -> (batch seq)")
    )


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Rise in a straight line, then fall along half a cosine: fast while far from the goal, careful at the end."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    height = (1 + math.cos(math.pi * progress)) / 2
    return recipe.final_learning_rate + height * (recipe.learning_rate - recipe.final_learning_rate)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2017, arXiv:1711.05101), which decays matrices and embeddings only.

    A bias or a norm's gain has one number for each output: pulling it to zero limits nothing that needs limiting.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, recipe.beta2), fused=True)


@checked
def train(model: nn.Module, tokens: Int[Tensor, "seq"], recipe: Recipe) -> Iterator[Progress]:
    """Train a model in place, one step for each item taken from the iterator this returns.

    Stopping early is leaving the loop. Batches are drawn from the recipe's seed, so a run can be repeated; dropout
    draws from PyTorch's global generator.

    Raises:
        ValueError: the text is too short for one passage.
    """
    optimizer = make_optimizer(model, recipe)
    generator = torch.Generator().manual_seed(recipe.seed)
    device = next(model.parameters()).device
    model.train()
    for step in range(recipe.steps):
        learning_rate = learning_rate_at(step, recipe)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        inputs, targets = draw_batch(tokens, recipe.batch_size, recipe.seq_length, generator)
        logits = model(inputs.to(device))
        loss = next_token_loss(logits, targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        yield Progress(step + 1, loss.item(), learning_rate, norm.item())


@checked
def evaluate(model: nn.Module, tokens: Int[Tensor, "text"], seq_length: int, batch_size: int = 32) -> float:
    """The mean loss over a whole text, in nats a token, without dropout: each token is predicted once.

    The text is cut into passages of `seq_length` one after the other, so the first token of each passage has no
    context; the figure is a little higher than with a sliding window.

    Raises:
        ValueError: the text has fewer than two tokens.
    """
    if len(tokens) < 2:
        raise ValueError(f"measuring the loss takes at least two tokens, not {len(tokens)}")
    device = next(model.parameters()).device
    whole = (len(tokens) - 1) // seq_length * seq_length
    inputs, targets = [], []
    if whole:
        inputs += rearrange(tokens[:whole], "(batch seq) -> batch seq", seq=seq_length).split(batch_size)
        targets += rearrange(tokens[1 : whole + 1], "(batch seq) -> batch seq", seq=seq_length).split(batch_size)
    if whole < len(tokens) - 1:
        inputs.append(rearrange(tokens[whole:-1], "seq -> 1 seq"))
        targets.append(rearrange(tokens[whole + 1 :], "seq -> 1 seq"))
    total = 0.0
    with torch.inference_mode(), evaluating(model):
        for some_inputs, some_targets in zip(inputs, targets, strict=True):
            logits = model(some_inputs.long().to(device))
            loss = next_token_loss(logits, some_targets.long().to(device))
            total += loss.item() * some_targets.numel()
    return total / (len(tokens) - 1)
