"""Attention masks: True where a query may attend to a key, as in PyTorch's `scaled_dot_product_attention`."""

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from allformers.nn.shapes import checked


@checked
def causal_mask(
    positions_q: Int[Tensor, "#batch seq"], positions_k: Int[Tensor, "#batch seq_k"], window: int | None = None
) -> Bool[Tensor, "#batch 1 seq seq_k"]:
    """Causal attention mask: True where a key is not later than the query, is no padding, and lies within the window.

    Args:
        positions_q: each query's position in its own sequence; negative for padding.
        positions_k: likewise each key's.
        window: the number of positions that a query may attend to, its own included; None for all.
    """
    query = rearrange(positions_q, "batch seq -> batch 1 seq 1")
    key = rearrange(positions_k, "batch seq_k -> batch 1 1 seq_k")
    mask = (key <= query) & (key >= 0)
    if window is not None:
        mask = mask & (key > query - window)
    return mask


@checked
def padding_mask(lengths: Int[Tensor, "batch"], seq_k: int) -> Bool[Tensor, "batch 1 1 seq_k"]:
    """Padding mask: True for the first `lengths` keys of each sequence, False for the padding behind them."""
    positions = torch.arange(seq_k, device=lengths.device)
    mask = rearrange(positions, "seq_k -> 1 seq_k") < rearrange(lengths, "batch -> batch 1")
    return rearrange(mask, "batch seq_k -> batch 1 1 seq_k")
