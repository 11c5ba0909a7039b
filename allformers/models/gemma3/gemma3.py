"""Gemma 3: Gemma with QK-norm, sandwich norms, and five sliding-window layers to each full one.

New since Gemma 2: QK-norm in place of the soft caps; five sliding layers to a full one, which rotate with a RoPE base
of their own; a context of 128K. This is the language model alone; the larger published ones also read images.

Source: Gemma Team 2025, "Gemma 3 Technical Report", arXiv:2503.19786.
"""

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.models.gemma.gemma import Gemma, GemmaConfig, GemmaNorm
from allformers.models.gemma2.gemma2 import Gemma2Block, LayerType
from allformers.models.qwen3.qwen3 import Qwen3Attention  # for its QK-norm only
from allformers.nn.cache import Cache
from allformers.nn.config import Count, LayerCount, PositiveFloat, PositiveInt, Width
from allformers.nn.masks import causal_mask
from allformers.nn.rope import RopeType, default_inv_freq
from allformers.nn.shapes import checked


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(GemmaConfig):
    """The defaults are Gemma 3 4B's language model."""

    vocab_size: PositiveInt = 262208
    context_length: PositiveInt = 131072  # max_position_embeddings
    embedding_dim: Width = 2560  # hidden_size
    num_layers: LayerCount = 34  # num_hidden_layers
    num_heads: Count = 8  # num_attention_heads
    num_kv_heads: Count = 4  # num_key_value_heads
    mlp_dim: Width = 10240  # intermediate_size
    sliding_window: PositiveInt = 1024  # positions that a token attends to in layers of type "sliding_attention"
    layer_types: tuple[LayerType, ...] | None = None  # of each layer; None: five sliding ones, then a full one
    query_pre_attn_scalar: Width = 256  # scores are divided by its root, in place of head_dim's
    local_rope_theta: PositiveFloat = 10000.0  # rope_local_base_freq: RoPE's base in sliding layers, never scaled
    rope_theta: PositiveFloat = 1000000.0
    rope_type: RopeType = "linear"
    rope_factor: PositiveFloat = 8.0  # factor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types is not None and len(self.layer_types) != self.num_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for num_layers {self.num_layers}")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """294,752 parameters, for first steps: bytes as tokens."""
        return super().tiny(**{"num_layers": 6, "rope_theta": 1000000.0, "sliding_window": 32} | changes)

    @classmethod
    def gemma3_270m(cls, **changes: Any) -> Self:
        """268,098,176 parameters."""
        return cls.gemma3_1b(**{"embedding_dim": 640, "num_layers": 18, "mlp_dim": 2048} | changes)

    @classmethod
    def gemma3_1b(cls, **changes: Any) -> Self:
        """999,885,952 parameters."""
        sizes: dict[str, Any] = {
            "vocab_size": 262144,
            "context_length": 32768,
            "embedding_dim": 1152,
            "num_layers": 26,
            "num_heads": 4,
            "num_kv_heads": 1,
            "mlp_dim": 6912,
            "sliding_window": 512,
            "rope_type": "default",
            "rope_factor": 1.0,
        }
        return cls(**sizes | changes)

    @classmethod
    def gemma3_4b(cls, **changes: Any) -> Self:
        """3,880,263,168 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def gemma3_12b(cls, **changes: Any) -> Self:
        """11,766,034,176 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 3840,
            "num_layers": 48,
            "num_heads": 16,
            "num_kv_heads": 8,
            "mlp_dim": 15360,
        }
        return cls(**sizes | changes)

    @classmethod
    def gemma3_27b(cls, **changes: Any) -> Self:
        """27,009,346,304 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 5376,
            "num_layers": 62,
            "num_heads": 32,
            "num_kv_heads": 16,
            "head_dim": 128,
            "mlp_dim": 21504,
            "query_pre_attn_scalar": 168,
        }
        return cls(**sizes | changes)


class Gemma3Attention(Qwen3Attention):
    """Gemma's attention with QK-norm, in the form of Gemma's norms, and another scale.

    Qwen3's class is reused for its QK-norm only; all else in it is Llama's, as in Gemma.
    """

    norm_class: type[nn.Module] = GemmaNorm

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__(config)
        self.scale = config.query_pre_attn_scalar**-0.5


class Gemma3Block(Gemma2Block):
    """Gemma 2's block with this attention."""

    attention_class: type[nn.Module] = Gemma3Attention


class Gemma3(Gemma):
    """Gemma with QK-norm, sandwich norms, and a sliding window in five of six layers.

    >>> Gemma3(Gemma3Config.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    config: Gemma3Config
    block_class: type[nn.Module] = Gemma3Block

    def layer_types(self) -> tuple[str, ...]:
        """The attention type of each layer."""
        pattern = (*["sliding_attention"] * 5, "full_attention") * self.config.num_layers
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
    def inv_freq(self, layer_type: str, positions: Int[Tensor, "seq"]) -> Float[Tensor, "pair"]:
        """RoPE's frequencies: sliding layers use base 10,000 without scaling; full layers use base 1,000,000, scaled.

        These bases are `local_rope_theta` and `rope_theta`. The scaling is `rope_type`; 270M and 1B have none.
        """
        if layer_type == "full_attention":
            return super().inv_freq(layer_type, positions)
        dtype = torch.promote_types(self.token_embedding.weight.dtype, torch.float32)
        return default_inv_freq(self.config.rope_dim, self.config.local_rope_theta, positions.device, dtype)

    def attention_scaling(self, layer_type: str) -> float:
        """The factor on RoPE's cosine and sine: one in sliding layers, which are not scaled."""
        return super().attention_scaling(layer_type) if layer_type == "full_attention" else 1.0
