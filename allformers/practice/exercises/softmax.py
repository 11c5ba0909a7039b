"""Softmax: scores become weights, without ever overflowing.

A query has a score for every key: any number, large or small, positive or negative. To take a mean of the values it
needs weights: none below zero, and one in sum. Softmax makes them so: raise e to each score, and divide by the sum over
all keys. What has the highest score gets the largest weight, and a difference of 1 between two scores makes one weight
e times the other, wherever the two scores lie.

    >>> import torch
    >>> scores = torch.tensor([[[[0.0, 1.0, 1.0]]]])
    >>> softmax(scores)
    tensor([[[[0.1554, 0.4223, 0.4223]]]])

There is one catch. `e ** 100` is more than a float32 can hold: it becomes infinity, and infinity divided by infinity is
no number. Scores of that size do occur. Since only differences count, you may subtract the same number from all scores
of a query before you raise e to them; which number makes sure that nothing overflows?

The sum goes over `seq_k`, for each query by itself. A masked score is the lowest number that there is, about `-3e38`,
and its weight has to come out as 0. You could call PyTorch's own softmax, and would learn nothing: use `exp` and
`reduce`.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


@checked
def softmax(scores: Float[Tensor, "batch heads seq seq_k"]) -> Float[Tensor, "batch heads seq seq_k"]:
    """Turn each query's scores into weights: none below 0, one in sum over the keys."""
    highest = reduce(scores, "batch heads seq seq_k -> batch heads seq 1", "max")
    exponentials = (scores - highest).exp()
    total = reduce(exponentials, "batch heads seq seq_k -> batch heads seq 1", "sum")
    return exponentials / total


def cases() -> Iterator[Case]:
    """Several of everything, one key, many keys."""
    yield Case(torch.randn(2, 3, 5, 7))
    yield Case(torch.randn(1, 2, 4, 1))
    yield Case(5 * torch.randn(1, 1, 3, 29))


def each_row_sums_to_one(softmax: Callable[..., Tensor]) -> None:
    """The weights of a query, over all keys, add up to 1: what it gets is a mean."""
    weights = softmax(torch.randn(2, 3, 5, 7))
    sums = reduce(weights, "batch heads seq seq_k -> batch heads seq", "sum")
    if not torch.allclose(sums, torch.ones(()), atol=1e-4):
        _, place = largest((sums - 1).abs(), "batch heads seq")
        raise Fault(f"the weights at {place} add up to {_furthest(sums, 1):.4g}")


def large_scores_do_not_overflow(softmax: Callable[..., Tensor]) -> None:
    """Only differences count: 1000 and 1001 get the weights of 0 and 1, and so do -1001 and -1000 beside them."""
    weights = softmax(torch.tensor([[[[1000.0, 1001.0], [-1001.0, -1000.0]]]]))
    for scores, row in zip(("1000 and 1001", "-1001 and -1000"), weights[0, 0], strict=True):
        if not torch.allclose(row, torch.tensor([0.2689, 0.7311]), atol=1e-3):
            raise Fault(f"the scores {scores} got the weights {row[0]:.4g} and {row[1]:.4g}")


def each_query_is_by_itself(softmax: Callable[..., Tensor]) -> None:
    """The weights of one query do not depend on the scores of another: queries do not know of each other."""
    scores = torch.randn(1, 2, 4, 5)
    other = scores.clone()
    other[0, 1, 2] += 3 * torch.randn(5)
    change = (softmax(other) - softmax(scores)).abs()
    change[0, 1, 2] = 0
    most, place = largest(change, "batch heads seq seq_k")
    if most > 1e-6:
        raise Fault(f"other scores at batch 0, heads 1, seq 2 changed the weight at {place} by {most:.4g}")


def a_masked_key_gets_nothing(softmax: Callable[..., Tensor]) -> None:
    """A score of about -3e38, the lowest float32, is a masked key: its weight is exactly 0."""
    scores = torch.randn(1, 1, 3, 4)
    scores[..., 2] = torch.finfo(scores.dtype).min
    masked = softmax(scores)[..., 2]
    if not bool((masked == 0).all()):
        raise Fault(f"a masked key has the weight {_furthest(masked, 0):.4g}")


def _furthest(values: Tensor, wanted: float) -> float:
    return values[(values - wanted).abs() == (values - wanted).abs().max()].tolist()[0]


exercise = Exercise(
    __name__,
    solution=(softmax,),
    cases=cases,
    reference=partial(F.softmax, dim=-1),
    properties=(
        each_row_sums_to_one,
        each_query_is_by_itself,
        large_scores_do_not_overflow,
        a_masked_key_gets_nothing,
    ),
    hints=paragraphs(
        """
        `reduce(scores, "batch heads seq seq_k -> batch heads seq 1", ...)` gives one number a query, and leaves
        an axis of size 1, which goes with any number of keys. You need two numbers a query.

        Subtract the highest score of each query first: `reduce(..., "max")`. Then the highest exponent is 0,
        and e to the power of 0 is 1.

        `exponentials = (scores - highest).exp()`, and the weights are `exponentials / total`, where the total
        is `reduce(exponentials, ..., "sum")`.
        """
    ),
    page="gpt2.html#CausalSelfAttention.forward.weights",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention.forward",
    prerequisites=("split-heads",),
)
