"""The KV cache: the next token for the work of one position, not of the whole text.

Written one token at a time, a text would be read anew for each token, every time a little longer. But no position
attends to a later one, so what earlier positions have computed stays as it is. Of all that, a new position needs only
their keys and their values. So these are kept, in the KV cache: a new token makes its own query, key and value, its key
and value go behind those that are there, and its query attends to all of them.

`KVCache` holds the keys and values of one layer. `append` takes those of new positions, `seq` of them, and gives back
those of all positions so far, `seq_k`; before the first call it holds None.

    >>> import torch
    >>> cache = KVCache()
    >>> first, second = torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 1, 4)
    >>> cache.append(first, first)[0].shape
    torch.Size([1, 2, 3, 4])
    >>> keys, values = cache.append(second, second)
    >>> keys[0, 0, :, 0]
    tensor([0., 0., 0., 1.])

Attention is as you know it, with two differences. It appends to its cache between making keys and values and using
them. And it makes its own mask, since it alone knows where the new positions stand: they are the last `seq` of `seq_k`
positions, and each attends to itself and all before it. Prompts come several positions at once (prefill), so one new
position is not the only case.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from allformers.models.gpt2 import gpt2
from allformers.models.gpt2.gpt2 import GPT2Config
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


class KVCache:
    """The keys and values of the positions that one layer has read."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    @checked
    def append(
        self, keys: Float[Tensor, "batch heads seq head_dim"], values: Float[Tensor, "batch heads seq head_dim"]
    ) -> tuple[Float[Tensor, "batch heads seq_k head_dim"], Float[Tensor, "batch heads seq_k head_dim"]]:
        """Keep the keys and values of new positions behind those that are held, and give back all of them."""
        if self.keys is not None and self.values is not None:
            keys = torch.cat([self.keys, keys], dim=2)
            values = torch.cat([self.values, values], dim=2)
        self.keys, self.values = keys, values
        return keys, values


class CachedSelfAttention(nn.Module):
    """Causal attention of new positions, to each other and to those in the cache."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.query_key_value = nn.Linear(config.embedding_dim, 3 * config.embedding_dim)
        self.output = nn.Linear(config.embedding_dim, config.embedding_dim)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"], cache: KVCache) -> Float[Tensor, "batch seq embed"]:
        """Return, for each new position, the weighted sum of the values of itself and all before it, projected.

        Those in the cache are among them.

        Args:
            x: the residual stream of the new positions, after the norm.
            cache: the keys and values of earlier positions; those of the new ones are appended.
        """
        queries, keys, values = rearrange(
            self.query_key_value(x),
            "batch seq (qkv heads head_dim) -> qkv batch heads seq head_dim",
            qkv=3,
            heads=self.config.num_heads,
        )
        keys, values = cache.append(keys, values)
        seq, seq_k = queries.shape[2], keys.shape[2]
        positions_q = rearrange(torch.arange(seq_k - seq, seq_k), "seq -> seq 1")
        positions_k = rearrange(torch.arange(seq_k), "seq_k -> 1 seq_k")
        mask = positions_k <= positions_q
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


class _Reference(gpt2.CausalSelfAttention):
    """The package's attention, given the mask that it leaves to others."""

    @checked
    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "batch seq embed"], cache: KVCache
    ) -> Float[Tensor, "batch seq embed"]:
        """Causal attention of a whole text; the cache stays empty."""
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return super().forward(x, rearrange(mask, "seq seq_k -> 1 1 seq seq_k"))


CONFIG = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=3, mlp_dim=20)


def cases() -> Iterator[Case]:
    """With an empty cache: several of everything, and a single position."""
    yield Case(torch.randn(2, 5, 12), KVCache, made_with=(CONFIG,))
    yield Case(torch.randn(1, 1, 12), KVCache, made_with=(CONFIG,))


Made = Callable[..., Any]


def the_cache_gives_back_all_that_it_was_given(cache_class: Made, attention_class: Made) -> None:
    """Keys and values of all positions so far, in the order in which they came."""
    cache, keys, values = cache_class(), torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 4)
    start = 0
    for stop in (3, 4, 6):
        held = cache.append(keys[:, :, start:stop], values[:, :, start:stop])
        for name, found, given in zip(("keys", "values"), held, (keys, values), strict=True):
            if found.shape[2] != stop:
                raise Fault(f"after {stop} positions the cache gives back the {name} of {found.shape[2]}")
            most, place = largest((found - given[:, :, :stop]).abs(), "batch heads seq_k head_dim")
            if most:
                raise Fault(f"the {name} that the cache gives back are not those that it was given, at {place}")
        start = stop


def _in_pieces(cache_class: Made, attention: nn.Module, x: Tensor, *pieces: int) -> Tensor:
    cache, results, start = cache_class(), [], 0
    for seq in pieces:
        results.append(attention(x[:, start : start + seq], cache))
        start += seq
    return torch.cat(results, dim=1)


def _differs(cache_class: Made, attention_class: Made, *pieces: int) -> None:
    attention, x = attention_class(CONFIG).eval(), torch.randn(2, 6, 12)
    difference = (_in_pieces(cache_class, attention, x, *pieces) - attention(x, cache_class())).abs()
    most, place = largest(difference, "batch seq embed")
    if most > 1e-5:
        told = "one position at a time" if set(pieces) == {1} else f"in pieces of {', then '.join(map(str, pieces))}"
        raise Fault(f"read {told}, the result differs by {most:.4g} at {place}")


def token_by_token_is_the_same_as_all_at_once(cache_class: Made, attention_class: Made) -> None:
    """A cache saves work and changes no result: one position at a time gives what one pass over all of them gives."""
    _differs(cache_class, attention_class, 1, 1, 1, 1, 1, 1)


def so_is_any_other_way_to_cut_the_text(cache_class: Made, attention_class: Made) -> None:
    """Several new positions at once attend to what is held and, of each other, to those before them."""
    _differs(cache_class, attention_class, 3, 2, 1)


def only_new_positions_are_computed(cache_class: Made, attention_class: Made) -> str:
    """What went through the projection once does not go through it again."""
    attention, seen = attention_class(CONFIG).eval(), []
    attention.query_key_value.register_forward_hook(lambda module, given, result: seen.append(given[0].shape[1]))
    _in_pieces(cache_class, attention, torch.randn(1, 6, 12), 3, 1, 1, 1)
    if sum(seen) != 6:
        raise Fault(f"the text has 6 positions, and {sum(seen)} went through `query_key_value`")
    return f"6 positions of a text went through the projection {sum(seen)} times; read anew each time, {3 + 4 + 5 + 6}"


exercise = Exercise(
    __name__,
    solution=(KVCache, CachedSelfAttention),
    cases=cases,
    reference=_Reference,
    properties=(
        the_cache_gives_back_all_that_it_was_given,
        token_by_token_is_the_same_as_all_at_once,
        so_is_any_other_way_to_cut_the_text,
        only_new_positions_are_computed,
    ),
    hints=paragraphs(
        """
        Begin with `append`: `torch.cat([self.keys, keys], dim=2)` puts new positions behind old ones, unless there are
        none yet. Keep what you give back, for the next time. Then attention is a copy of yours with one line more,
        `keys, values = cache.append(keys, values)`, and another mask.

        With a cache there are more keys than queries: `seq_k` of the one, `seq` of the other. The new positions are the
        last: the first of them stands at `seq_k - seq`. A mask that counts queries from 0 would let the newest token
        attend to the first position alone.

        `positions_q = rearrange(torch.arange(seq_k - seq, seq_k), "seq -> seq 1")`, and `mask = rearrange(
        torch.arange(seq_k), "seq_k -> 1 seq_k") <= positions_q`.
        """
    ),
    page="writing.html#LayerCache.append",
    part_of="allformers.nn.cache.LayerCache.append",
    prerequisites=("attention",),
)
