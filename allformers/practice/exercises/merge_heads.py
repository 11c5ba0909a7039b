"""Merge heads: what one pattern took apart, the mirrored one puts together.

Each head has worked on its own piece of every position, and what comes next wants one row for each position again: all
numbers of head 0, then all of head 1, and so on. So `heads` moves back behind `seq`, and `heads` and `head_dim` become
one axis, `embed`.

    >>> import torch
    >>> x = torch.tensor([[[[0, 1, 2], [10, 11, 12]], [[3, 4, 5], [13, 14, 15]]]]).float()
    >>> merge_heads(x)
    tensor([[[ 0.,  1.,  2.,  3.,  4.,  5.],
             [10., 11., 12., 13., 14., 15.]]])

Two heads, two positions, three numbers each. Position 0 has in its row what head 0 has for it, and then what head 1 has
for it.

A tensor can be told to have another shape without a number of it being moved. The shape is then right, and each row
holds one head's numbers of several positions. The name of every axis keeps you from that.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.split_heads import split_heads


@checked
def merge_heads(x: Float[Tensor, "batch heads seq head_dim"]) -> Float[Tensor, "batch seq embed"]:
    """Lay the pieces of all heads side by side, so that each position has one row again."""
    return rearrange(x, "batch heads seq head_dim -> batch seq (heads head_dim)")


def cases() -> Iterator[Case]:
    """Few and many heads, one and several of everything."""
    yield Case(torch.randn(2, 3, 5, 4))
    yield Case(torch.randn(1, 6, 7, 1))
    yield Case(torch.randn(3, 1, 1, 10))


def each_position_gets_its_own_numbers(merge_heads: Callable[..., Tensor]) -> None:
    """A position's row is made of what the heads have at that position, and at no other."""
    x = torch.zeros(1, 3, 5, 4)
    x[0, :, 3] = 1.0
    held = merge_heads(x)[0].sum(dim=-1)
    if held.tolist() != [0, 0, 0, 12, 0]:
        places = [place for place, total in enumerate(held.tolist()) if total]
        raise Fault(f"all heads had ones at seq 3 only; in the result they are at seq {', '.join(map(str, places))}")


def the_first_head_comes_first(merge_heads: Callable[..., Tensor]) -> None:
    """Of a row of 3 heads with 4 numbers each, the first 4 are head 0's, the next 4 head 1's, the last 4 head 2's."""
    x = torch.zeros(1, 3, 5, 4)
    x[0, 1] = 1.0
    places = [place for place, number in enumerate(merge_heads(x)[0, 2].tolist()) if number]
    if places != [4, 5, 6, 7]:
        raise Fault(f"ones were put into head 1 only; in a row of 12 they are at embed {', '.join(map(str, places))}")


def merging_undoes_splitting(merge_heads: Callable[..., Tensor]) -> None:
    """What was split into heads and merged again is what it was."""
    x = torch.randn(2, 5, 12)
    difference, place = largest((merge_heads(split_heads(x, 3)) - x).abs(), "batch seq embed")
    if difference:
        raise Fault(f"split into 3 heads and merged again, it differs at {place} by {difference:.4g}")


exercise = Exercise(
    __name__,
    solution=(merge_heads,),
    cases=cases,
    properties=(each_position_gets_its_own_numbers, the_first_head_comes_first, merging_undoes_splitting),
    hints=paragraphs(
        """
        It is the pattern of split-heads, read from right to left.

        On the left stand the four axes as they come: `batch heads seq head_dim`. On the right there are three, and the
        last of them is composed: two names in brackets.

        In the brackets `heads` comes first, as the slow part, so that a head's numbers stay side by side:
        `rearrange(x, "batch heads seq head_dim -> batch seq (heads head_dim)")`. No size has to be told: all are known.
        """
    ),
    page="gpt2.html#CausalSelfAttention.forward.mixed",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention.forward",
    prerequisites=("split-heads",),
)
