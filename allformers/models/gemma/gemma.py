"""Gemma: Llama with norms that learn their distance from one, embeddings scaled up, and a GELU in the gate.

Source: Gemma Team 2024, "Gemma: Open Models Based on Gemini Research and Technology", arXiv:2403.08295.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.checkpoints.tables import Field
from allformers.models.gpt2.gpt2 import ACTIVATIONS
from allformers.models.llama.llama import TINY, Block, Llama, LlamaConfig, size
from allformers.nn.config import Positive, one_of
from allformers.nn.shapes import checked

PUBLISHED: Mapping[str, Any] = {"vocab_size": 256000, "context_length": 8192}


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(LlamaConfig):
    """The sizes and switches of a Gemma: Llama's, with other defaults, and without biases in the MLP.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    norm_eps: Positive = 1e-6
    tie_embeddings: bool = True
    activation: Annotated[str, one_of(ACTIVATIONS)] = "gelu_pytorch_tanh"
    mlp_bias: Literal[False] = False

    gemma_tiny = size("for first steps", 108_864, 2, 4, 1, 24, 64, 160, **TINY)
    gemma_2b = size("google/gemma-2b", 2_506_172_416, 18, 8, 1, 256, 2048, 16384, **PUBLISHED)
    gemma_7b = size("google/gemma-7b", 8_537_680_896, 28, 16, 16, 256, 3072, 24576, **PUBLISHED)


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


def _activation(known: Mapping[str, Any]) -> str:
    """Early files say "gelu" and mean its approximation."""
    named = known.get("hidden_act")
    return "gelu_pytorch_tanh" if named in (None, "gelu") else str(named)


Gemma.format = Llama.format.extended(
    "gemma",
    "GemmaForCausalLM",
    GemmaConfig,
    without=("hidden_act", "mlp_bias"),
    defaults={
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },
    fields=(Field("hidden_activation", "activation", _activation),),
    refused_fields={"use_bidirectional_attention": (None, "a decoder looks back only")},
    ignored_fields={"hidden_act": "read where hidden_activation is missing"},
    written=lambda config: {"hidden_act": config.activation},
)
"""How Gemma's checkpoints name and lay out what is above."""
