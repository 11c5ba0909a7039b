"""How good a language model is on a text: how surprised it was, on average, by what came next.

The surprise at a token is minus the log of the probability that the model gave it. Its mean over a text is the loss (in
nats a token); e to that power is the perplexity: as unsure as if it had chosen among that many equally likely tokens.
Divided by ln 2 and by the bytes that a token stands for, it is bits per byte, which models with different vocabularies
share.

A model reads at most its context, so a longer text is read through a window that slides by a stride; at each place only
what no earlier window has predicted counts. A short stride gives every token more context, and costs more.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Integer
from torch import Tensor, nn

from allformers.generation.generate import eval_mode
from allformers.nn.shapes import checked
from allformers.training.processes import ALONE, Processes


def exp(loss: float) -> float:
    """The perplexity that belongs to a loss; infinite if it is too large to write down."""
    return math.exp(loss) if loss < 700 else math.inf


class Evaluation(NamedTuple):
    """What a model's predictions of a text were worth.

    Attributes:
        nats: the sum of all surprises.
        predicted: how many tokens were predicted.
    """

    nats: float
    predicted: int

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / self.predicted

    @property
    def perplexity(self) -> float:
        """E to the loss; infinite if that is too large to write down."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def per_unit(self, tokens: int, units: int) -> float:
        """Nats for each byte (or word) of a text with so many tokens and so many bytes (or words)."""
        return self.loss * tokens / units

    def bits_per_byte(self, tokens: int, size: int) -> float:
        """Bits for each byte of a text of `tokens` tokens and `size` bytes."""
        return self.per_unit(tokens, size) / math.log(2)


class Window(NamedTuple):
    """A part of a text that the model reads at once.

    Attributes:
        start: its first token.
        stop: the one after its last.
        predicted: how many of its tokens, at its end, are predicted in it.
    """

    start: int
    stop: int
    predicted: int


def windows(length: int, window: int, stride: int) -> list[Window]:
    """Cover a text with windows, so that no token is predicted twice.

    A window's first token has nothing before it and is not predicted. With `stride = window` some tokens are therefore
    never predicted; with `stride = window - 1` all but the very first are, with as few windows as that takes.

    Raises:
        ValueError: the text is too short to predict anything, the window is too narrow, or the stride leaves gaps.
    """
    if length < 2:
        raise ValueError(f"measuring the loss takes at least two tokens, not {length}")
    if window < 2:
        raise ValueError(f"a window must hold at least two tokens, not {window}")
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be between 1 and the window's {window} tokens, not {stride}")
    covered, found = 0, []
    for start in range(0, length, stride):
        stop = min(start + window, length)
        predicted = stop - max(covered, start + 1)
        if predicted > 0:
            found.append(Window(start, stop, predicted))
        covered = stop
        if stop == length:
            break
    return found


@checked
def evaluate(
    model: nn.Module,
    tokens: Integer[Tensor, "text"],
    window: int,
    stride: int | None = None,
    batch_size: int = 32,
    processes: Processes = ALONE,
) -> Evaluation:
    """Measure a model on a text, without dropout.

    Args:
        model: takes token ids and gives logits.
        tokens: the text.
        window: tokens in a window. The last is predicted but never read, so one more than the context is possible.
        stride: by how many tokens the window moves; by as many as leave no token out if None.
        batch_size: windows that are read at once.
        processes: with several, each takes its share, and all get the result.

    Raises:
        ValueError: the text is too short, or window and stride do not fit; see `windows`.
    """
    device = next(model.parameters()).device
    batches: list[list[Window]] = []
    for place in windows(len(tokens), window, window - 1 if stride is None else stride):
        alike = batches and _shape(batches[-1][0]) == _shape(place) and len(batches[-1]) < batch_size
        batches[-1].append(place) if alike else batches.append([place])
    nats, predicted = 0.0, 0
    with torch.no_grad(), eval_mode(model):
        # Every process makes as many calls, since with `fsdp` a call takes all of them; the surplus does not count.
        for first in range(0, len(batches), processes.count):
            mine = first + processes.rank
            batch = batches[min(mine, len(batches) - 1)]
            texts = torch.cat([rearrange(tokens[place.start : place.stop], "seq -> 1 seq") for place in batch]).long()
            texts = texts.to(device)
            logits = model(texts[:, :-1])[:, -batch[0].predicted :]
            surprises = F.cross_entropy(
                rearrange(logits, "batch seq vocab -> (batch seq) vocab").float(),
                rearrange(texts[:, -batch[0].predicted :], "batch seq -> (batch seq)"),
                reduction="none",
            )
            if mine < len(batches):
                nats += surprises.sum(dtype=torch.float64).item()
                predicted += surprises.numel()
    return Evaluation(processes.sum(nats), round(processes.sum(predicted)))


def _shape(place: Window) -> tuple[int, int]:
    """What windows in one batch have in common."""
    return place.stop - place.start, place.predicted
