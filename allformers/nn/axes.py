"""The vocabulary of named axes that every model here shares."""

import types
from collections.abc import Mapping

AXES: Mapping[str, str] = types.MappingProxyType(
    {
        "batch": "independent sequences",
        "seq": "positions in a sequence",
        "seq_q": "positions that ask: one query each",
        "seq_k": "positions that are looked at: one key and one value each",
        "context": "positions that a model with learned positions has an embedding for (context_length)",
        "embed": "the residual stream's width (embedding_dim)",
        "heads": "attention heads",
        "head_dim": "the width of one attention head",
        "kv_heads": "heads of keys and values, each shared by a group of query heads",
        "group": "query heads that share one key and value head: heads = kv_heads * group",
        "pair": "pairs of numbers that rotary positions turn",
        "component": "the two numbers of a pair",
        "part": "what turning takes of a number itself, and of the other one of its pair",
        "mlp": "the feed-forward hidden width",
        "experts": "the MLPs that a router chooses from",
        "chosen": "the experts that a token uses",
        "expert_mlp": "the hidden width of one expert, where it is not that of the dense layers",
        "shared_mlp": "the hidden width of the experts that every token uses, taken as one",
        "nodes": "groups of experts, of which a token may use a few",
        "latent": "the width of what keys and values are made from, and of what the cache holds",
        "query_latent": "the width of what queries are made from",
        "query_dim": "a head's query and key: plain_dim + rope_dim",
        "key_value_dim": "what the latent makes for a head: plain_dim + head_dim",
        "kept": "what is kept of a position: latent + rope_dim",
        "plain_dim": "the part of a head's width that is not turned",
        "rope_dim": "the part that is",
        "rewritten": "the residual stream's width once more, behind the layer that stands before the unembedding",
        "segments": "parts of a text that an embedding tells apart",
        "channels": "numbers a pixel: red, green, blue",
        "image_height": "pixels from top to bottom",
        "image_width": "pixels from left to right",
        "rows": "patches from top to bottom",
        "columns": "patches from left to right",
        "patch_height": "pixels of a patch from top to bottom",
        "patch_width": "pixels of a patch from left to right",
        "labels": "what an image may show",
        "vocab": "the vocabulary",
        "three": "query, key and value, fused in one projection",
    }
)
"""What each axis name means. One name means one thing, in every pattern, annotation, figure and sentence."""
