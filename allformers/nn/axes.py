"""The vocabulary of named axes that every model here shares."""

import types
from collections.abc import Mapping

AXES: Mapping[str, str] = types.MappingProxyType(
    {
        "batch": "independent sequences",
        "seq": "positions of a sequence; in attention those of queries",
        "seq_k": "positions of keys and values; more than seq where a cache holds earlier ones",
        "source": "positions of another text, which cross-attention reads",
        "context": "positions that a model has an embedding for (context_length)",
        "embed": "width of the residual stream (embedding_dim)",
        "heads": "attention heads",
        "head_dim": "width of one attention head",
        "kv_heads": "heads of keys and values, each shared by a group of query heads",
        "group": "query heads that share one key and value head: heads = kv_heads * group",
        "qkv": "query, key and value, fused in one projection",
        "pair": "pairs of numbers that RoPE rotates",
        "component": "the two numbers of a pair",
        "mlp": "hidden width of the MLP",
        "vocab": "tokens of the vocabulary",
        "experts": "experts of a layer, of which a router picks some per token",
        "top_k": "experts that a token is routed to",
        "tokens": "positions of all sequences, in one row",
        "expert_mlp": "hidden width of one expert",
        "expert_groups": "groups of experts, of which a token may use a few",
        "experts_per_group": "experts of one group",
        "shared_mlp": "hidden width of the shared experts, taken as one MLP",
        "q_latent": "width of the latent that queries are made from",
        "kv_latent": "width of the latent that keys and values are made from",
        "nope_dim": "the part of a query's and key's width without RoPE",
        "rope_dim": "the part with RoPE",
        "v_head_dim": "width of a head's values, where it is not that of its keys",
        "qk_dim": "width of a head's query and key: nope_dim + rope_dim",
        "kv_dim": "width of a head's key and value before RoPE: nope_dim + v_head_dim",
        "kv_rope": "what the cache holds of a position: kv_latent + rope_dim",
        "segments": "kinds of segments (token types) that have an embedding",
        "channels": "numbers per pixel: red, green, blue",
        "image_height": "pixels from top to bottom",
        "image_width": "pixels from left to right",
        "rows": "patches from top to bottom",
        "columns": "patches from left to right",
        "patch_height": "pixels of a patch from top to bottom",
        "patch_width": "pixels of a patch from left to right",
        "labels": "labels that an image may have",
    }
)
"""The meaning of each axis name: one name means one thing, in every pattern, annotation, figure and sentence.

A few functions name an axis that only they have, such as `width` for whatever a norm normalises. No such name is one of
these."""
