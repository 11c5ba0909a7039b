"""Grouped-query attention: several query heads share the keys and values of one.

While a model writes, the keys and values of every position are kept in the KV cache and read anew for each token. That
memory is what limits how long and how many texts it can write. So grouped-query attention (GQA) makes fewer of them:
each of `kv_heads` heads of keys and values serves a `group` of query heads. The queries of a group attend to the same
keys, each in its own way. Query heads are ordered as `(kv_heads group)`: with 6 query heads and 2 key heads, the first
three belong to key head 0, the others to key head 1.

Three things are new, and the rest is attention as you know it:

1. three projections, `query`, `key` and `value`, since they differ in size; `query` has a result of width
   `(kv_heads group head_dim)`, the others of `(kv_heads head_dim)`. So queries get five axes, `batch kv_heads group seq
   head_dim`, and keep them until the heads are merged;
2. queries and keys are rotated by `apply_rope`, before they are compared; values are not, since what a position passes
   on does not depend on who asks;
3. scores and means are taken group by group.

Then as before: divide by the square root of `head_dim`, put the lowest finite number where `mask` is False, softmax
over `seq_k`, mean of the values, heads side by side, `output`. A position of padding may have nothing to attend to;
with the lowest number it gets some mean, and with minus infinity it would get NaN.

    >>> import torch
    >>> from allformers.models.llama.llama import LlamaConfig
    >>> config = LlamaConfig.tiny()
    >>> config.num_heads, config.num_kv_heads, config.head_dim
    (4, 2, 16)
    >>> attention = GroupedQueryAttention(config)
    >>> attention.query.weight.shape, attention.key.weight.shape
    (torch.Size([64, 64]), torch.Size([32, 64]))
    >>> cos, sin, mask = torch.ones(5, 8), torch.zeros(5, 8), torch.ones(1, 1, 5, 5, dtype=torch.bool)
    >>> attention(torch.randn(2, 5, 64), cos, sin, mask).shape
    torch.Size([2, 5, 64])

Keys and values need no copies for the heads that share them: in an `einsum`, what has no axis `group` goes with all of
it. `mask` has the axes `batch`, 1, `seq`, `seq_k`; the 1 stands for all heads. `apply_rope` is the one that you wrote.
"""

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allformers.models.llama import llama
from allformers.models.llama.llama import LlamaConfig
from allformers.nn.rope import default_inv_freq, rope_cos_sin
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.rotary import apply_rope


class GroupedQueryAttention(nn.Module):
    """Causal attention with RoPE, in which a group of query heads shares one head of keys and values."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.embedding_dim, q_dim, bias=False)
        self.key = nn.Linear(config.embedding_dim, kv_dim, bias=False)
        self.value = nn.Linear(config.embedding_dim, kv_dim, bias=False)
        self.output = nn.Linear(q_dim, config.embedding_dim, bias=False)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        cos: Float[Tensor, "seq pair"],
        sin: Float[Tensor, "seq pair"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
    ) -> Float[Tensor, "batch seq embed"]:
        """Return, for each position, the weighted sum of the values of itself and the positions before it, projected.

        Args:
            x: the residual stream after the norm.
            cos: RoPE's cosine for each position and pair.
            sin: likewise the sine.
            mask: True where a query may attend to a key.
        """
        sizes = {"kv_heads": self.config.num_kv_heads, "head_dim": self.config.head_dim}
        queries = rearrange(
            self.query(x), "batch seq (kv_heads group head_dim) -> batch kv_heads group seq head_dim", **sizes
        )
        keys = rearrange(self.key(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", **sizes)
        values = rearrange(self.value(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", **sizes)
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
        scores: Float[Tensor, "batch kv_heads group seq seq_k"] = einsum(
            queries,
            keys,
            "batch kv_heads group seq head_dim, batch kv_heads seq_k head_dim -> batch kv_heads group seq seq_k",
        )
        scores = scores / math.sqrt(self.config.head_dim)
        grouped_mask = rearrange(mask, "batch 1 seq seq_k -> batch 1 1 seq seq_k")
        scores = torch.where(grouped_mask, scores, torch.finfo(scores.dtype).min)
        weights: Float[Tensor, "batch kv_heads group seq seq_k"] = F.softmax(scores, dim=-1)
        mixed: Float[Tensor, "batch kv_heads group seq head_dim"] = einsum(
            weights,
            values,
            "batch kv_heads group seq seq_k, batch kv_heads seq_k head_dim -> batch kv_heads group seq head_dim",
        )
        merged = rearrange(mixed, "batch kv_heads group seq head_dim -> batch seq (kv_heads group head_dim)")
        return self.output(merged)


def _config(heads: int, kv_heads: int, head_dim: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=11,
        context_length=9,
        embedding_dim=10,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        mlp_dim=20,
    )


def cases() -> Iterator[Case]:
    """Groups of three, one group of all heads, as many key heads as heads; a single position, and one padded text."""
    yield Case(torch.randn(2, 5, 10), *_rope(5, 4), _causal(5), made_with=(_config(6, 2, 4),))
    yield Case(torch.randn(3, 1, 10), *_rope(1, 6), _causal(1), made_with=(_config(4, 1, 6),))
    yield Case(torch.randn(1, 7, 10), *_rope(7, 2), _causal(7), made_with=(_config(3, 3, 2),))
    padding = torch.tensor([0, 2])
    is_text = rearrange(torch.arange(5), "seq_k -> 1 1 1 seq_k") >= rearrange(padding, "batch -> batch 1 1 1")
    yield Case(torch.randn(2, 5, 10), *_rope(5, 4), _causal(5) & is_text, made_with=(_config(6, 2, 4),))


def _rope(seq: int, head_dim: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """RoPE's cosine and sine."""
    return rope_cos_sin(torch.arange(start, start + seq), default_inv_freq(head_dim, 100.0))


@checked
def _causal(seq: int) -> Bool[Tensor, "1 1 seq seq_k"]:
    return rearrange(torch.ones(seq, seq, dtype=torch.bool).tril(), "seq seq_k -> 1 1 seq seq_k")


Made = Callable[[LlamaConfig], nn.Module]


def a_later_position_never_changes_an_earlier_one(attention_class: Made) -> None:
    """What is masked has no influence at all: whatever stands at a later position, the earlier ones get the same."""
    attention, x = attention_class(_config(6, 2, 4)), torch.randn(2, 6, 10)
    other = x.clone()
    other[:, 4] += 1.0
    change = (attention(other, *_rope(6, 4), _causal(6)) - attention(x, *_rope(6, 4), _causal(6))).abs()[:, :4]
    most, place = largest(change, "batch seq embed")
    if most > 1e-5:
        raise Fault(f"another vector at seq 4 changed the result at {place} by {most:.4g}")


def a_head_gathers_what_its_own_query_finds(attention_class: Made) -> None:
    """The queries of head 0 decide what head 0 gathers, and nothing else: a head keeps its place among the heads."""
    for head in range(6):
        _check_heads(attention_class, "query", head, [head])


def a_mask_is_for_its_own_sequence(attention_class: Made) -> None:
    """What is masked in one sequence of a batch is masked there, for all heads, and nowhere else."""
    attention, x = attention_class(_config(6, 2, 4)), torch.randn(2, 5, 10)
    mask = repeat(_causal(5), "1 1 seq seq_k -> batch 1 seq seq_k", batch=2).clone()
    mask[1, :, 1:, 0] = False
    together = attention(x, *_rope(5, 4), mask)
    for row in (0, 1):
        alone = attention(x[row : row + 1], *_rope(5, 4), mask[row : row + 1])
        most, place = largest((together[row : row + 1] - alone).abs(), "batch seq embed")
        if most > 1e-5:
            told = f"sequence {row} gets something else beside another with another mask than it gets alone"
            raise Fault(f"{told}: {most:.4g} apart at {place}")


def a_group_shares_its_keys_and_values(attention_class: Made) -> None:
    """With 6 query heads and 2 key heads, heads 0, 1, 2 use keys and values of head 0, and heads 3, 4, 5 of head 1."""
    for name in ("key", "value"):
        for head, group in enumerate(([0, 1, 2], [3, 4, 5])):
            _check_heads(attention_class, name, head, group)


def _check_heads(attention_class: Made, name: str, head: int, wanted: list[int]) -> None:
    """Change one head of a projection, and see which heads gather something else."""
    attention, x, merged = attention_class(_config(6, 2, 4)), torch.randn(1, 5, 10), []
    attention.get_submodule("output").register_forward_pre_hook(lambda module, given: merged.append(given[0]))
    with torch.no_grad():
        attention(x, *_rope(5, 4), _causal(5))
        attention.get_parameter(f"{name}.weight")[4 * head : 4 * head + 4] += 1.0
        attention(x, *_rope(5, 4), _causal(5))
    if len(merged) != 2:
        raise Fault(f"two calls went through `output` {len(merged)} times")
    change = rearrange(merged[1] - merged[0], "batch seq (heads head_dim) -> heads (batch seq head_dim)", heads=6)
    heads = [number for number, row in enumerate(change) if float(row.abs().max()) > 1e-6]
    if heads != wanted:
        told = f"heads {', '.join(map(str, heads))}" if heads else "no head"
        raise Fault(
            f"changing head {head} of `{name}` changed what was gathered by {told}",
            f"It changes {', '.join(map(str, wanted))}: of 6 query heads and 2 key heads, `(kv_heads group)` makes two "
            "groups, 0, 1, 2 and 3, 4, 5.",
        )


def alone_a_position_gets_its_own_value(attention_class: Made) -> None:
    """With nothing else to attend to, all weight is on the position itself, and its value comes unrotated."""
    attention, x = attention_class(_config(6, 2, 4)), torch.randn(1, 1, 10)
    gathered = attention(x, *_rope(1, 4, start=3), _causal(1))
    value = attention.get_submodule("value")(x)
    own = repeat(value, "batch seq (kv_heads head_dim) -> batch seq (kv_heads group head_dim)", kv_heads=2, group=3)
    most, place = largest((gathered - attention.get_submodule("output")(own)).abs(), "batch seq embed")
    if most > 1e-5:
        raise Fault(f"a single token at position 3 gets something else, {most:.4g} apart at {place}")


def only_distances_count(attention_class: Made) -> None:
    """Queries and keys are rotated alike, so a text gets the same whether it begins at position 0 or at position 50."""
    attention, x = attention_class(_config(6, 2, 4)), torch.randn(2, 5, 10)
    early, late = (attention(x, *_rope(5, 4, start), _causal(5)) for start in (0, 50))
    most, place = largest((late - early).abs(), "batch seq embed")
    if most > 1e-4:
        raise Fault(f"begun at position 50 and not at 0, the same text gets {most:.4g} more or less at {place}")
    unrotated = attention(x, torch.ones(5, 2), torch.zeros(5, 2), _causal(5))
    if largest((early - unrotated).abs(), "batch seq embed")[0] < 1e-6:
        raise Fault("rotated or not, the result is the same", "Queries and keys are rotated before they are compared.")


exercise = Exercise(
    __name__,
    solution=(GroupedQueryAttention,),
    cases=cases,
    reference=llama.Attention,
    properties=(
        a_later_position_never_changes_an_earlier_one,
        a_mask_is_for_its_own_sequence,
        a_head_gathers_what_its_own_query_finds,
        a_group_shares_its_keys_and_values,
        alone_a_position_gets_its_own_value,
        only_distances_count,
    ),
    hints=paragraphs(
        """
        Queries are split by `"batch seq (kv_heads group head_dim) -> batch kv_heads group seq head_dim"`, keys and
        values by the same without `group`. Give einops two sizes, `kv_heads=self.config.num_kv_heads` and
        `head_dim=self.config.head_dim`, and the third follows. `apply_rope` takes queries and keys as they then are.

        The scores are `einsum(queries, keys, "batch kv_heads group seq head_dim, batch kv_heads seq_k head_dim -> batch
        kv_heads group seq seq_k")`: keys have no `group`, so all queries of a group meet the same. The mask needs an
        axis more, too: `rearrange(mask, "batch 1 seq seq_k -> batch 1 1 seq seq_k")`.

        The means: `einsum(weights, values, "batch kv_heads group seq seq_k, batch kv_heads seq_k head_dim -> batch
        kv_heads group seq head_dim")`. Then `rearrange(mixed, "batch kv_heads group seq head_dim -> batch seq (kv_heads
        group head_dim)")`, and `self.output` of that.
        """
    ),
    page="llama.html#Attention",
    part_of="allformers.models.llama.llama.Attention",
    prerequisites=("attention", "rotary"),
)
