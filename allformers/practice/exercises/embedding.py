"""Embedding: what a token is and where it stands become one vector.

A token id is a number as a house number is one: 17 is not more than 5. So a model keeps a learned vector for every
token of its vocabulary, and an id says which of them. To embed is to look up.

Attention, which comes next, does not know order: to it, a text is a bag of tokens. So there is a second table, with a
learned vector for every position, and what goes on is the sum of both: this token, at this place.

    >>> import torch
    >>> token_vectors = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]])
    >>> position_vectors = torch.tensor([[0.0, 0.1], [0.0, 0.2], [0.0, 0.3], [0.0, 0.4]])
    >>> embed(torch.tensor([[2, 0, 2]]), token_vectors, position_vectors)
    tensor([[[2.0000, 2.1000],
             [0.0000, 0.2000],
             [2.0000, 2.3000]]])

Token 2 stands at positions 0 and 2, and has another vector at each.

Every sequence of a batch begins at position 0. A text may be shorter than the table of positions, whose length is the
model's `context`, but never longer; all ids are in the vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


@checked
def embed(
    token_ids: Int[Tensor, "batch seq"],
    token_vectors: Float[Tensor, "vocab embed"],
    position_vectors: Float[Tensor, "context embed"],
) -> Float[Tensor, "batch seq embed"]:
    """Look up the vector of each token, and add the vector of the position that it stands at."""
    tokens: Float[Tensor, "batch seq embed"] = token_vectors[token_ids]
    positions: Float[Tensor, "seq embed"] = position_vectors[: token_ids.shape[1]]
    return tokens + positions


@checked
def _reference(
    token_ids: Int[Tensor, "batch seq"],
    token_vectors: Float[Tensor, "vocab embed"],
    position_vectors: Float[Tensor, "context embed"],
) -> Float[Tensor, "batch seq embed"]:
    positions = torch.arange(token_ids.shape[1])
    return F.embedding(token_ids, token_vectors) + F.embedding(positions, position_vectors)


def cases() -> Iterator[Case]:
    """Texts shorter than the context, one that fills it, as many sequences as positions, a single token."""
    yield Case(torch.randint(7, (2, 5)), torch.randn(7, 4), torch.randn(9, 4))
    yield Case(torch.randint(5, (3, 3)), torch.randn(5, 6), torch.randn(8, 6))
    yield Case(torch.randint(4, (1, 6)), torch.randn(4, 3), torch.randn(6, 3))
    yield Case(torch.randint(3, (4, 1)), torch.randn(3, 2), torch.randn(5, 2))


def a_token_has_another_vector_at_another_position(embed: Callable[..., Tensor]) -> None:
    """The same token at two positions gives two vectors, which differ as the vectors of the positions do."""
    token_vectors, position_vectors = torch.randn(7, 4), torch.randn(9, 4)
    x = embed(torch.tensor([[3, 1, 3]]), token_vectors, position_vectors)[0]
    if torch.equal(x[0], x[2]):
        raise Fault("token 3 has the same vector at seq 0 and at seq 2")
    if not torch.allclose(x[2] - x[0], position_vectors[2] - position_vectors[0], atol=1e-5):
        raise Fault("between seq 0 and seq 2, token 3 changes by something else than the vectors of these positions do")


def another_token_changes_its_own_position_only(embed: Callable[..., Tensor]) -> None:
    """Nothing is exchanged between positions yet: another token at seq 1 is another vector at seq 1."""
    token_vectors, position_vectors = torch.randn(7, 4), torch.randn(9, 4)
    one = embed(torch.tensor([[3, 1, 5]]), token_vectors, position_vectors)
    other = embed(torch.tensor([[3, 2, 5]]), token_vectors, position_vectors)
    difference = (other - one).abs()[0].sum(dim=-1)
    if not difference[1]:
        raise Fault("tokens 1 and 2 have the same vector at seq 1")
    if difference[0] or difference[2]:
        raise Fault(f"another token at seq 1 changed the vector at seq {0 if difference[0] else 2}")


def every_sequence_begins_at_position_0(embed: Callable[..., Tensor]) -> None:
    """Two sequences of the same tokens are embedded alike: which row of the batch they are in says nothing."""
    x = embed(torch.tensor([[3, 1, 5], [3, 1, 5]]), torch.randn(7, 4), torch.randn(9, 4))
    most, place = largest((x[1] - x[0]).abs(), "seq embed")
    if most:
        raise Fault(f"both sequences are 3, 1, 5, and their vectors differ by {most:.4g} at {place}")


exercise = Exercise(
    __name__,
    solution=(embed,),
    cases=cases,
    reference=_reference,
    properties=(
        a_token_has_another_vector_at_another_position,
        another_token_changes_its_own_position_only,
        every_sequence_begins_at_position_0,
    ),
    hints=paragraphs(
        """
        A tensor of whole numbers may stand in square brackets: it is then a list of rows to take, in any order and as
        often as they are named. What comes out has the axes of the ids, and behind them those of a row.

        `token_vectors[token_ids]` has the axes `batch seq embed`. Of the positions you need the first `seq` rows, where
        `seq` is `token_ids.shape[1]`.

        `token_vectors[token_ids] + position_vectors[: token_ids.shape[1]]`. The second has no axis `batch`: adding it
        gives every sequence the same.
        """
    ),
    page="gpt2.html#GPT2.embed",
    part_of="allformers.models.gpt2.gpt2.GPT2.embed",
)
