"""Gemma: Llama with norms that learn their distance from one, embeddings scaled up, and a GELU in the gate.

Source: Gemma Team 2024, "Gemma: Open Models Based on Gemini Research and Technology", arXiv:2403.08295.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.checkpoints import Field
from allformers.models.llama.llama import (
    FIELDS,
    MLP_WEIGHTS,
    OUTPUT_BIAS,
    QKV_BIASES,
    SCALED_ROPE,
    WEIGHTS,
    Block,
    Llama,
    LlamaConfig,
)
from allformers.shapes import checked


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaConfig):
    """The sizes and switches of a Gemma: Llama's, with other defaults, and without biases in the MLP.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    norm_eps: float = 1e-6
    tie_embeddings: bool = True
    activation: str = "gelu_pytorch_tanh"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mlp_bias:
            raise ValueError("Gemma's MLP has no biases: leave mlp_bias False")

    @classmethod
    def presets(cls) -> dict[str, Callable[[], Self]]:
        """Published sizes and a small one, by name."""
        return {make.__name__: make for make in (cls.gemma_tiny, cls.gemma_2b, cls.gemma_7b)}

    @classmethod
    def gemma_tiny(cls) -> Self:
        """A model for tests and first steps, whose query heads all share one key head."""
        return cls._make(2, 4, 1, 24, 64, 160, vocab_size=256, context_length=128)

    @classmethod
    def gemma_2b(cls) -> Self:
        """`google/gemma-2b`: 2,506,172,416 parameters."""
        return cls._make(18, 8, 1, 256, 2048, 16384, vocab_size=256000, context_length=8192)

    @classmethod
    def gemma_7b(cls) -> Self:
        """`google/gemma-7b`: 8,537,680,896 parameters."""
        return cls._make(28, 16, 16, 256, 3072, 24576, vocab_size=256000, context_length=8192)


class GemmaNorm(nn.Module):
    """A root-mean-square norm whose weight is the gain's distance from one, so that weight decay pulls it to one.

    The gain is applied before rounding, which makes a difference in half precision only.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    @checked
    def forward(self, x: Float[Tensor, "... _"]) -> Float[Tensor, "... _"]:
        """Normalise the last axis."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = reduce(wide * wide, "... width -> ... 1", "mean")
        normalised = wide * torch.rsqrt(mean_square + self.eps)
        return (normalised * (1.0 + self.weight.to(wide.dtype))).to(x.dtype)


class GemmaBlock(Block):
    """Llama's block with these norms."""

    norm_class: ClassVar[type[Any]] = GemmaNorm


class Gemma(Llama):
    """Llama with Gemma's norms and scaled embeddings.

    >>> model = Gemma(GemmaConfig.gemma_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = GemmaBlock

    @checked
    def embed(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq embed"]:
        """Each token's vector, scaled up by the root of its width: the same table also unembeds, and wants it small."""
        x = super().embed(token_ids)
        return x * torch.tensor(self.config.embedding_dim**0.5, dtype=x.dtype)


def _activation(fields: Any) -> str:
    """Early files say "gelu" and mean its approximation."""
    named = fields.get("hidden_act")
    return "gelu_pytorch_tanh" if named in (None, "gelu") else str(named)


DEFAULTS = {
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "tie_word_embeddings": True,
}
BIDIRECTIONAL_REFUSED = (None, "a decoder looks back only")

Gemma.format = dataclasses.replace(
    Llama.format,
    model_type="gemma",
    architecture="GemmaForCausalLM",
    config_class=GemmaConfig,
    fields=(
        *(Field(f.theirs, f.ours, DEFAULTS.get(f.theirs, f.default)) for f in FIELDS if f.theirs != "hidden_act"),
        Field("hidden_activation", "activation", _activation),
        *SCALED_ROPE,
        Field("attention_bias", "attention_bias", False),
    ),
    refused_fields={**Llama.format.refused_fields, "use_bidirectional_attention": BIDIRECTIONAL_REFUSED},
    ignored_fields={**Llama.format.ignored_fields, "hidden_act": "read where hidden_activation is missing"},
    weights=(
        *WEIGHTS,
        *MLP_WEIGHTS,
        *(row._replace(when="attention_bias") for row in (*QKV_BIASES, *OUTPUT_BIAS)),
    ),
    written=lambda config: {**Llama.format.written(config), "hidden_act": config.activation},
)
"""How Gemma's checkpoints name and lay out what is above."""
