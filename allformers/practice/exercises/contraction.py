"""Contraction: two tensors are compared everywhere at once, by one pattern.

How well does a query fit a key? Multiply them number by number and add up: the dot product. It is large where both have
large numbers in the same places. Attention asks this of every query and every key, so there is one number for each pair
of positions.

`einsum` does it without a loop. Its pattern names the axes of both tensors and those of the result, and there is one
rule: an axis that the result does not have is multiplied and added up. What has the same name in both goes together;
what has different names makes pairs.

    >>> import torch
    >>> queries = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
    >>> keys = torch.tensor([[[10.0, 1.0], [1.0, 0.0], [0.0, 10.0]]])
    >>> compare(queries, keys)
    tensor([[[12.,  1., 20.],
             [ 1.,  0., 10.]]])

Two queries and three keys, two numbers each. Query 0 and key 0 fit by 1 * 10 + 2 * 1 = 12.

The positions of queries are `seq`, those of keys `seq_k`; there may be more of one than of the other. Take `einsum`
from einops, whose pattern comes last; that of torch knows letters only.
"""

from collections.abc import Callable, Iterator

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


@checked
def compare(
    queries: Float[Tensor, "batch seq embed"], keys: Float[Tensor, "batch seq_k embed"]
) -> Float[Tensor, "batch seq seq_k"]:
    """Say how well each query fits each key of its own sequence: their dot product."""
    return einsum(queries, keys, "batch seq embed, batch seq_k embed -> batch seq seq_k")


def cases() -> Iterator[Case]:
    """More keys than queries, as many, a single one of each."""
    yield Case(torch.randn(2, 3, 4), torch.randn(2, 5, 4))
    yield Case(torch.randn(3, 2, 6), torch.randn(3, 2, 6))
    yield Case(torch.randn(1, 1, 1), torch.randn(1, 1, 1))


def twice_the_query_is_twice_the_score(compare: Callable[..., Tensor]) -> None:
    """A dot product is linear: it grows in step with either side. Nothing is normalised here, and nothing scaled."""
    queries, keys = torch.randn(1, 2, 4), torch.randn(1, 3, 4)
    most, place = largest((compare(2 * queries, keys) - 2 * compare(queries, keys)).abs(), "batch seq seq_k")
    if most > 1e-5:
        raise Fault(f"with queries twice as long the scores are not twice as large: {most:.4g} apart at {place}")


def only_equal_places_are_multiplied(compare: Callable[..., Tensor]) -> None:
    """Number 0 of a query meets number 0 of a key, and no other: where one of the two has 0, nothing is added."""
    queries, keys = torch.zeros(1, 3, 4), torch.zeros(1, 5, 4)
    queries[0, 2, 1], keys[0, 0, 1], keys[0, 3, 2] = 2.0, 3.0, 7.0
    scores = compare(queries, keys)[0]
    if scores[2, 3]:
        raise Fault(f"a query has a number at embed 1 only, a key at embed 2 only, and the score is {scores[2, 3]:.4g}")
    if scores[2, 0] != 6:
        raise Fault(
            f"a query has a 2 at embed 1, a key has a 3 there, and nothing else; the score is {scores[2, 0]:.4g}"
        )


def sequences_do_not_mix(compare: Callable[..., Tensor]) -> None:
    """Queries are compared with the keys of their own sequence: each gets what it would get alone."""
    queries, keys = torch.randn(3, 2, 4), torch.randn(3, 5, 4)
    together, alone = compare(queries, keys)[1], compare(queries[1:2], keys[1:2])[0]
    most, place = largest((together - alone).abs(), "seq seq_k")
    if most > 1e-5:
        raise Fault(f"sequence 1 of 3 gets something else than it gets alone: {most:.4g} apart at {place}")


exercise = Exercise(
    __name__,
    solution=(compare,),
    cases=cases,
    properties=(twice_the_query_is_twice_the_score, only_equal_places_are_multiplied, sequences_do_not_mix),
    hints=paragraphs(
        """
        The pattern is there already, in the annotations: the axes of both arguments, and those of the result. What
        stands on the left only?

        `einsum(queries, keys, "..., ... -> ...")`: a comma between the two tensors. `batch` is on both sides of the
        comma and in the result, so it goes along; `embed` is on both sides and not in the result, so it is added up.

        `einsum(queries, keys, "batch seq embed, batch seq_k embed -> batch seq seq_k")`.
        """
    ),
    page="gpt2.html#CausalSelfAttention.forward.queries",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention.forward",
    prerequisites=("split-heads",),
)
