"""Qwen3: Llama with QK-norm, an RMSNorm on each head's queries and keys, and a head width of its own choice.

Normalised queries and keys keep scores bounded, so training stays stable without Qwen2's biases.

New since Llama: QK-norm; `head_dim` need not be embedding_dim / num_heads.

Sources: Yang et al. 2025, "Qwen3 Technical Report", arXiv:2505.09388; QK-norm since Henry et al. 2020,
arXiv:2010.04245.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

from jaxtyping import Float
from torch import Tensor, nn

from allformers.models.llama.llama import Attention, Block, Llama, LlamaConfig, RMSNorm
from allformers.nn.config import LayerCount, PositiveFloat, PositiveInt, Width
from allformers.nn.rope import RopeType
from allformers.nn.shapes import checked


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(LlamaConfig):
    """The defaults are Qwen3 8B."""

    vocab_size: PositiveInt = 151936
    context_length: PositiveInt = 40960  # max_position_embeddings
    num_layers: LayerCount = 36  # num_hidden_layers
    mlp_dim: Width = 12288  # intermediate_size
    norm_eps: PositiveFloat = 1e-6  # rms_norm_eps
    rope_theta: PositiveFloat = 1e6
    rope_type: RopeType = "default"
    rope_factor: PositiveFloat = 1.0  # factor
    mlp_bias: Literal[False] = False

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """131,488 parameters, for first steps: bytes as tokens."""
        return super().tiny(**{"head_dim": 24} | changes)

    @classmethod
    def qwen3_0_6b(cls, **changes: Any) -> Self:
        """596,049,920 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 1024,
            "num_layers": 28,
            "num_heads": 16,
            "mlp_dim": 3072,
            "tie_embeddings": True,
        }
        return cls(**sizes | changes)

    @classmethod
    def qwen3_8b(cls, **changes: Any) -> Self:
        """8,190,735,360 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def qwen3_32b(cls, **changes: Any) -> Self:
        """32,762,123,264 parameters."""
        sizes: dict[str, Any] = {"embedding_dim": 5120, "num_layers": 64, "num_heads": 64, "mlp_dim": 25600}
        return cls(**sizes | changes)


class Qwen3Attention(Attention):
    """Llama's attention with an RMSNorm on each head's queries and keys, before RoPE."""

    norm_class: type[nn.Module] = RMSNorm

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.query_norm = self.norm_class(config.head_dim, config.norm_eps)
        self.key_norm = self.norm_class(config.head_dim, config.norm_eps)

    @checked
    def project(
        self, x: Float[Tensor, "batch seq embed"]
    ) -> tuple[
        Float[Tensor, "batch kv_heads group seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
    ]:
        """Queries, keys and values, split into heads; queries and keys normalised."""
        queries, keys, values = super().project(x)
        return self.query_norm(queries), self.key_norm(keys), values


class Qwen3Block(Block):
    """Llama's block with this attention."""

    attention_class: type[nn.Module] = Qwen3Attention


class Qwen3(Llama):
    """Llama with QK-norm.

    >>> import torch
    >>> Qwen3(Qwen3Config.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: type[nn.Module] = Qwen3Block
