"""Variants of GPT-2 for a few published checkpoints; `GPT2.from_pretrained` returns them where `config.json` asks.

Stanford CRFM's (`stanford-crfm/alias-gpt2-small-x21` and others) divide scores by the layer's number too and compute
them in float32, so that training in float16 does not overflow. Cerebras-GPT (`cerebras/Cerebras-GPT-111M` and others)
has the exact GELU.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from allformers.checkpoints.tables import Field, Format
from allformers.models.gpt2.gpt2 import GPT2, MLP, CausalSelfAttention, GPT2Config
from allformers.nn.cache import LayerCache
from allformers.nn.shapes import checked


@dataclass(frozen=True, kw_only=True)
class StanfordGPT2Config(GPT2Config):
    """GPT-2's configuration, and two switches of Stanford's training."""

    scale_by_layer: bool = True  # scale_attn_by_inverse_layer_idx: scores are divided by the layer's number, from 1
    float32_scores: bool = True  # reorder_and_upcast_attn: scores and softmax are computed in float32 at least


class StanfordAttention(CausalSelfAttention):
    """GPT-2's attention with scores divided by the layer's number, computed in float32."""

    def __init__(self, config: StanfordGPT2Config, layer: int) -> None:
        super().__init__(config)
        self.scale = 1 / math.sqrt(config.head_dim)
        if config.scale_by_layer:
            self.scale /= layer + 1
        self.float32_scores = config.float32_scores

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """As GPT-2's, but for scale and dtype of the scores."""
        queries, keys, values = rearrange(
            self.query_key_value(x),
            "batch seq (qkv heads head_dim) -> qkv batch heads seq head_dim",
            qkv=3,
            heads=self.config.num_heads,
        )
        if cache is not None:
            keys, values = cache.append(keys, values)
        if self.float32_scores:
            dtype = torch.promote_types(x.dtype, torch.float32)
            queries, keys = queries.to(dtype), keys.to(dtype)
        scores: Float[Tensor, "batch heads seq seq_k"] = einsum(
            queries * self.scale, keys, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k"
        )
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
        weights: Float[Tensor, "batch heads seq seq_k"] = F.softmax(scores, dim=-1).to(values.dtype)
        weights = self.weights_dropout(weights)
        mixed: Float[Tensor, "batch heads seq head_dim"] = einsum(
            weights, values, "batch heads seq seq_k, batch heads seq_k head_dim -> batch heads seq head_dim"
        )
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.output_dropout(self.output(merged))


class StanfordGPT2(GPT2):
    """GPT-2 with Stanford's attention."""

    def __init__(self, config: StanfordGPT2Config) -> None:
        super().__init__(config)
        for layer, block in enumerate(self.blocks):
            block.attention = StanfordAttention(config, layer)
        self.initialise()

    @classmethod
    def is_asked_for(cls, config_json: Mapping[str, Any]) -> bool:
        """Stanford's switches are on."""
        switches = ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")
        return any(config_json.get(switch) for switch in switches)

    @classmethod
    def checkpoint_format(cls) -> Format:
        """GPT-2's tables, and the two switches."""
        return GPT2.checkpoint_format().extended(
            "gpt2",
            "GPT2LMHeadModel",
            StanfordGPT2Config,
            without=("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"),
            fields=(
                Field("scale_attn_by_inverse_layer_idx", "scale_by_layer", False),
                Field("reorder_and_upcast_attn", "float32_scores", False),
            ),
        )


@dataclass(frozen=True, kw_only=True)
class CerebrasGPT2Config(GPT2Config):
    """GPT-2's configuration, and the activation that makes it another model."""

    activation: Literal["gelu"] = "gelu"  # activation_function


class CerebrasMLP(MLP):
    """GPT-2's MLP with the exact GELU."""

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Transform each position by itself."""
        activated: Float[Tensor, "batch seq mlp"] = F.gelu(self.up(x))
        return self.dropout(self.down(activated))


class CerebrasGPT2(GPT2):
    """GPT-2 with Cerebras's MLP."""

    def __init__(self, config: CerebrasGPT2Config) -> None:
        super().__init__(config)
        for block in self.blocks:
            block.mlp = CerebrasMLP(config.embedding_dim, config.mlp_dim, config.dropout)
        self.initialise()

    @classmethod
    def is_asked_for(cls, config_json: Mapping[str, Any]) -> bool:
        """The activation is the exact GELU."""
        return config_json.get("activation_function") == "gelu"

    @classmethod
    def checkpoint_format(cls) -> Format:
        """GPT-2's tables, and the activation, which is GPT-2's own in a file that does not name it."""
        return GPT2.checkpoint_format().extended(
            "gpt2",
            "GPT2LMHeadModel",
            CerebrasGPT2Config,
            without=("activation_function",),
            fields=(Field("activation_function", "activation", "gelu_new"),),
        )
