"""Top-k: draw among the likeliest tokens only.

A vocabulary has tens of thousands of tokens, and nearly all of them are nonsense at any given place. Each is nearly
impossible, but there are so many that one of them is drawn now and then, and one is enough to derail a text. Top-k
rules out all but the `top_k` likeliest.

Ruled out means a logit of minus infinity: softmax makes a probability of exactly 0 of it, and the tokens that are left
share what the others had, in proportion. Their own logits stay as they are.

    >>> import torch
    >>> keep_top_k(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 2)
    tensor([[-inf, 4., -inf, 3.]])

Exactly `top_k` tokens are kept in each row, also where several logits are equal: which of the equal ones, does not
matter. If `top_k` is larger than the vocabulary, nothing is ruled out.

You may assume that `top_k` is at least 1. `logits.topk(k, dim=-1)` gives the `values` of the k highest, from the
highest down, and their places in the row, the `indices`.
"""

from collections.abc import Callable, Iterator

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from allformers.generation import sampling
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


@checked
def keep_top_k(logits: Float[Tensor, "batch vocab"], top_k: int) -> Float[Tensor, "batch vocab"]:
    """Rule out all but the `top_k` likeliest tokens of each row: exactly that many, even where logits are equal."""
    kept = logits.topk(min(top_k, logits.shape[-1]), dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)


def cases() -> Iterator[Case]:
    """One token, a few, all of them, and more than there are."""
    yield Case(torch.randn(2, 7), 3)
    yield Case(torch.randn(1, 11), 1)
    yield Case(torch.randn(3, 5), 5)
    yield Case(torch.randn(4, 3), 50)


@torch.no_grad()
def _reference(logits: Tensor, top_k: int) -> Tensor:
    """The package's own; writing learns nothing, so there are no gradients to compare."""
    return sampling.keep_top_k(logits, top_k)


def as_many_stay_as_were_asked_for(keep_top_k: Callable[..., Tensor]) -> None:
    """Of each row `top_k` tokens stay, and no more where several are equal: the rest get a probability of 0."""
    equal = torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]])
    for logits in (torch.randn(3, 6), equal):
        for top_k in (1, 2, 4):
            probabilities = keep_top_k(logits.clone(), top_k).softmax(dim=-1)
            stay = reduce(probabilities > 0, "batch vocab -> batch", "sum").tolist()
            for row, count in zip(logits, stay, strict=True):
                if count != top_k:
                    raise Fault(f"of the logits {_said(row)} there stay {count} with `top_k` {top_k}")


def those_that_stay_are_the_likeliest(keep_top_k: Callable[..., Tensor]) -> None:
    """What stays was likelier than what is ruled out, in every row."""
    logits = torch.randn(3, 8)
    for row, kept in zip(logits, keep_top_k(logits.clone(), 3).isfinite(), strict=True):
        if row[kept].min() < row[~kept].max():
            raise Fault(f"of the logits {_said(row)} there stay {_said(row[kept])} with `top_k` 3")


def what_stays_is_as_it_was(keep_top_k: Callable[..., Tensor]) -> None:
    """A token that is kept keeps its logit and its place: the odds among the kept ones do not change."""
    logits = torch.randn(3, 8)
    result = keep_top_k(logits.clone(), 4)
    change = (result - logits).abs().where(result.isfinite(), 0.0)
    most, place = largest(change, "batch vocab")
    if most > 1e-6:
        raise Fault(f"the logit kept at {place} has changed by {most:.4g}")


def _said(row: Tensor) -> str:
    return " ".join(f"{value:.4g}" for value in row.tolist())


exercise = Exercise(
    __name__,
    solution=(keep_top_k,),
    cases=cases,
    reference=_reference,
    properties=(as_many_stay_as_were_asked_for, those_that_stay_are_the_likeliest, what_stays_is_as_it_was),
    hints=paragraphs(
        """
        Comparing each logit with the lowest that is kept seems to be enough, until two are equal. The places that
        `topk` gives are exactly as many as were asked for.

        Begin with a row in which everything is ruled out, `torch.full_like(logits, -torch.inf)`, and write the kept
        logits where they belong. `topk` refuses to give more than there are: `min(top_k, logits.shape[-1])`.

        `kept = logits.topk(min(top_k, logits.shape[-1]), dim=-1)`, and `scatter(-1, kept.indices, kept.values)` on the
        row of minus infinity.
        """
    ),
    page="writing.html#keep_top_k",
    part_of="allformers.generation.sampling.keep_top_k",
    prerequisites=("temperature",),
)
