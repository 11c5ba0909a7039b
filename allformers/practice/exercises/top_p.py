"""Top-p: draw among as many tokens as it takes, few where the model is sure.

A fixed number of tokens fits no text. After "Once upon a" one continuation is good, after "She opened the" there are
hundreds. Top-p counts probability instead: it takes tokens from the likeliest down until together they hold at least
`top_p`, and rules out the rest. That is also called nucleus sampling.

So the token that crosses the border is kept: without it there would be less than was asked for. And one token always
is, the likeliest, however low `top_p` may be.

    >>> import torch
    >>> logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    >>> keep_top_p(logits, 0.7).softmax(dim=-1)
    tensor([[0.0000, 0.6250, 0.0000, 0.3750]])

The likeliest has 0.5, which is less than 0.7; with the next there are 0.8, and that is enough. The two share what the
others had: 5 to 3, as before.

As in top-k, what is ruled out gets a logit of minus infinity, and what is kept stays as it is, where it is. You may
assume that `top_p` is above 0. At 1 nothing is ruled out, not even what is so unlikely that it drowns in rounding.

`logits.sort(dim=-1, descending=True)` gives the `values` in order, and where in the row each was, the `indices`.
`cumsum(dim=-1)` adds up from the first to each.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allformers.generation import sampling
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


@checked
def keep_top_p(logits: Float[Tensor, "batch vocab"], top_p: float) -> Float[Tensor, "batch vocab"]:
    """Rule out the tail: keep the fewest likeliest tokens whose probabilities add up to at least `top_p`."""
    if top_p >= 1:
        return logits
    ranked = logits.sort(dim=-1, descending=True)
    probabilities = F.softmax(ranked.values, dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    before[:, 0] = 0.0
    kept = ranked.values.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, ranked.indices, kept)


def cases() -> Iterator[Case]:
    """Flat rows and steep ones, a border that is low, in the middle and high."""
    yield Case(torch.randn(2, 7), 0.6)
    yield Case(torch.randn(1, 11), 0.05)
    yield Case(4 * torch.randn(3, 5), 0.9)
    yield Case(torch.randn(4, 3), 1.0)


@torch.no_grad()
def _reference(logits: Tensor, top_p: float) -> Tensor:
    """The package's own; writing learns nothing, so there are no gradients to compare."""
    return sampling.keep_top_p(logits, top_p)


def what_stays_is_as_it_was(keep_top_p: Callable[..., Tensor]) -> None:
    """A token that is kept keeps its logit and its place, so the odds among the kept ones do not change."""
    logits = torch.randn(3, 8)
    result = keep_top_p(logits.clone(), 0.8)
    change = (result - logits).abs().where(result.isfinite(), 0.0)
    most, place = largest(change, "batch vocab")
    if most > 1e-6:
        raise Fault(f"the logit kept at {place} has changed by {most:.4g}")


KNOWN = (0.15, 0.5, 0.05, 0.3)
"""The probabilities of four tokens, in no order."""


def _stay(keep_top_p: Callable[..., Tensor], top_p: float) -> tuple[float, ...]:
    result = keep_top_p(torch.tensor([KNOWN]).log(), top_p)[0]
    return tuple(p for p, stays in zip(KNOWN, (result.softmax(dim=-1) > 0).tolist(), strict=True) if stays)


def the_token_that_crosses_the_border_stays(keep_top_p: Callable[..., Tensor]) -> None:
    """What stays holds at least `top_p`."""
    for top_p in (0.7, 0.9, 0.97, 0.3):
        stay = _stay(keep_top_p, top_p)
        if sum(stay) < top_p:
            told = f"of the probabilities {_said(KNOWN)}, {_said(stay)} stayed with `top_p` {top_p}"
            raise Fault(f"{told}: together {sum(stay):.4g}")


def no_more_stay_than_it_takes(keep_top_p: Callable[..., Tensor]) -> None:
    """The fewest tokens, and so the likeliest: without the least likely of those that stay, it would be too little."""
    for top_p in (0.3, 0.7, 0.9):
        stay = _stay(keep_top_p, top_p)
        without = sum(stay) - min(stay)
        if without >= top_p:
            told = f"of the probabilities {_said(KNOWN)}, {_said(stay)} stayed with `top_p` {top_p}"
            raise Fault(f"{told}; without {min(stay)} there are {without:.4g}, which is enough")


def at_1_nothing_is_ruled_out(keep_top_p: Callable[..., Tensor]) -> None:
    """`top_p` 1 asks for all there is. Sums are rounded, and may reach 1 before the last token has been counted."""
    ruled_out = int((~keep_top_p(5 * torch.randn(4, 3000), 1.0).isfinite()).sum())
    if ruled_out:
        raise Fault(f"with `top_p` 1, {ruled_out:,} of 4 x 3,000 tokens were ruled out")


def _said(probabilities: tuple[float, ...]) -> str:
    return " ".join(map(str, probabilities)) or "none"


exercise = Exercise(
    __name__,
    solution=(keep_top_p,),
    cases=cases,
    reference=_reference,
    properties=(
        what_stays_is_as_it_was,
        the_token_that_crosses_the_border_stays,
        no_more_stay_than_it_takes,
        at_1_nothing_is_ruled_out,
    ),
    hints=paragraphs(
        """
        Work on the row in order, from the likeliest down, and put everything back where it was at the end. What decides
        about a token is how much those *before* it hold: if that is not enough yet, it is needed.

        `cumsum` counts each token in, so `before = probabilities.cumsum(dim=-1) - probabilities`. Rule out where
        `before >= top_p`. The first has nothing before it; write the 0 down, because a difference of rounded numbers
        may be something else. And let 1 be a case of its own.

        `kept = ranked.values.masked_fill(before >= top_p, -torch.inf)` is still in order. `torch.empty_like(logits)
        .scatter(-1, ranked.indices, kept)` writes each back to the place that it came from.
        """
    ),
    page="writing.html#keep_top_p",
    part_of="allformers.generation.sampling.keep_top_p",
    prerequisites=("top-k",),
)
