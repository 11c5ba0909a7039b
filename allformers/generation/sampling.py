"""Sampling, from logits to a token: greedy, temperature, top-k, nucleus (top-p). Each is a small pure function.

They are applied in the usual order (temperature, then top-k, then top-p), each on what the one before has left; a
token that one of them rules out gets a logit of minus infinity, which is a probability of zero.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from allformers.nn.shapes import checked


class LogitsError(ValueError):
    """Logits that are no scores: a model has given NaN or infinity."""


def validate(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> None:
    """Refuse settings that mean nothing.

    Raises:
        ValueError: a setting is out of range; the message says which and what its range is.
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be 0 (always the likeliest token) or above, not {temperature!r}")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1):
        raise ValueError(f"top_k must be a whole number of at least 1, not {top_k!r}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, not {top_p!r}")


@checked
def check_logits(logits: Float[Tensor, "batch vocab"]) -> None:
    """Refuse logits from which no token can be chosen. Minus infinity is allowed: it rules out a token.

    Raises:
        LogitsError: a logit is NaN or infinite, or a row rules out every token.
    """
    if torch.compiler.is_compiling() or not logits.numel():
        return
    largest = logits.amax(dim=-1)  # NaN if there is one in its row
    wrong = (~largest.isfinite()).nonzero()
    if len(wrong):
        raise LogitsError(
            f"the logits of row {int(wrong[0])} are not finite: the largest is {largest[wrong[0]].item()}. The weights "
            "hold NaN or infinity, or the numbers have left the range of their dtype (try float32)"
        )


@checked
def greedy(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
    """The likeliest token of each row; the first of them if several are equally likely.

    Raises:
        LogitsError: the logits are not finite.
    """
    check_logits(logits)
    return logits.argmax(dim=-1)


@checked
def apply_temperature(logits: Float[Tensor, "batch vocab"], temperature: float) -> Float[Tensor, "batch vocab"]:
    """Sharpen (below 1) or flatten (above 1) the distribution.

    Dividing logits by T raises probabilities to the power 1/T: at 2 the odds of 9 to 1 become 3 to 1. Computed in
    float32 or wider; where the quotients would overflow, the largest logit is subtracted first, which changes no odds.

    Raises:
        ValueError: the temperature is not above 0.
    """
    validate(temperature)
    if temperature == 0:
        raise ValueError("logits cannot be divided by a temperature of 0: `greedy` is that limit")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    divisor = max(temperature, torch.finfo(torch.float32).tiny)  # a smaller one would round to 0
    largest = logits.amax(dim=-1, keepdim=True)
    overflows = ~(largest / divisor).isfinite()
    return torch.where(overflows, (logits - largest) / divisor, logits / divisor)


@checked
def keep_top_k(logits: Float[Tensor, "batch vocab"], top_k: int) -> Float[Tensor, "batch vocab"]:
    """Top-k sampling: rule out all but the `top_k` likeliest tokens; exactly that many, even where logits are equal.

    Source: Fan et al. 2018, arXiv:1805.04833.

    Raises:
        ValueError: `top_k` is not at least 1.
    """
    validate(top_k=top_k)
    top = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, top.indices, top.values)


@checked
def keep_top_p(logits: Float[Tensor, "batch vocab"], top_p: float) -> Float[Tensor, "batch vocab"]:
    """Nucleus (top-p) sampling: keep the fewest likeliest tokens whose probabilities add up to at least `top_p`.

    The rest, the tail, is ruled out. So the token that crosses the threshold is kept, and one token always is. Few
    survive where the model is sure, many where it is not. Source: Holtzman et al. 2019, arXiv:1904.09751.

    Raises:
        ValueError: `top_p` is not above 0 and at most 1.
    """
    validate(top_p=top_p)
    if top_p >= 1:
        return logits
    ranked = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = F.softmax(ranked.values.float(), dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    is_tail = before >= top_p
    is_tail[:, :1] = False  # whatever rounding says: the likeliest token stays
    kept = ranked.values.masked_fill(is_tail, -torch.inf)
    return torch.empty_like(logits).scatter(-1, ranked.indices, kept)


@checked
def sample(
    logits: Float[Tensor, "batch vocab"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generators: Sequence[torch.Generator] | None = None,
) -> Int[Tensor, "batch"]:
    """Draw one token for each row.

    Args:
        logits: one distribution a row.
        temperature: 0 means `greedy`, and then nothing else matters.
        top_k: the number of tokens to choose from; all if None.
        top_p: the probability that the tokens to choose from hold together, the nucleus; all tokens if None.
        generators: a source of randomness for each row, so that a row's draws do not depend on its neighbours;
            PyTorch's global one if None.

    Raises:
        ValueError: a setting is out of range.
        LogitsError: the logits are not finite.
    """
    validate(temperature, top_k, top_p)
    if temperature == 0:
        return greedy(logits)
    check_logits(logits)
    logits = apply_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    probabilities = F.softmax(logits, dim=-1).float()
    if generators is None:
        return rearrange(torch.multinomial(probabilities, 1), "batch 1 -> batch")
    draws = [torch.multinomial(row, 1, generator=own) for row, own in zip(probabilities, generators, strict=True)]
    return torch.cat(draws)
