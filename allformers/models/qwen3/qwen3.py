"""Qwen3: Llama with a norm on each query and key, and heads whose width is its own choice.

A query and a key of unit size have a score that cannot run away, so training stays stable without biases.

Source: Yang et al. 2025, "Qwen3 Technical Report", arXiv:2505.09388; norms on queries and keys since Henry et al. 2020,
arXiv:2010.04245.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from allformers.checkpoints.tables import Weight, each_layer
from allformers.models.llama.llama import TINY, Attention, Block, Llama, LlamaConfig, RMSNorm, size
from allformers.models.qwen2.qwen2 import DEFAULTS, WINDOW_IGNORED, WINDOW_REFUSED
from allformers.nn.shapes import checked

UNTIED: Mapping[str, Any] = {"vocab_size": 151936, "context_length": 40960, "rope_theta": 1e6, "norm_eps": 1e-6}
TIED: Mapping[str, Any] = {**UNTIED, "tie_embeddings": True}


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(LlamaConfig):
    """The sizes and switches of a Qwen3: Llama's, without biases in the MLP.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    mlp_bias: Literal[False] = False

    qwen3_tiny = size("for first steps", 131_488, 2, 4, 2, 24, 64, 160, **TINY, norm_eps=1e-6)
    qwen3_0_6b = size("Qwen/Qwen3-0.6B", 596_049_920, 28, 16, 8, 128, 1024, 3072, **TIED)
    qwen3_1_7b = size("Qwen/Qwen3-1.7B", 1_720_574_976, 28, 16, 8, 128, 2048, 6144, **TIED)
    qwen3_4b = size("Qwen/Qwen3-4B", 4_022_468_096, 36, 32, 8, 128, 2560, 9728, **TIED)
    qwen3_8b = size("Qwen/Qwen3-8B", 8_190_735_360, 36, 32, 8, 128, 4096, 12288, **UNTIED)
    qwen3_14b = size("Qwen/Qwen3-14B", 14_768_307_200, 40, 40, 8, 128, 5120, 17408, **UNTIED)
    qwen3_32b = size("Qwen/Qwen3-32B", 32_762_123_264, 64, 64, 8, 128, 5120, 25600, **UNTIED)


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


QK_NORMS = each_layer(
    "layers.{layer}.self_attn",
    "blocks.{layer}.attention",
    Weight("q_norm.weight", "query_norm.weight", "head_dim"),
    Weight("k_norm.weight", "key_norm.weight", "head_dim"),
)

Qwen3.format = Llama.format.extended(
    "qwen3",
    "Qwen3ForCausalLM",
    Qwen3Config,
    without=("mlp_bias",),
    defaults={**DEFAULTS, "head_dim": 128},
    refused_fields=WINDOW_REFUSED,
    ignored_fields=WINDOW_IGNORED,
    weights=QK_NORMS,
)
"""How Qwen3's checkpoints name and lay out what is above."""
