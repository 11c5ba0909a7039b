"""Gemma 2: Gemma with a norm after each sub-layer too, soft caps, and a sliding window in every other layer.

New since Gemma: norms on what attention and MLP add ("sandwich"); scores and logits kept within a range by a tanh;
layers alternate between sliding-window and full attention; a scale of scores of its own.

Source: Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.models.gemma.gemma import Gemma, GemmaConfig, GemmaNorm
from allformers.models.llama.llama import Attention, Block
from allformers.nn.cache import Cache, LayerCache
from allformers.nn.config import Count, LayerCount, PositiveFloat, PositiveInt, Width
from allformers.nn.masks import causal_mask
from allformers.nn.shapes import checked

LayerType = Literal["sliding_attention", "full_attention"]


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(GemmaConfig):
    """The defaults are Gemma 2 9B."""

    embedding_dim: Width = 3584  # hidden_size
    num_layers: LayerCount = 42  # num_hidden_layers
    num_kv_heads: Count = 8  # num_key_value_heads
    mlp_dim: Width = 14336  # intermediate_size
    sliding_window: PositiveInt = 4096  # positions that a token attends to in layers of type "sliding_attention"
    layer_types: tuple[LayerType, ...] | None = None  # of each layer; None: they alternate, a sliding one first
    query_pre_attn_scalar: Width = 256  # scores are divided by its root, in place of head_dim's
    attn_logit_softcap: PositiveFloat | None = 50.0  # attn_logit_softcapping: scores stay within plus and minus this
    final_logit_softcap: PositiveFloat | None = 30.0  # final_logit_softcapping: likewise logits

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types is not None and len(self.layer_types) != self.num_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for num_layers {self.num_layers}")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """115,264 parameters, for first steps: bytes as tokens."""
        return super().tiny(**{"num_kv_heads": 2, "sliding_window": 32} | changes)

    @classmethod
    def gemma2_2b(cls, **changes: Any) -> Self:
        """2,614,341,888 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 2304,
            "num_layers": 26,
            "num_heads": 8,
            "num_kv_heads": 4,
            "mlp_dim": 9216,
        }
        return cls(**sizes | changes)

    @classmethod
    def gemma2_9b(cls, **changes: Any) -> Self:
        """9,241,705,984 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def gemma2_27b(cls, **changes: Any) -> Self:
        """27,227,128,320 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 4608,
            "num_layers": 46,
            "num_heads": 32,
            "num_kv_heads": 16,
            "head_dim": 128,
            "mlp_dim": 36864,
            "query_pre_attn_scalar": 144,
        }
        return cls(**sizes | changes)


@checked
def softcap(x: Float[Tensor, "..."], cap: float | None) -> Float[Tensor, "..."]:
    """Soft cap: cap * tanh(x / cap), within plus and minus `cap`, and nearly x where x is small. None: x itself."""
    return x if cap is None else cap * torch.tanh(x / cap)


class Gemma2Attention(Attention):
    """Llama's attention, with another scale and a soft cap on scores."""

    config: Gemma2Config

    def __init__(self, config: Gemma2Config) -> None:
        super().__init__(config)
        self.scale = config.query_pre_attn_scalar**-0.5

    @checked
    def score(
        self,
        queries: Float[Tensor, "batch kv_heads group seq head_dim"],
        keys: Float[Tensor, "batch kv_heads seq_k head_dim"],
    ) -> Float[Tensor, "batch kv_heads group seq seq_k"]:
        """Llama's scores, capped."""
        return softcap(super().score(queries, keys), self.config.attn_logit_softcap)


class Gemma2Block(Block):
    """Llama's block with Gemma's norms, and one more on what attention and MLP add ("sandwich")."""

    norm_class: type[nn.Module] = GemmaNorm
    attention_class: type[nn.Module] = Gemma2Attention

    def __init__(self, config: GemmaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.post_attention_norm = self.norm_class(config.embedding_dim, config.norm_eps)
        self.post_mlp_norm = self.norm_class(config.embedding_dim, config.norm_eps)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        cos: Float[Tensor, "seq pair"],
        sin: Float[Tensor, "seq pair"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream. Arguments as for attention."""
        attended = self.attention(self.attention_norm(x), cos, sin, mask, cache)
        x_mid: Float[Tensor, "batch seq embed"] = x + self.post_attention_norm(attended)
        return x_mid + self.post_mlp_norm(self.mlp(self.mlp_norm(x_mid)))


class Gemma2(Gemma):
    """Gemma with sandwich norms, soft caps, and a sliding window in every other layer.

    >>> Gemma2(Gemma2Config.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    config: Gemma2Config
    block_class: type[nn.Module] = Gemma2Block

    def layer_types(self) -> tuple[str, ...]:
        """The attention type of each layer."""
        pattern = ("sliding_attention", "full_attention") * self.config.num_layers
        return self.config.layer_types or pattern[: self.config.num_layers]

    def window(self, layer_type: str) -> int | None:
        """The number of positions that a token attends to in layers of a type; None for all."""
        return self.config.sliding_window if layer_type == "sliding_attention" else None

    def windows(self) -> list[int | None]:
        """The window of each layer."""
        return [self.window(layer_type) for layer_type in self.layer_types()]

    @checked
    def mask(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None, layer_type: str
    ) -> Bool[Tensor, "#batch 1 seq seq_k"]:
        """The attention mask, True where a query may attend to a key: not later, within the window, and not padding."""
        window = self.window(layer_type)
        return causal_mask(self.positions(token_ids, cache), self.key_positions(token_ids, cache, window), window)

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """Final norm, the unembedding (lm_head), and the soft cap on logits."""
        logits: Float[Tensor, "batch seq vocab"] = softcap(super().unembed(x), self.config.final_logit_softcap)
        return logits
