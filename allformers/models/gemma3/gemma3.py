"""Gemma 3: Gemma 2 with norms on queries and keys in place of the caps, five local layers to a global one, which turn
at speeds of their own, and a longer context.

The language model alone: the larger published ones also look at images.

Source: Gemma Team 2025, "Gemma 3 Technical Report", arXiv:2503.19786.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from allformers.checkpoints.tables import Field
from allformers.models.gemma.gemma import GemmaNorm
from allformers.models.gemma2.gemma2 import GLOBAL, LOCAL, Gemma2, Gemma2Attention, Gemma2Block, Gemma2Config, Kind
from allformers.models.llama.llama import TINY, size
from allformers.models.qwen3.qwen3 import QK_NORMS, Qwen3Attention
from allformers.nn.config import Positive
from allformers.nn.rope import frequencies

SMALL: Mapping[str, Any] = {"vocab_size": 262144, "context_length": 32768, "sliding_window": 512}
SCALED: Mapping[str, Any] = {"rope_type": "linear", "rope_factor": 8.0}
LARGE: Mapping[str, Any] = {"vocab_size": 262208, "context_length": 131072, "sliding_window": 1024, **SCALED}


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """The sizes and switches of a Gemma 3: Gemma 2's, and the speeds of its local layers.

    Attributes:
        local_rope_theta: the base of the rotary frequencies in local layers, which `rope_factor` leaves alone.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    local_rope_theta: Positive = 10000.0
    rope_theta: Positive = 1000000.0
    score_cap: Positive | None = None
    logit_cap: Positive | None = None

    pattern: ClassVar[tuple[Kind, ...]] = (*[LOCAL] * 5, GLOBAL)

    gemma3_tiny = size("for first steps", 294_752, 6, 4, 1, 24, 64, 160, **TINY, sliding_window=32)
    gemma3_270m = size("google/gemma-3-270m", 268_098_176, 18, 4, 1, 256, 640, 2048, **SMALL)
    gemma3_1b = size("google/gemma-3-1b-pt", 999_885_952, 26, 4, 1, 256, 1152, 6912, **SMALL)
    # The language models of those that also look at images.
    gemma3_4b = size("google/gemma-3-4b-pt", 3_880_263_168, 34, 8, 4, 256, 2560, 10240, **LARGE)
    gemma3_12b = size("google/gemma-3-12b-pt", 11_766_034_176, 48, 16, 8, 256, 3840, 15360, **LARGE)
    gemma3_27b = size(
        "google/gemma-3-27b-pt", 27_009_346_304, 62, 32, 16, 128, 5376, 21504, **LARGE, query_scale_dim=168
    )


class Gemma3Attention(Qwen3Attention, Gemma2Attention):
    """Gemma 2's attention with Qwen3's norms on queries and keys, in Gemma's form."""

    norm_class: ClassVar[type[Any]] = GemmaNorm


class Gemma3Block(Gemma2Block):
    """Gemma 2's block with this attention."""

    attention_class: ClassVar[type[Any]] = Gemma3Attention


class Gemma3(Gemma2):
    """Gemma 2 with norms on queries and keys, and local layers that turn faster.

    >>> model = Gemma3(Gemma3Config.gemma3_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = Gemma3Block

    def speeds(self, kind: str, device: torch.device) -> Tensor:
        """How fast each pair turns: faster in local layers, which need not tell far from near."""
        if kind == GLOBAL:
            return super().speeds(kind, device)
        dtype = torch.promote_types(self.token_embedding.weight.dtype, torch.float32)
        return frequencies(self.config.head_dim, self.config.local_rope_theta, device, dtype)


FULL = "rope_parameters.full_attention"
SLIDING = "rope_parameters.sliding_attention"

Gemma3.format = Gemma2.format.extended(
    "gemma3_text",
    "Gemma3ForCausalLM",
    Gemma3Config,
    renamed={"rope_parameters": FULL},
    defaults={"vocab_size": 262208, "max_position_embeddings": 131072, f"{FULL}.rope_theta": 1000000.0},
    fields=(Field(f"{SLIDING}.rope_theta", "local_rope_theta", 10000.0),),
    aliases={
        "rope_theta": f"{FULL}.rope_theta",
        "rope_local_base_freq": f"{SLIDING}.rope_theta",
        "rope_scaling": FULL,
        f"{FULL}.type": f"{FULL}.rope_type",
    },
    refused_fields={
        "use_bidirectional_attention": (False, "a decoder looks back only"),
        f"{SLIDING}.rope_type": ("default", "local layers turn at one speed"),
    },
    ignored_fields={
        "sliding_window_pattern": "layer_types says it layer by layer",
        "_sliding_window_pattern": "layer_types says it layer by layer",
    },
    weights=QK_NORMS,
)
"""How Gemma 3's checkpoints name and lay out what is above."""
