"""Gemma 2: Gemma with a norm after each sub-layer too, scores that cannot run away, and every other layer local.

Source: Gemma Team 2024, "Gemma 2: Improving Open Language Models at a Practical Size", arXiv:2408.00118.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allformers.checkpoints.tables import Field, Weight, each_layer
from allformers.models.gemma.gemma import PUBLISHED, Gemma, GemmaBlock, GemmaConfig
from allformers.models.llama.llama import TINY, Attention, size
from allformers.models.mistral.mistral import Mistral
from allformers.nn.cache import LayerCache
from allformers.nn.config import Count, Positive
from allformers.nn.shapes import checked

Kind = Literal["sliding_attention", "full_attention"]
LOCAL: Kind = "sliding_attention"
GLOBAL: Kind = "full_attention"


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(GemmaConfig):
    """The sizes and switches of a Gemma 2: Gemma's, and these.

    Attributes:
        sliding_window: how many positions the local layers see, the asking one included.
        layer_types: for each layer, "sliding_attention" (local) or "full_attention"; if empty, they alternate, a local
            one first.
        query_scale_dim: scores are divided by the root of this, in place of the head's width.
        score_cap: scores are kept between minus and plus this; None for no cap.
        logit_cap: likewise logits.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    sliding_window: Count = 4096
    layer_types: tuple[Kind, ...] = ()
    query_scale_dim: Count = 256
    score_cap: Positive | None = 50.0
    logit_cap: Positive | None = 30.0

    pattern: ClassVar[tuple[Kind, ...]] = (LOCAL, GLOBAL)

    def __post_init__(self) -> None:
        repeated = self.pattern * self.num_layers
        object.__setattr__(self, "layer_types", tuple(self.layer_types) or repeated[: self.num_layers])
        super().__post_init__()
        if len(self.layer_types) != self.num_layers:
            raise ValueError(f"layer_types says {len(self.layer_types)} kinds for num_layers {self.num_layers}")

    gemma2_tiny = size("for first steps", 115_264, 2, 4, 2, 24, 64, 160, **TINY, sliding_window=32)
    gemma2_2b = size("google/gemma-2-2b", 2_614_341_888, 26, 8, 4, 256, 2304, 9216, **PUBLISHED)
    gemma2_9b = size("google/gemma-2-9b", 9_241_705_984, 42, 16, 8, 256, 3584, 14336, **PUBLISHED)
    gemma2_27b = size(
        "google/gemma-2-27b", 27_227_128_320, 46, 32, 16, 128, 4608, 36864, **PUBLISHED, query_scale_dim=144
    )


@checked
def soft_cap(x: Float[Tensor, "..."], cap: float | None) -> Float[Tensor, "..."]:
    """Keep numbers between minus and plus `cap`, by a curve that leaves small ones nearly as they are."""
    return x if cap is None else cap * torch.tanh(x / cap)


class Gemma2Attention(Attention):
    """Llama's attention, with another scale and a cap on scores."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.scale = config.query_scale_dim**-0.5 * config.sharpening

    @checked
    def score(
        self,
        queries: Float[Tensor, "batch heads seq head_dim"],
        keys: Float[Tensor, "batch kv_heads seq_k head_dim"],
    ) -> Float[Tensor, "batch heads seq seq_k"]:
        """Llama's scores, capped."""
        return soft_cap(super().score(queries, keys), self.config.score_cap)


class Gemma2Block(GemmaBlock):
    """Each sub-layer stands between two norms ("sandwich"): one before it, and one on what it adds."""

    attention_class: ClassVar[type[Any]] = Gemma2Attention

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.after_attention_norm = self.norm_class(config.embedding_dim, config.norm_eps)
        self.after_mlp_norm = self.norm_class(config.embedding_dim, config.norm_eps)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        turned: Float[Tensor, "part seq component pair"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream what attention and then the MLP make of it, each brought to a common size."""
        gathered = self.attention(self.attention_norm(x), turned, blocked, cache)
        between: Float[Tensor, "batch seq embed"] = x + self.after_attention_norm(gathered)
        return between + self.after_mlp_norm(self.mlp(self.mlp_norm(between)))


class Gemma2(Gemma, Mistral):
    """Gemma with sandwich norms and caps, and Mistral's window in its local layers.

    >>> model = Gemma2(Gemma2Config.gemma2_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = Gemma2Block

    @property
    def kinds(self) -> tuple[str, ...]:
        """For each layer, whether it is local."""
        return self.config.layer_types

    def window(self, kind: str) -> int | None:
        """How many positions layers of a kind see; None for all."""
        return self.config.sliding_window if kind == LOCAL else None

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """Turn the residual stream into logits, capped."""
        logits: Float[Tensor, "batch seq vocab"] = soft_cap(super().unembed(x), self.config.logit_cap)
        return logits


Gemma2.format = Gemma.format.extended(
    "gemma2",
    "Gemma2ForCausalLM",
    Gemma2Config,
    without=("layers.{layer}.input_layernorm", "layers.{layer}.post_attention_layernorm"),
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    fields=(
        Field("sliding_window", "sliding_window", 4096),
        Field("layer_types", "layer_types", ()),
        Field("query_pre_attn_scalar", "query_scale_dim", 256),
        Field("attn_logit_softcapping", "score_cap", None),
        Field("final_logit_softcapping", "logit_cap", None),
    ),
    ignored_fields={"cache_implementation": "how the reference keeps its cache"},
    weights=each_layer(
        "layers.{layer}",
        "blocks.{layer}",
        Weight("input_layernorm.weight", "attention_norm.weight", "embed"),
        Weight("post_attention_layernorm.weight", "after_attention_norm.weight", "embed"),
        Weight("pre_feedforward_layernorm.weight", "mlp_norm.weight", "embed"),
        Weight("post_feedforward_layernorm.weight", "after_mlp_norm.weight", "embed"),
    ),
)
"""How Gemma 2's checkpoints name and lay out what is above."""
