"""Mistral: Llama with sliding-window attention. A position attends to the last `sliding_window` positions only.

So the KV cache holds no more than the window. What lies further back still reaches a position through the layers: after
k layers, information can come from up to k windows back.

New since Llama: the window; grouped-query attention in a model of 7B.

Sources: Jiang et al. 2023, "Mistral 7B", arXiv:2310.06825; sliding windows since Beltagy et al. 2020, "Longformer",
arXiv:2004.05150.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

from jaxtyping import Bool, Int
from torch import Tensor

from allformers.models.llama.llama import Llama, LlamaConfig
from allformers.nn.cache import Cache
from allformers.nn.config import PositiveFloat, PositiveInt
from allformers.nn.masks import causal_mask
from allformers.nn.rope import RopeType
from allformers.nn.shapes import checked


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """The defaults are Mistral 7B v0.1."""

    vocab_size: PositiveInt = 32000
    context_length: PositiveInt = 32768  # max_position_embeddings
    sliding_window: PositiveInt | None = 4096  # positions that a token attends to, its own included; None for all
    rope_theta: PositiveFloat = 10000.0
    rope_type: RopeType = "default"
    rope_factor: PositiveFloat = 1.0  # factor
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """119,104 parameters, for first steps: bytes as tokens."""
        return super().tiny(**{"sliding_window": 32} | changes)

    @classmethod
    def mistral_7b(cls, **changes: Any) -> Self:
        """7,241,732,096 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def mistral_7b_v03(cls, **changes: Any) -> Self:
        """7,248,023,552 parameters: a larger vocabulary, no window."""
        sizes: dict[str, Any] = {"vocab_size": 32768, "rope_theta": 1e6, "sliding_window": None}
        return cls(**sizes | changes)


class Mistral(Llama):
    """Llama with a sliding window.

    >>> import torch
    >>> Mistral(MistralConfig.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    config: MistralConfig

    def windows(self) -> list[int | None]:
        """The same window in every layer."""
        return [self.config.sliding_window] * self.config.num_layers

    @checked
    def mask(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None, layer_type: str
    ) -> Bool[Tensor, "#batch 1 seq seq_k"]:
        """The attention mask, True where a query may attend to a key: not later, within the window, and not padding."""
        window = self.config.sliding_window
        return causal_mask(self.positions(token_ids, cache), self.key_positions(token_ids, cache, window), window)
