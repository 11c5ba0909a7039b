"""Grouped-query attention: several query heads share the keys and values of one.

While a model writes, the keys and values of every position are kept and read anew for each token. That memory is what
limits how long and how many texts it can write. So Llama makes fewer of them: there are `heads` heads of queries, but
only `kv_heads` heads of keys and values, and each of those serves a `group` of query heads. The queries of a group look
at the same keys, each in its own way. The order is `heads = (kv_heads group)`: with 6 query heads and 2 key heads, the
first three belong to key head 0, the others to key head 1.

Three things are new, and the rest is attention as you know it:

1. three projections, `query`, `key` and `value`, since they differ in size; `query` has a result of width
   `(heads head_dim)`, the others of `(kv_heads head_dim)`;
2. queries and keys are turned by `rotate`, before they are compared; values are not, since what a position passes on
   does not depend on who asks;
3. scores and means are taken group by group.

Then as before: divide by the square root of `head_dim`, put the lowest finite number where `blocked` is True, softmax
over `seq_k`, mean of the values, heads side by side, `output`. A position of padding may see nothing at all; with the
lowest number it gets some mean, and with minus infinity it would get NaN.

    >>> import torch
    >>> from allformers.models.llama.llama import LlamaConfig
    >>> config = LlamaConfig.llama_tiny()
    >>> config.num_heads, config.num_kv_heads, config.head_dim
    (4, 2, 16)
    >>> attention = GroupedQueryAttention(config)
    >>> attention.query.weight.shape, attention.key.weight.shape
    (torch.Size([64, 64]), torch.Size([32, 64]))
    >>> attention(torch.randn(2, 5, 64), torch.zeros(5, 8), torch.zeros(1, 1, 5, 5, dtype=torch.bool)).shape
    torch.Size([2, 5, 64])

Keys and values need no copies for the heads that share them: in an `einsum`, what has no axis `group` goes with all of
it. `blocked` has the axes `batch`, 1, `seq`, `seq_k`; the 1 stands for all heads. `rotate` is the one that you wrote.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allformers.models.llama import llama
from allformers.models.llama.llama import LlamaConfig
from allformers.nn.rope import angles, frequencies, turns
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.rotary import rotate


class GroupedQueryAttention(nn.Module):
    """Causal attention with rotary positions, in which groups of query heads share keys and values."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.embedding_dim, queries, bias=False)
        self.key = nn.Linear(config.embedding_dim, keys, bias=False)
        self.value = nn.Linear(config.embedding_dim, keys, bias=False)
        self.output = nn.Linear(queries, config.embedding_dim, bias=False)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        turned: Float[Tensor, "seq pair"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
    ) -> Float[Tensor, "batch seq embed"]:
        """Let each position gather from itself and the positions before it.

        Args:
            x: the residual stream, normalised.
            turned: by how much to turn the queries and keys of each position.
            blocked: True where a query must not see a key.
        """
        width, kv_heads = self.config.head_dim, self.config.num_kv_heads
        queries = rearrange(self.query(x), "batch seq (heads head_dim) -> batch heads seq head_dim", head_dim=width)
        keys = rearrange(self.key(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", head_dim=width)
        values = rearrange(
            self.value(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", head_dim=width
        )
        queries, keys = rotate(queries, turned), rotate(keys, turned)
        grouped = rearrange(
            queries, "batch (kv_heads group) seq head_dim -> batch kv_heads group seq head_dim", kv_heads=kv_heads
        )
        scores: Float[Tensor, "batch kv_heads group seq seq_k"] = einsum(
            grouped,
            keys,
            "batch kv_heads group seq head_dim, batch kv_heads seq_k head_dim -> batch kv_heads group seq seq_k",
        )
        scores = scores / math.sqrt(width)
        unseen = rearrange(blocked, "batch 1 seq seq_k -> batch 1 1 seq seq_k")
        scores = torch.where(unseen, torch.finfo(scores.dtype).min, scores)
        weights: Float[Tensor, "batch kv_heads group seq seq_k"] = F.softmax(scores, dim=-1)
        mixed: Float[Tensor, "batch kv_heads group seq head_dim"] = einsum(
            weights,
            values,
            "batch kv_heads group seq seq_k, batch kv_heads seq_k head_dim -> batch kv_heads group seq head_dim",
        )
        merged = rearrange(mixed, "batch kv_heads group seq head_dim -> batch seq (kv_heads group head_dim)")
        return self.output(merged)


class Reference(llama.Attention):
    """The package's own, which is told cosines and sines in place of angles: it takes them once for all layers."""

    def forward(self, x: Tensor, turned: Tensor, blocked: Tensor) -> Tensor:  # type: ignore[override]
        """What it gathers."""
        return super().forward(x, turns(turned), blocked)


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
    yield Case(torch.randn(2, 5, 10), _turned(5, 4), _causal(5), made_with=(_config(6, 2, 4),))
    yield Case(torch.randn(3, 1, 10), _turned(1, 6), _causal(1), made_with=(_config(4, 1, 6),))
    yield Case(torch.randn(1, 7, 10), _turned(7, 2), _causal(7), made_with=(_config(3, 3, 2),))
    is_padding = rearrange(torch.arange(5), "seq_k -> 1 1 1 seq_k") < rearrange(
        torch.tensor([0, 2]), "batch -> batch 1 1 1"
    )
    yield Case(torch.randn(2, 5, 10), _turned(5, 4), _causal(5) | is_padding, made_with=(_config(6, 2, 4),))


@checked
def _turned(seq: int, head_dim: int, start: int = 0) -> Float[Tensor, "seq pair"]:
    return angles(torch.arange(start, start + seq), frequencies(head_dim, 100.0))


@checked
def _causal(seq: int) -> Bool[Tensor, "1 1 seq seq_k"]:
    return rearrange(torch.ones(seq, seq, dtype=torch.bool).triu(1), "seq seq_k -> 1 1 seq seq_k")


Made = Callable[[LlamaConfig], nn.Module]


def a_later_position_never_changes_an_earlier_one(attention_class: Made) -> None:
    """What is blocked has no influence at all: whatever stands at a later position, the earlier ones get the same."""
    attention, x = attention_class(_config(6, 2, 4)), torch.randn(2, 6, 10)
    other = x.clone()
    other[:, 4] += 1.0
    change = (attention(other, _turned(6, 4), _causal(6)) - attention(x, _turned(6, 4), _causal(6))).abs()[:, :4]
    most, place = largest(change, "batch seq embed")
    if most > 1e-5:
        raise Fault(f"another vector at seq 4 changed the result at {place} by {most:.4g}")


def a_head_gathers_what_its_own_query_finds(attention_class: Made) -> None:
    """The queries of head 0 decide what head 0 gathers, and nothing else: a head keeps its place among the heads."""
    for head in range(6):
        _check_heads(attention_class, "query", head, [head])


def a_mask_is_for_its_own_sequence(attention_class: Made) -> None:
    """What is blocked in one sequence of a batch is blocked there, for all heads, and nowhere else."""
    attention, x = attention_class(_config(6, 2, 4)), torch.randn(2, 5, 10)
    blocked = repeat(_causal(5), "1 1 seq seq_k -> batch 1 seq seq_k", batch=2).clone()
    blocked[1, :, 1:, 0] = True
    together = attention(x, _turned(5, 4), blocked)
    for row in (0, 1):
        alone = attention(x[row : row + 1], _turned(5, 4), blocked[row : row + 1])
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
        attention(x, _turned(5, 4), _causal(5))
        attention.get_parameter(f"{name}.weight")[4 * head : 4 * head + 4] += 1.0
        attention(x, _turned(5, 4), _causal(5))
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
    """With nothing else to look at, all weight is on the position itself, and its value comes as it was: unturned."""
    attention, x = attention_class(_config(6, 2, 4)), torch.randn(1, 1, 10)
    gathered = attention(x, _turned(1, 4, start=3), _causal(1))
    value = attention.get_submodule("value")(x)
    own = repeat(value, "batch seq (kv_heads head_dim) -> batch seq (kv_heads group head_dim)", kv_heads=2, group=3)
    most, place = largest((gathered - attention.get_submodule("output")(own)).abs(), "batch seq embed")
    if most > 1e-5:
        raise Fault(f"a single position, turned as far as position 3, gets something else, {most:.4g} apart at {place}")


def only_distances_count(attention_class: Made) -> None:
    """Queries and keys are turned alike, so a text gets the same whether it begins at position 0 or at position 50."""
    attention, x = attention_class(_config(6, 2, 4)), torch.randn(2, 5, 10)
    early, late = (attention(x, _turned(5, 4, start), _causal(5)) for start in (0, 50))
    most, place = largest((late - early).abs(), "batch seq embed")
    if most > 1e-4:
        raise Fault(f"begun at position 50 and not at 0, the same text gets {most:.4g} more or less at {place}")
    unturned = attention(x, torch.zeros(5, 2), _causal(5))
    if largest((early - unturned).abs(), "batch seq embed")[0] < 1e-6:
        raise Fault("turned or not turned, the result is the same", "Queries and keys are turned before they meet.")


exercise = Exercise(
    __name__,
    solution=(GroupedQueryAttention,),
    cases=cases,
    reference=partial(Reference, layer=0),
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
        Split each projection into heads by the width of a head, which all three share: `head_dim=self.config.head_dim`.
        Turn queries and keys while they still have four axes. Then give the queries an axis more, `(kv_heads group)`,
        and five axes they stay until the heads are put side by side.

        The scores are `einsum(grouped, keys, "batch kv_heads group seq head_dim, batch kv_heads seq_k head_dim -> batch
        kv_heads group seq seq_k")`: keys have no `group`, so all queries of a group meet the same. The mask needs an
        axis more, too: `rearrange(blocked, "batch 1 seq seq_k -> batch 1 1 seq seq_k")`.

        The means: `einsum(weights, values, "batch kv_heads group seq seq_k, batch kv_heads seq_k head_dim -> batch
        kv_heads group seq head_dim")`. Then `rearrange(mixed, "batch kv_heads group seq head_dim -> batch seq (kv_heads
        group head_dim)")`, and `self.output` of that.
        """
    ),
    page="llama.html#Attention",
    part_of="allformers.models.llama.llama.Attention",
    after=("attention", "rotary"),
)
