"""The causal mask: what keeps a language model from reading the answer.

At every position the model predicts the token that comes next. That token is part of the text, one position further on.
If attention could look there, it would copy the answer, and would have learned nothing that helps it to write. So a
query may attend to the key of its own position and of every earlier one, and to no other.

The mask says so in truth values: True where a query may attend to a key. Rows are queries, `seq`, and columns are keys,
`seq_k`, both counted from the beginning of the text. The result is a lower triangle:

    >>> causal_mask(3)
    tensor([[ True, False, False],
            [ True,  True, False],
            [ True,  True,  True]])

Position 0 attends to itself alone, position 2 to all three. No row is all False: every position attends at least to
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
def causal_mask(seq: int) -> Bool[Tensor, "seq seq_k"]:
    """The mask for a text of `seq` positions: True where a query may attend to a key."""
    positions = torch.arange(seq)
    queries = rearrange(positions, "seq -> seq 1")
    keys = rearrange(positions, "seq_k -> 1 seq_k")
    return keys <= queries


def cases() -> Iterator[Case]:
    """One position, a few, many."""
    yield Case(5)
    yield Case(1)
    yield Case(17)


def no_position_attends_to_a_later_one(causal_mask: Callable[..., Tensor]) -> None:
    """A query at position 2 must not attend to positions 3, 4 and so on: what it should predict is there."""
    later = [(query, key) for query in range(6) for key in range(query + 1, 6) if causal_mask(6)[query, key]]
    if later:
        query, key = later[0]
        raise Fault(f"of 6 positions, position {query} may attend to position {key}, which comes later")


def every_position_attends_to_itself_and_all_before(causal_mask: Callable[..., Tensor]) -> None:
    """What has been read is what a position predicts from, its own token first of all."""
    masked = [(query, key) for query in range(6) for key in range(query + 1) if not causal_mask(6)[query, key]]
    if masked:
        query, key = masked[0]
        whom = "itself" if query == key else f"position {key}, which came before"
        raise Fault(f"of 6 positions, position {query} may not attend to {whom}")


def a_longer_text_has_the_mask_of_a_shorter_one_in_its_corner(causal_mask: Callable[..., Tensor]) -> str:
    """Whether a query may attend to a key depends on their two positions, and not on how long the text becomes."""
    if not torch.equal(causal_mask(9)[:4, :4], causal_mask(4)):
        raise Fault("the first 4 rows and columns of the mask for 9 positions are not the mask for 4 positions")
    allowed = reduce(causal_mask(4), "seq seq_k -> seq", "sum").tolist()
    return f"of 4 positions, the first attends to {allowed[0]}, the last to {allowed[-1]}"


exercise = Exercise(
    __name__,
    solution=(causal_mask,),
    cases=cases,
    properties=(
        no_position_attends_to_a_later_one,
        every_position_attends_to_itself_and_all_before,
        a_longer_text_has_the_mask_of_a_shorter_one_in_its_corner,
    ),
    hints=paragraphs(
        """
        `torch.arange(seq)` numbers the positions. You need them twice: as a column, for the queries, and as a
        row, for the keys.

        `rearrange(positions, "seq -> seq 1")` is a column of one number a query. An axis of size 1 goes
        with any size, so comparing a column with a row gives a whole table.

        A query may attend to a key that does not come later: `keys <= queries`. With `<` no position would attend
        to itself.
        """
    ),
    page="gpt2.html#GPT2.mask",
    part_of="allformers.models.gpt2.gpt2.GPT2.mask",
)
