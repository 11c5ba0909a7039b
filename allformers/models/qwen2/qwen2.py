"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and nowhere else.

Source: Yang et al. 2024, "Qwen2 Technical Report", arXiv:2407.10671; "Qwen2.5 Technical Report", arXiv:2412.15115.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from allformers.checkpoints import Field
from allformers.linear import Linear
from allformers.models.llama.llama import (
    FIELDS,
    MLP_WEIGHTS,
    QKV_BIASES,
    SCALED_ROPE,
    WEIGHTS,
    Attention,
    Block,
    Llama,
    LlamaConfig,
)

WINDOW_REFUSED = (False, "no released checkpoint uses the window, and it is not built here")
WINDOW_IGNORED = {
    "sliding_window": "has no effect unless use_sliding_window is true, which is refused",
    "max_window_layers": "likewise",
    "layer_types": "follows from use_sliding_window",
}


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """The sizes and switches of a Qwen2: Llama's; its biases are fixed.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attention_bias or self.mlp_bias:
            raise ValueError("Qwen2's biases are fixed: leave attention_bias and mlp_bias False")

    @classmethod
    def presets(cls) -> dict[str, Callable[[], Self]]:
        """Published sizes and a small one, by name."""
        makers = (cls.qwen2_tiny, cls.qwen2_5_0_5b, cls.qwen2_5_1_5b, cls.qwen2_5_3b, cls.qwen2_5_7b)
        more = (cls.qwen2_5_14b, cls.qwen2_5_32b, cls.qwen2_5_72b)
        return {make.__name__: make for make in (*makers, *more)}

    @classmethod
    def qwen2_tiny(cls) -> Self:
        """A model for tests and first steps."""
        return cls._make(2, 4, 2, 16, 64, 160, vocab_size=256, context_length=128)

    @classmethod
    def qwen2_5_0_5b(cls) -> Self:
        """`Qwen/Qwen2.5-0.5B`: 494,032,768 parameters."""
        return cls._make(24, 14, 2, 64, 896, 4864, **_SMALL, tie_embeddings=True)

    @classmethod
    def qwen2_5_1_5b(cls) -> Self:
        """`Qwen/Qwen2.5-1.5B`: 1,543,714,304 parameters."""
        return cls._make(28, 12, 2, 128, 1536, 8960, **_SMALL, tie_embeddings=True)

    @classmethod
    def qwen2_5_3b(cls) -> Self:
        """`Qwen/Qwen2.5-3B`: 3,085,938,688 parameters."""
        return cls._make(36, 16, 2, 128, 2048, 11008, **_SMALL, tie_embeddings=True)

    @classmethod
    def qwen2_5_7b(cls) -> Self:
        """`Qwen/Qwen2.5-7B`: 7,615,616,512 parameters."""
        return cls._make(28, 28, 4, 128, 3584, 18944, **_LARGE, norm_eps=1e-6)

    @classmethod
    def qwen2_5_14b(cls) -> Self:
        """`Qwen/Qwen2.5-14B`: 14,770,033,664 parameters."""
        return cls._make(48, 40, 8, 128, 5120, 13824, **_LARGE)

    @classmethod
    def qwen2_5_32b(cls) -> Self:
        """`Qwen/Qwen2.5-32B`: 32,763,876,352 parameters."""
        return cls._make(64, 40, 8, 128, 5120, 27648, **_LARGE)

    @classmethod
    def qwen2_5_72b(cls) -> Self:
        """`Qwen/Qwen2.5-72B`: 72,706,203,648 parameters."""
        return cls._make(80, 64, 8, 128, 8192, 29568, **_LARGE)


_SMALL = {"vocab_size": 151936, "context_length": 32768, "rope_theta": 1000000.0, "norm_eps": 1e-6}
_LARGE = {"vocab_size": 152064, "context_length": 131072, "rope_theta": 1000000.0}


class Qwen2Attention(Attention):
    """Llama's attention with biases on what makes queries, keys and values."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(config.embedding_dim, queries)
        self.key = Linear(config.embedding_dim, keys)
        self.value = Linear(config.embedding_dim, keys)


class Qwen2Block(Block):
    """Llama's block with these biases."""

    attention_class: ClassVar[type[Any]] = Qwen2Attention


class Qwen2(Llama):
    """Llama with biases on queries, keys and values.

    >>> import torch
    >>> model = Qwen2(Qwen2Config.qwen2_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = Qwen2Block


_DEFAULTS = {"vocab_size": 151936, "max_position_embeddings": 32768, "intermediate_size": 22016}

Qwen2.format = dataclasses.replace(
    Llama.format,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    config_class=Qwen2Config,
    fields=(*(Field(f.theirs, f.ours, _DEFAULTS.get(f.theirs, f.default)) for f in FIELDS), *SCALED_ROPE),
    refused_fields={**Llama.format.refused_fields, "use_sliding_window": WINDOW_REFUSED},
    ignored_fields={**Llama.format.ignored_fields, **WINDOW_IGNORED},
    weights=(*WEIGHTS, *MLP_WEIGHTS, *QKV_BIASES),
)
"""How Qwen2's checkpoints name and lay out what is above."""
