"""Split heads: one pattern cuts an axis in two and moves the halves where they belong.

A projection gives every position one long row of numbers. Attention wants that row in pieces: the first few numbers are
head 0's, the next few head 1's, and so on, and each head works on its own. So the axis `embed` is cut into `heads` and
`head_dim`, and `heads` moves in front of `seq`: what attention then does happens for every head side by side.

    >>> import torch
    >>> x = torch.tensor([[[0, 1, 2, 3, 4, 5], [10, 11, 12, 13, 14, 15]]]).float()
    >>> split_heads(x, 2)[0, 1]
    tensor([[ 3.,  4.,  5.],
            [13., 14., 15.]])

Two positions, six numbers each. Head 1 has the last three numbers of both positions.

The number of heads always divides the width. One call of `rearrange` does all of it, if its pattern says how `embed` is
composed and where each axis goes.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, paragraphs


@checked
def split_heads(x: Float[Tensor, "batch seq embed"], heads: int) -> Float[Tensor, "batch heads seq head_dim"]:
    """Cut each position's row into `heads` pieces of equal width, and put the heads before the positions."""
    return rearrange(x, "batch seq (heads head_dim) -> batch heads seq head_dim", heads=heads)


def cases() -> Iterator[Case]:
    """Few and many heads, one and several of everything."""
    yield Case(torch.randn(2, 5, 12), 3)
    yield Case(torch.randn(1, 7, 6), 6)
    yield Case(torch.randn(3, 1, 10), 1)


def each_position_keeps_its_own_numbers(split_heads: Callable[..., Tensor]) -> None:
    """What a head has at a position was cut from that position's row, and from no other."""
    x = torch.zeros(1, 5, 12)
    x[0, 3] = 1.0
    held = reduce(split_heads(x, 3), "batch heads seq head_dim -> seq", "sum")
    if held.tolist() != [0, 0, 0, 12, 0]:
        places = [place for place, total in enumerate(held.tolist()) if total]
        raise Fault(f"ones were put at seq 3 only; in the result they are at seq {', '.join(map(str, places))}")


exercise = Exercise(
    __name__,
    solution=(split_heads,),
    cases=cases,
    properties=(each_position_keeps_its_own_numbers,),
    hints=paragraphs(
        """
        A pattern has the axes before on its left and the axes after on its right. Brackets around two names say
        that they share one axis.

        On the left, the last axis is `(heads head_dim)`: the heads are the slow part, so head 0 gets the first
        numbers. einops has to be told one of the two sizes: `heads=heads`.

        The right side is what the result is annotated with: `rearrange(x, "batch seq (heads head_dim) -> ...",
        heads=heads)`.
        """
    ),
    page="gpt2.html#CausalSelfAttention.forward",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention.forward",
)
