"""Attention scores: how well each key fits each query, in every head by itself.

Attention begins with a comparison. Every position has a query, which says what it looks for, and a key, which says what
it can be found by. Both are as wide as the residual stream, and both are split into heads, so that a position can look
for several things at once. A score is the dot product of a query's piece and a key's piece, of one and the same head.

Then every score is divided by the square root of `head_dim`. A dot product is a sum of `head_dim` terms; its spread
grows with the root of their number. Were it left like that, softmax would put all weight on one position in a wide
head, and learning would stop: where nothing else has any weight, nothing else has a gradient.

    >>> import torch
    >>> queries = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 1.0, 0.0, 0.0, 0.0]]])
    >>> keys = torch.tensor([[[1.0, 1.0, 1.0, 1.0, 6.0, 0.0, 0.0, 0.0]]])
    >>> attention_scores(queries, keys, 2)
    tensor([[[[5.]],
    <BLANKLINE>
             [[3.]]]])

One query, one key, two heads of width 4. In head 0 the dot product is 10, in head 1 it is 6, and the root of 4 is 2.

There may be more keys than queries, so their positions are two axes, `seq` and `seq_k`. Splitting is what you wrote
first: `split_heads(x, heads)` gives `batch heads seq head_dim`.
"""

import math
from collections.abc import Callable, Iterator

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.split_heads import split_heads


@checked
def attention_scores(
    queries: Float[Tensor, "batch seq embed"], keys: Float[Tensor, "batch seq_k embed"], heads: int
) -> Float[Tensor, "batch heads seq seq_k"]:
    """Compare each query with each key, head by head, so that the spread does not depend on how wide a head is."""
    queries_of_heads: Float[Tensor, "batch heads seq head_dim"] = split_heads(queries, heads)
    keys_of_heads: Float[Tensor, "batch heads seq_k head_dim"] = split_heads(keys, heads)
    scores = einsum(
        queries_of_heads, keys_of_heads, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k"
    )
    return scores / math.sqrt(queries_of_heads.shape[-1])


def cases() -> Iterator[Case]:
    """More keys than queries, one head, heads of width 1."""
    yield Case(torch.randn(2, 4, 12), torch.randn(2, 5, 12), 3)
    yield Case(torch.randn(1, 3, 10), torch.randn(1, 7, 10), 1)
    yield Case(torch.randn(3, 1, 6), torch.randn(3, 2, 6), 6)


def heads_do_not_mix(attention_scores: Callable[..., Tensor]) -> None:
    """A head compares its own piece of the width: other numbers in head 1's piece change head 1's scores only."""
    queries, keys = torch.randn(1, 4, 12), torch.randn(1, 5, 12)
    other_queries, other_keys = queries.clone(), keys.clone()
    other_queries[..., 4:8] = torch.randn(1, 4, 4)
    other_keys[..., 4:8] = torch.randn(1, 5, 4)
    before = attention_scores(queries, keys, 3)
    for name, after in (
        ("queries", attention_scores(other_queries, keys, 3)),
        ("keys", attention_scores(queries, other_keys, 3)),
    ):
        told = f"other numbers in head 1's piece of the {name}, embed 4 to 7, changed"
        change = (after - before).abs()[0]
        for head in (0, 2):
            most, place = largest(change[head], "seq seq_k")
            if most > 1e-5:
                raise Fault(f"{told} head {head} at {place} by {most:.4g}")
        if largest(change[1], "seq seq_k")[0] < 1e-5:
            raise Fault(f"{told} nothing in head 1")


def the_spread_is_1_at_any_width(attention_scores: Callable[..., Tensor]) -> str:
    """Of numbers whose spread is 1, the scores have spread 1 as well, in narrow heads as in wide ones."""
    found = {}
    for head_dim in (4, 64):
        queries, keys = torch.randn(1, 64, 2 * head_dim), torch.randn(1, 64, 2 * head_dim)
        found[head_dim] = float(attention_scores(queries, keys, 2).std())
    told = ", ".join(f"{spread:.2f} in heads of width {head_dim}" for head_dim, spread in found.items())
    if not all(0.8 < spread < 1.25 for spread in found.values()):
        raise Fault(f"the scores' spread is {told}")
    return f"spread {told}"


def a_score_belongs_to_one_query_and_one_key(attention_scores: Callable[..., Tensor]) -> None:
    """Another key at seq_k 2 changes the scores in that column, and no other."""
    queries, keys = torch.randn(1, 4, 12), torch.randn(1, 5, 12)
    other = keys.clone()
    other[:, 2] += 3.0
    change = (attention_scores(queries, other, 3) - attention_scores(queries, keys, 3)).abs()
    change[..., 2] = 0
    most, place = largest(change[0], "heads seq seq_k")
    if most > 1e-5:
        raise Fault(f"another key at seq_k 2 changed the score at {place} by {most:.4g}")


exercise = Exercise(
    __name__,
    solution=(attention_scores,),
    cases=cases,
    properties=(
        heads_do_not_mix,
        a_score_belongs_to_one_query_and_one_key,
        the_spread_is_1_at_any_width,
    ),
    hints=paragraphs(
        """
        Three steps: split the queries and the keys, compare them by one `einsum`, divide. The pattern is that of
        contraction with one axis more, which both sides share and the result keeps.

        `split_heads(queries, heads)` and `split_heads(keys, heads)`. In the pattern, what is added up is `head_dim`,
        and the positions have two names: `batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq
        seq_k`.

        The number under the root is the width of one head, the size of the last axis after splitting, and not the
        width of the stream: `scores / math.sqrt(queries_of_heads.shape[-1])`.
        """
    ),
    page="gpt2.html#CausalSelfAttention.forward.queries",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention.forward",
    prerequisites=("split-heads", "contraction"),
)
