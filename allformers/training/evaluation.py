"""Evaluation of a language model on a text: negative log-likelihood (NLL), perplexity, bits per byte.

The NLL of a token is minus the log of the probability that the model gave it, its surprise. The mean over a text is the
loss, in nats per token; e to that power is the perplexity: as unsure as if the model had chosen among that many equally
likely tokens. Divided by ln 2 and by the mean bytes of a token, the loss is bits per byte, which compares models with
different vocabularies.

A model reads at most its context, so a longer text is read through a window that slides by a stride; of each window
only the tokens that no earlier window has predicted count. A short stride gives every token more context, and costs
more.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Integer
from torch import Tensor, nn

from allformers.generation.generate import in_eval_mode
from allformers.generation.sampling import LogitsError
from allformers.nn.shapes import checked
from allformers.training.processes import SINGLE_PROCESS, Processes


def perplexity(loss: float) -> float:
    """Perplexity, e to the loss; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


class Evaluation(NamedTuple):
    """The total negative log-likelihood of a text, from which loss, perplexity and bits per byte follow.

    Attributes:
        total_nll: the sum over the predicted tokens, in nats.
        num_tokens: the number of predicted tokens.
    """

    total_nll: float
    num_tokens: int

    @property
    def loss(self) -> float:
        """Mean NLL, in nats per token."""
        return self.total_nll / self.num_tokens

    @property
    def perplexity(self) -> float:
        """Perplexity, e to the loss; infinite where that overflows."""
        return perplexity(self.loss)

    def nats_per_unit(self, text_tokens: int, num_units: int) -> float:
        """Convert the loss to nats per unit (byte, word) of a text of `text_tokens` tokens and `num_units` units."""
        return self.loss * text_tokens / num_units

    def bits_per_byte(self, text_tokens: int, num_bytes: int) -> float:
        """Convert the loss to bits per byte of a text of `text_tokens` tokens and `num_bytes` bytes."""
        return self.nats_per_unit(text_tokens, num_bytes) / math.log(2)


class Window(NamedTuple):
    """A part of a text that the model reads at once.

    Attributes:
        start: the index of its first token.
        stop: the index after its last token.
        num_targets: the number of tokens, at its end, that are predicted in it.
    """

    start: int
    stop: int
    num_targets: int


def evaluation_windows(length: int, window: int, stride: int) -> list[Window]:
    """Cut a text into sliding windows, so that no token is predicted twice.

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
        num_targets = stop - max(covered, start + 1)
        if num_targets > 0:
            found.append(Window(start, stop, num_targets))
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
    processes: Processes = SINGLE_PROCESS,
) -> Evaluation:
    """Evaluate a model on a text, without dropout.

    Args:
        model: takes token ids and gives logits.
        tokens: the token ids of the text.
        window: tokens in a window. The last is predicted but never read, so one more than the context is possible.
        stride: tokens that the window moves by; if None, as many as leave no token out.
        batch_size: windows that are read at once.
        processes: with several, each takes its share, and all return the same result.

    Raises:
        ValueError: the text is too short, or window and stride do not fit; see `evaluation_windows`.
        LogitsError: the model gives NaN or infinity.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}")
    device = next(model.parameters()).device
    windows = evaluation_windows(len(tokens), window, window - 1 if stride is None else stride)
    batches = _batches(windows, batch_size)
    total_nll, num_tokens = 0.0, 0
    model = in_eval_mode(model)
    with torch.no_grad():
        # Every process makes as many calls, since with `fsdp` a call takes all of them; the surplus does not count.
        for first in range(0, len(batches), processes.world_size):
            mine = first + processes.rank
            batch = batches[min(mine, len(batches) - 1)]
            texts = torch.cat([rearrange(tokens[one.start : one.stop], "seq -> 1 seq") for one in batch]).long()
            texts = texts.to(device)
            logits = model(texts[:, :-1])[:, -batch[0].num_targets :]
            nll = F.cross_entropy(
                rearrange(logits, "batch seq vocab -> (batch seq) vocab").float(),
                rearrange(texts[:, -batch[0].num_targets :], "batch seq -> (batch seq)"),
                reduction="none",
            )
            if mine < len(batches):
                total_nll += nll.sum(dtype=torch.float64).item()
                num_tokens += nll.numel()
    total_nll, num_tokens = processes.sum(total_nll), round(processes.sum(num_tokens))
    if math.isnan(total_nll):
        raise LogitsError(f"the model's logits on this text are NaN or infinite: the loss is {total_nll}")
    return Evaluation(total_nll, num_tokens)


def _batches(windows: list[Window], batch_size: int) -> list[list[Window]]:
    """Group neighbouring windows of the same shape into batches."""
    batches: list[list[Window]] = []
    for window in windows:
        fits = batches and _shape(batches[-1][0]) == _shape(window) and len(batches[-1]) < batch_size
        batches[-1].append(window) if fits else batches.append([window])
    return batches


def _shape(window: Window) -> tuple[int, int]:
    """Length and number of targets of a window; windows in one batch must have the same."""
    return window.stop - window.start, window.num_targets
