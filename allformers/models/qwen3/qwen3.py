"""Qwen3: Llama with a norm on each query and key, and heads whose width is its own choice.

A query and a key of unit size have a score that cannot run away, so training stays stable without biases.

Source: Yang et al. 2025, "Qwen3 Technical Report", arXiv:2505.09388; norms on queries and keys since Henry et al. 2020,
arXiv:2010.04245.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from jaxtyping import Float
from torch import Tensor

from allformers.checkpoints import Field, Weight
from allformers.models.llama.llama import (
    FIELDS,
    MLP_WEIGHTS,
    OUTPUT_BIAS,
    QKV_BIASES,
    SCALED_ROPE,
    WEIGHTS,
    Attention,
    Block,
    Llama,
    LlamaConfig,
    RMSNorm,
)
from allformers.models.qwen2.qwen2 import WINDOW_IGNORED, WINDOW_REFUSED
from allformers.shapes import checked


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(LlamaConfig):
    """The sizes and switches of a Qwen3: Llama's, without biases in the MLP.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_bias:
            raise ValueError("Qwen3's MLP has no biases: leave mlp_bias False")

    @classmethod
    def presets(cls) -> dict[str, Callable[[], Self]]:
        """Published sizes and a small one, by name."""
        makers = (cls.qwen3_tiny, cls.qwen3_0_6b, cls.qwen3_1_7b, cls.qwen3_4b, cls.qwen3_8b, cls.qwen3_14b)
        return {make.__name__: make for make in (*makers, cls.qwen3_32b)}

    @classmethod
    def qwen3_tiny(cls) -> Self:
        """A model for tests and first steps, whose heads together are wider than the residual stream."""
        return cls._make(2, 4, 2, 24, 64, 160, vocab_size=256, context_length=128, norm_eps=1e-6)

    @classmethod
    def qwen3_0_6b(cls) -> Self:
        """`Qwen/Qwen3-0.6B`: 596,049,920 parameters."""
        return cls._make(28, 16, 8, 128, 1024, 3072, **_COMMON, tie_embeddings=True)

    @classmethod
    def qwen3_1_7b(cls) -> Self:
        """`Qwen/Qwen3-1.7B`: 1,720,574,976 parameters."""
        return cls._make(28, 16, 8, 128, 2048, 6144, **_COMMON, tie_embeddings=True)

    @classmethod
    def qwen3_4b(cls) -> Self:
        """`Qwen/Qwen3-4B`: 4,022,468,096 parameters."""
        return cls._make(36, 32, 8, 128, 2560, 9728, **_COMMON, tie_embeddings=True)

    @classmethod
    def qwen3_8b(cls) -> Self:
        """`Qwen/Qwen3-8B`: 8,190,735,360 parameters."""
        return cls._make(36, 32, 8, 128, 4096, 12288, **_COMMON)

    @classmethod
    def qwen3_14b(cls) -> Self:
        """`Qwen/Qwen3-14B`: 14,768,307,200 parameters."""
        return cls._make(40, 40, 8, 128, 5120, 17408, **_COMMON)

    @classmethod
    def qwen3_32b(cls) -> Self:
        """`Qwen/Qwen3-32B`: 32,762,123,264 parameters."""
        return cls._make(64, 64, 8, 128, 5120, 25600, **_COMMON)


_COMMON = {"vocab_size": 151936, "context_length": 40960, "rope_theta": 1000000.0, "norm_eps": 1e-6}


class Qwen3Attention(Attention):
    """Llama's attention with a norm on each head's queries and keys, before they are turned."""

    norm_class: ClassVar[type[Any]] = RMSNorm

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.query_norm = self.norm_class(config.head_dim, config.norm_eps)
        self.key_norm = self.norm_class(config.head_dim, config.norm_eps)

    @checked
    def project(
        self, x: Float[Tensor, "batch seq embed"]
    ) -> tuple[
        Float[Tensor, "batch heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
    ]:
        """Make queries, keys and values, and bring queries and keys to a common size."""
        queries, keys, values = super().project(x)
        return self.query_norm(queries), self.key_norm(keys), values


class Qwen3Block(Block):
    """Llama's block with these norms."""

    attention_class: ClassVar[type[Any]] = Qwen3Attention


class Qwen3(Llama):
    """Llama with norms on queries and keys.

    >>> import torch
    >>> model = Qwen3(Qwen3Config.qwen3_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = Qwen3Block


QK_NORMS = (
    Weight("layers.{layer}.self_attn.q_norm.weight", "blocks.{layer}.attention.query_norm.weight", "head_dim"),
    Weight("layers.{layer}.self_attn.k_norm.weight", "blocks.{layer}.attention.key_norm.weight", "head_dim"),
)
_DEFAULTS = {"vocab_size": 151936, "max_position_embeddings": 32768, "intermediate_size": 22016, "head_dim": 128}

Qwen3.format = dataclasses.replace(
    Llama.format,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    config_class=Qwen3Config,
    fields=(
        *(Field(f.theirs, f.ours, _DEFAULTS.get(f.theirs, f.default)) for f in FIELDS),
        *SCALED_ROPE,
        Field("attention_bias", "attention_bias", False),
    ),
    refused_fields={**Llama.format.refused_fields, "use_sliding_window": WINDOW_REFUSED},
    ignored_fields={**Llama.format.ignored_fields, **WINDOW_IGNORED},
    weights=(
        *WEIGHTS,
        *QK_NORMS,
        *MLP_WEIGHTS,
        *(row._replace(when="attention_bias") for row in (*QKV_BIASES, *OUTPUT_BIAS)),
    ),
)
"""How Qwen3's checkpoints name and lay out what is above."""
