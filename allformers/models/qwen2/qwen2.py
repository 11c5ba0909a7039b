"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values, and nowhere else.

Source: Yang et al. 2024, "Qwen2 Technical Report", arXiv:2407.10671; "Qwen2.5 Technical Report", arXiv:2412.15115.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from allformers.models.llama.llama import TINY, Attention, Block, Llama, LlamaConfig, size
from allformers.nn.linear import Linear

TIED: Mapping[str, Any] = {"tie_embeddings": True, "norm_eps": 1e-6}
SMALL: Mapping[str, Any] = {**TIED, "vocab_size": 151936, "context_length": 32768, "rope_theta": 1e6}
LARGE: Mapping[str, Any] = {"vocab_size": 152064, "context_length": 131072, "rope_theta": 1e6}


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(LlamaConfig):
    """The sizes and switches of a Qwen2: Llama's; its biases are fixed.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    attention_bias: Literal[True] = True
    mlp_bias: Literal[False] = False

    qwen2_tiny = size("for first steps", 119_360, 2, 4, 2, 16, 64, 160, **TINY)
    qwen2_5_0_5b = size("Qwen/Qwen2.5-0.5B", 494_032_768, 24, 14, 2, 64, 896, 4864, **SMALL)
    qwen2_5_1_5b = size("Qwen/Qwen2.5-1.5B", 1_543_714_304, 28, 12, 2, 128, 1536, 8960, **SMALL)
    qwen2_5_3b = size("Qwen/Qwen2.5-3B", 3_085_938_688, 36, 16, 2, 128, 2048, 11008, **SMALL)
    qwen2_5_7b = size("Qwen/Qwen2.5-7B", 7_615_616_512, 28, 28, 4, 128, 3584, 18944, **LARGE, norm_eps=1e-6)
    qwen2_5_14b = size("Qwen/Qwen2.5-14B", 14_770_033_664, 48, 40, 8, 128, 5120, 13824, **LARGE)
    qwen2_5_32b = size("Qwen/Qwen2.5-32B", 32_763_876_352, 64, 40, 8, 128, 5120, 27648, **LARGE)
    qwen2_5_72b = size("Qwen/Qwen2.5-72B", 72_706_203_648, 80, 64, 8, 128, 8192, 29568, **LARGE)


class Qwen2Attention(Attention):
    """Llama's attention with its biases, but for the last projection, which has none."""

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__(config, layer)
        self.output = Linear(config.num_heads * config.head_dim, config.embedding_dim, bias=False)


class Qwen2Block(Block):
    """Llama's block with this attention."""

    attention_class: ClassVar[type[Any]] = Qwen2Attention


class Qwen2(Llama):
    """Llama with biases on queries, keys and values.

    >>> import torch
    >>> model = Qwen2(Qwen2Config.qwen2_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = Qwen2Block


WINDOW_REFUSED = {"use_sliding_window": (False, "no released checkpoint uses the window, and it is not built here")}
WINDOW_IGNORED = {
    "sliding_window": "has no effect unless use_sliding_window is true, which is refused",
    "max_window_layers": "likewise",
    "layer_types": "follows from use_sliding_window",
}
DEFAULTS = {"vocab_size": 151936, "max_position_embeddings": 32768, "intermediate_size": 22016}

Qwen2.format = Llama.format.extended(
    "qwen2",
    "Qwen2ForCausalLM",
    Qwen2Config,
    without=("attention_bias", "mlp_bias"),
    defaults=DEFAULTS,
    refused_fields=WINDOW_REFUSED,
    ignored_fields=WINDOW_IGNORED,
)
"""How Qwen2's checkpoints name and lay out what is above."""
