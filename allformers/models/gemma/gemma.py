"""Gemma: Llama with an RMSNorm of gain 1 + w, scaled embeddings, and a GELU in the gate (GeGLU).

New since Llama: a zero-centred RMSNorm; token embeddings multiplied by sqrt(embedding_dim), as they are tied to the
unembedding and small; GELU in place of SiLU; heads wider than embedding_dim / num_heads.

Source: Gemma Team 2024, "Gemma: Open Models Based on Gemini Research and Technology", arXiv:2403.08295.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.models.llama.llama import Block, Llama, LlamaConfig
from allformers.nn.activations import Activation
from allformers.nn.config import Count, EvenWidth, LayerCount, PositiveFloat, PositiveInt, Width
from allformers.nn.rope import RopeType
from allformers.nn.shapes import checked


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaConfig):
    """The defaults are Gemma 7B."""

    vocab_size: PositiveInt = 256000
    context_length: PositiveInt = 8192  # max_position_embeddings
    embedding_dim: Width = 3072  # hidden_size
    num_layers: LayerCount = 28  # num_hidden_layers
    num_heads: Count = 16  # num_attention_heads
    num_kv_heads: Count = 16  # num_key_value_heads
    head_dim: EvenWidth = 256
    mlp_dim: Width = 24576  # intermediate_size
    norm_eps: PositiveFloat = 1e-6  # rms_norm_eps
    tie_embeddings: bool = True  # tie_word_embeddings
    activation: Activation = "gelu_pytorch_tanh"  # hidden_activation
    mlp_bias: Literal[False] = False
    rope_theta: PositiveFloat = 10000.0
    rope_type: RopeType = "default"
    rope_factor: PositiveFloat = 1.0  # factor

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """108,864 parameters, for first steps: bytes as tokens."""
        return super().tiny(**{"num_kv_heads": 1, "head_dim": 24} | changes)

    @classmethod
    def gemma_2b(cls, **changes: Any) -> Self:
        """2,506,172,416 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 2048,
            "num_layers": 18,
            "num_heads": 8,
            "num_kv_heads": 1,
            "mlp_dim": 16384,
        }
        return cls(**sizes | changes)

    @classmethod
    def gemma_7b(cls, **changes: Any) -> Self:
        """8,537,680,896 parameters: the defaults."""
        return cls(**changes)


class GemmaNorm(nn.Module):
    """RMSNorm with gain 1 + w: the weight w is stored as gain - 1, so a weight of 0 means a gain of 1.

    The gain is applied before rounding, which makes a difference in half precision only.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    @checked
    def forward(self, x: Float[Tensor, "... _"]) -> Float[Tensor, "... _"]:
        """Normalise the last axis."""
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = reduce(x32 * x32, "... width -> ... 1", "mean")
        normalised = x32 * torch.rsqrt(mean_square + self.eps)
        return (normalised * (1.0 + self.weight.to(x32.dtype))).to(x.dtype)


class GemmaBlock(Block):
    """Llama's block with these norms."""

    norm_class: type[nn.Module] = GemmaNorm


class Gemma(Llama):
    """Llama with Gemma's norms and scaled embeddings.

    >>> Gemma(GemmaConfig.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: type[nn.Module] = GemmaBlock
    norm_class: type[nn.Module] = GemmaNorm

    @checked
    def embed(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq embed"]:
        """Look up each token's embedding, and scale it by the root of its width."""
        x = super().embed(token_ids)
        return x * torch.tensor(self.config.embedding_dim**0.5, dtype=x.dtype)
