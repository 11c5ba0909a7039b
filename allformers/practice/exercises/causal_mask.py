"""The causal mask: what keeps a language model from reading the answer.

At every position the model predicts the token that comes next. That token is part of the text, one position further on.
If attention could look there, it would copy the answer, and would have learned nothing that helps it to write. So a
query may see the key of its own position and of every earlier one, and no other.

The mask says so in truth values: True is blocked. Rows are queries, `seq_q`, and columns are keys, `seq_k`, both
counted from the beginning of the text:

    >>> causal_mask(3)
    tensor([[False,  True,  True],
            [False, False,  True],
            [False, False, False]])

Position 0 sees itself alone, position 2 sees all three. No row is blocked as a whole: every position sees at least
itself.

You may assume that `seq` is at least 1. What you need is a comparison between the position of a query and the position
of a key.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange, reduce
from jaxtyping import Bool
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, paragraphs


@checked
def causal_mask(seq: int) -> Bool[Tensor, "seq_q seq_k"]:
    """Which keys each query must not see, for a text of `seq` positions: True where it is blocked."""
    positions = torch.arange(seq)
    queries = rearrange(positions, "seq_q -> seq_q 1")
    keys = rearrange(positions, "seq_k -> 1 seq_k")
    return keys > queries


def cases() -> Iterator[Case]:
    """One position, a few, many."""
    yield Case(5)
    yield Case(1)
    yield Case(17)


def no_position_sees_a_later_one(causal_mask: Callable[..., Tensor]) -> None:
    """A query at position 2 must not see the keys at positions 3, 4 and so on: what it should predict is there."""
    seen = [(query, key) for query in range(6) for key in range(query + 1, 6) if not causal_mask(6)[query, key]]
    if seen:
        query, key = seen[0]
        raise Fault(f"of 6 positions, position {query} sees position {key}, which comes later")


def every_position_sees_itself_and_all_before(causal_mask: Callable[..., Tensor]) -> None:
    """What has been read is what a position predicts from, its own token first of all."""
    blocked = [(query, key) for query in range(6) for key in range(query + 1) if causal_mask(6)[query, key]]
    if blocked:
        query, key = blocked[0]
        whom = "itself" if query == key else f"position {key}, which came before"
        raise Fault(f"of 6 positions, position {query} does not see {whom}")


def a_longer_text_has_the_mask_of_a_shorter_one_in_its_corner(causal_mask: Callable[..., Tensor]) -> str:
    """Whether a key is blocked depends on the two positions, and not on how long the text becomes."""
    if not torch.equal(causal_mask(9)[:4, :4], causal_mask(4)):
        raise Fault("the first 4 rows and columns of the mask for 9 positions are not the mask for 4 positions")
    free = reduce(~causal_mask(4), "seq_q seq_k -> seq_q", "sum").tolist()
    return f"of 4 positions, the first sees {free[0]}, the last {free[-1]}"


exercise = Exercise(
    __name__,
    solution=(causal_mask,),
    cases=cases,
    properties=(
        no_position_sees_a_later_one,
        every_position_sees_itself_and_all_before,
        a_longer_text_has_the_mask_of_a_shorter_one_in_its_corner,
    ),
    hints=paragraphs(
        """
        `torch.arange(seq)` numbers the positions. You need them twice: as a column, for the queries, and as a
        row, for the keys.

        `rearrange(positions, "seq_q -> seq_q 1")` is a column of one number a query. An axis of size 1 goes
        with any size, so comparing a column with a row gives a whole table.

        A key is blocked if it comes later than the query: `keys > queries`. With `>=` no position would see
        itself.
        """
    ),
    page="gpt2.html#GPT2.mask",
    part_of="allformers.models.gpt2.gpt2.GPT2.mask",
)
