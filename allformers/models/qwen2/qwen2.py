"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and nowhere else.

New since Llama: those biases.

Sources: Yang et al. 2024, "Qwen2 Technical Report", arXiv:2407.10671; "Qwen2.5 Technical Report", arXiv:2412.15115.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

from torch import nn

from allformers.models.llama.llama import Attention, Block, Llama, LlamaConfig
from allformers.nn.config import Count, LayerCount, PositiveFloat, PositiveInt, Width
from allformers.nn.rope import RopeType


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """The defaults are Qwen2.5 7B."""

    vocab_size: PositiveInt = 152064
    context_length: PositiveInt = 131072  # max_position_embeddings
    embedding_dim: Width = 3584  # hidden_size
    num_layers: LayerCount = 28  # num_hidden_layers
    num_heads: Count = 28  # num_attention_heads
    num_kv_heads: Count = 4  # num_key_value_heads
    mlp_dim: Width = 18944  # intermediate_size
    norm_eps: PositiveFloat = 1e-6  # rms_norm_eps
    rope_theta: PositiveFloat = 1e6
    rope_type: RopeType = "default"
    rope_factor: PositiveFloat = 1.0  # factor
    attention_bias: Literal[True] = True  # on queries, keys and values
    mlp_bias: Literal[False] = False

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """119,360 parameters, for first steps: bytes as tokens."""
        return super().tiny(**{"norm_eps": 1e-5} | changes)

    @classmethod
    def qwen2_5_0_5b(cls, **changes: Any) -> Self:
        """494,032,768 parameters."""
        sizes: dict[str, Any] = {
            "vocab_size": 151936,
            "context_length": 32768,
            "embedding_dim": 896,
            "num_layers": 24,
            "num_heads": 14,
            "num_kv_heads": 2,
            "head_dim": 64,
            "mlp_dim": 4864,
            "tie_embeddings": True,
        }
        return cls(**sizes | changes)

    @classmethod
    def qwen2_5_7b(cls, **changes: Any) -> Self:
        """7,615,616,512 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def qwen2_5_72b(cls, **changes: Any) -> Self:
        """72,706,203,648 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 8192,
            "num_layers": 80,
            "num_heads": 64,
            "num_kv_heads": 8,
            "mlp_dim": 29568,
            "norm_eps": 1e-5,
        }
        return cls(**sizes | changes)


class Qwen2Attention(Attention):
    """Llama's attention with biases, but for the output projection, which has none."""

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config)
        self.output = nn.Linear(config.num_heads * config.head_dim, config.embedding_dim, bias=False)


class Qwen2Block(Block):
    """Llama's block with this attention."""

    attention_class: type[nn.Module] = Qwen2Attention


class Qwen2(Llama):
    """Llama with biases on queries, keys and values.

    >>> import torch
    >>> Qwen2(Qwen2Config.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: type[nn.Module] = Qwen2Block
