"""Attention: every position gathers, from itself and those before it, what it needs.

This is the one place in a transformer where positions exchange anything. Each position of the residual stream `x` makes
three vectors: a query (what it looks for), a key (what it can be found by) and a value (what it passes on). A query is
compared with every key, the comparisons become weights, and the weighted mean of the values is what the position gets.
Several heads do this side by side, each with a slice of the width: multi-head attention.

In order:

1. one projection makes queries, keys and values, fused: its result has the axis `(qkv heads head_dim)`;
2. a score for each query and key, their dot product over `head_dim`, divided by the square root of `head_dim`;
3. where `mask` is False, the lowest number there is takes the score's place;
4. softmax over the keys, `seq_k`;
5. the weighted mean of the values;
6. the heads side by side again, through the output projection.

`mask` is True where a query may attend to a key. It has the axes `batch`, 1, `seq`, `seq_k`; `batch` may have size 1
too, for a mask that all sequences share. The two projections are made for you in `__init__`. With one head, one
position and nothing to compare with, a position gets its own value:

    >>> import torch
    >>> config = GPT2Config(vocab_size=5, context_length=4, embedding_dim=2, num_layers=1, num_heads=1, mlp_dim=8)
    >>> attention = CausalSelfAttention(config)
    >>> x = torch.tensor([[[0.5, -1.0]]])
    >>> value = attention.query_key_value(x)[..., 4:]
    >>> torch.allclose(attention(x, torch.tensor([[[[True]]]])), attention.output(value))
    True

`F.softmax` is yours to use.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allformers.models.gpt2 import gpt2
from allformers.models.gpt2.gpt2 import GPT2Config
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position attends only where the mask is True."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.query_key_value = nn.Linear(config.embedding_dim, 3 * config.embedding_dim)
        self.output = nn.Linear(config.embedding_dim, config.embedding_dim)

    @checked
    def forward(
        self, x: Float[Tensor, "batch seq embed"], mask: Bool[Tensor, "#batch 1 seq seq_k"]
    ) -> Float[Tensor, "batch seq embed"]:
        """Return, for each position, the weighted sum of the values of itself and the positions before it, projected.

        Args:
            x: the residual stream after the norm.
            mask: True where a query may attend to a key.
        """
        queries, keys, values = rearrange(
            self.query_key_value(x),
            "batch seq (qkv heads head_dim) -> qkv batch heads seq head_dim",
            qkv=3,
            heads=self.config.num_heads,
        )
        scores: Float[Tensor, "batch heads seq seq_k"] = einsum(
            queries, keys, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k"
        )
        scores = scores / math.sqrt(queries.shape[-1])
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
        weights: Float[Tensor, "batch heads seq seq_k"] = F.softmax(scores, dim=-1)
        mixed: Float[Tensor, "batch heads seq head_dim"] = einsum(
            weights, values, "batch heads seq seq_k, batch heads seq_k head_dim -> batch heads seq head_dim"
        )
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.output(merged)


def cases() -> Iterator[Case]:
    """Several of everything, a single position, a single head, and a mask that differs from sequence to sequence."""
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=3, mlp_dim=20)
    one_head = GPT2Config(vocab_size=11, context_length=9, embedding_dim=10, num_layers=1, num_heads=1, mlp_dim=20)
    yield Case(torch.randn(2, 5, 12), _causal(5), made_with=(config,))
    yield Case(torch.randn(1, 1, 12), _causal(1), made_with=(config,))
    yield Case(torch.randn(3, 7, 10), _causal(7), made_with=(one_head,))
    padding = torch.tensor([0, 2])
    is_text = rearrange(torch.arange(5), "seq_k -> 1 1 1 seq_k") >= rearrange(padding, "batch -> batch 1 1 1")
    yield Case(torch.randn(2, 5, 12), _causal(5) & is_text, made_with=(config,))


@checked
def _causal(seq: int) -> Bool[Tensor, "1 1 seq seq_k"]:
    return rearrange(torch.ones(seq, seq, dtype=torch.bool).tril(), "seq seq_k -> 1 1 seq seq_k")


def _made(attention_class: Callable[[GPT2Config], nn.Module], heads: int) -> nn.Module:
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=heads, mlp_dim=20)
    return attention_class(config).eval()


def a_later_position_never_changes_an_earlier_one(attention_class: Callable[[GPT2Config], nn.Module]) -> None:
    """What is masked has no influence at all: whatever stands at a later position, the earlier ones get the same."""
    attention, x = _made(attention_class, 3), torch.randn(2, 6, 12)
    other = x.clone()
    other[:, 4] += 1.0
    change = (attention(other, _causal(6)) - attention(x, _causal(6))).abs()[:, :4]
    most, place = largest(change, "batch seq embed")
    if most > 1e-5:
        raise Fault(f"another vector at seq 4 changed the result at {place} by {most:.4g}")


def an_earlier_position_reaches_a_later_one(attention_class: Callable[[GPT2Config], nn.Module]) -> None:
    """What is not masked is gathered: the last position gets something from the first."""
    attention, x = _made(attention_class, 3), torch.randn(2, 6, 12)
    other = x.clone()
    other[:, 0] += 3.0
    change = (attention(other, _causal(6)) - attention(x, _causal(6))).abs()[:, 5]
    if largest(change, "batch embed")[0] < 1e-5:
        raise Fault("another vector at seq 0 changed nothing at seq 5")


def sequences_do_not_mix(attention_class: Callable[[GPT2Config], nn.Module]) -> None:
    """The sequences of a batch have nothing to do with each other: each gets what it would get alone."""
    attention, x = _made(attention_class, 3), torch.randn(3, 4, 12)
    together, alone = attention(x, _causal(4))[1:2], attention(x[1:2], _causal(4))
    most, place = largest((together - alone).abs(), "batch seq embed")
    if most > 1e-5:
        raise Fault(f"sequence 1 of 3 gets something else than it gets alone: {most:.4g} apart at {place}")


def what_a_position_gets_is_a_mean_of_values(attention_class: Callable[[GPT2Config], nn.Module]) -> None:
    """Weights add up to 1: where all values are equal, their mean is the same vector, whatever the scores are."""
    attention, x = _made(attention_class, 2), torch.randn(1, 5, 12)
    value = torch.randn(12)
    with torch.no_grad():
        attention.query_key_value.weight[24:] = 0  # type: ignore[operator, union-attr]
        attention.query_key_value.bias[24:] = value  # type: ignore[operator, union-attr]
    gathered, expected = attention(x, _causal(5)), attention.output(value)  # type: ignore[operator]
    differences = reduce((gathered - expected).abs(), "batch seq embed -> seq", "max")
    most, place = largest(differences, "seq")
    if most > 1e-4:
        raise Fault(
            "the last third of `query_key_value`, the values, gives every position the same vector, but what "
            f"{place} gets differs from that by {most:.4g}"
        )


exercise = Exercise(
    __name__,
    solution=(CausalSelfAttention,),
    cases=cases,
    reference=gpt2.CausalSelfAttention,
    properties=(
        a_later_position_never_changes_an_earlier_one,
        an_earlier_position_reaches_a_later_one,
        sequences_do_not_mix,
        what_a_position_gets_is_a_mean_of_values,
    ),
    hints=paragraphs(
        """
        One `rearrange` takes the fused axis apart: `qkv` may come first on its right side, and then three tensors can
        be unpacked from it, `queries, keys, values = rearrange(...)`. The order in the brackets is `(qkv heads
        head_dim)`.

        The scores are `einsum(queries, keys, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq
        seq_k")`: the positions of keys have a name of their own. Divide by `math.sqrt(queries.shape[-1])`, then
        `torch.where(mask, scores, torch.finfo(scores.dtype).min)`, then `F.softmax(scores, dim=-1)`.

        The mean contracts `seq_k`: `einsum(weights, values, "batch heads seq seq_k, batch heads seq_k head_dim -> batch
        heads seq head_dim")`. Then `rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")`, and
        `self.output` of that.
        """
    ),
    page="gpt2.html#CausalSelfAttention",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention",
    prerequisites=("split-heads", "causal-mask", "softmax"),
)
