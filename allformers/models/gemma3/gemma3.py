"""Gemma 3: Gemma 2 with norms on queries and keys in place of the caps, five local layers to a global one, which turn
at speeds of their own, and a longer context.

The language model alone: the larger published ones also look at images.

Source: Gemma Team 2025, "Gemma 3 Technical Report", arXiv:2503.19786.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from allformers.checkpoints import Field
from allformers.models.gemma.gemma import GemmaNorm
from allformers.models.gemma2.gemma2 import KINDS, Gemma2, Gemma2Attention, Gemma2Block, Gemma2Config
from allformers.models.qwen3.qwen3 import QK_NORMS, Qwen3Attention
from allformers.rotary import frequencies


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """The sizes and switches of a Gemma 3: Gemma 2's, and the speeds of its local layers.

    Attributes:
        local_rope_theta: the base of the rotary frequencies in local layers, which `rope_factor` leaves alone.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    local_rope_theta: float = 10000.0
    rope_theta: float = 1000000.0
    score_cap: float | None = None
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.local_rope_theta > 0:
            raise ValueError(f"local_rope_theta must be above 0, not {self.local_rope_theta!r}")

    @staticmethod
    def _default_kind(layer: int) -> str:
        return KINDS[(layer + 1) % 6 == 0]

    @classmethod
    def presets(cls) -> dict[str, Callable[[], Self]]:
        """Published sizes and a small one, by name."""
        makers = (cls.gemma3_tiny, cls.gemma3_270m, cls.gemma3_1b, cls.gemma3_4b, cls.gemma3_12b, cls.gemma3_27b)
        return {make.__name__: make for make in makers}

    @classmethod
    def gemma3_tiny(cls) -> Self:
        """A model for tests and first steps: five local layers, with a window of 32, and a global one."""
        return cls._make(6, 4, 1, 24, 64, 160, vocab_size=256, context_length=128, sliding_window=32)

    @classmethod
    def gemma3_270m(cls) -> Self:
        """`google/gemma-3-270m`: 268,098,176 parameters."""
        return cls._make(18, 4, 1, 256, 640, 2048, vocab_size=262144, context_length=32768, sliding_window=512)

    @classmethod
    def gemma3_1b(cls) -> Self:
        """`google/gemma-3-1b-pt`: 999,885,952 parameters."""
        return cls._make(26, 4, 1, 256, 1152, 6912, vocab_size=262144, context_length=32768, sliding_window=512)

    @classmethod
    def gemma3_4b(cls) -> Self:
        """The language model of `google/gemma-3-4b-pt`: 3,880,263,168 parameters."""
        return cls._make(34, 8, 4, 256, 2560, 10240, **_LARGE)

    @classmethod
    def gemma3_12b(cls) -> Self:
        """The language model of `google/gemma-3-12b-pt`: 11,766,034,176 parameters."""
        return cls._make(48, 16, 8, 256, 3840, 15360, **_LARGE)

    @classmethod
    def gemma3_27b(cls) -> Self:
        """The language model of `google/gemma-3-27b-pt`: 27,009,346,304 parameters."""
        return cls._make(62, 32, 16, 128, 5376, 21504, **_LARGE, query_scale_dim=168)


_LARGE: dict[str, Any] = {
    "vocab_size": 262208,
    "context_length": 131072,
    "sliding_window": 1024,
    "rope_type": "linear",
    "rope_factor": 8.0,
}


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
        if kind == "full_attention":
            return super().speeds(kind, device)
        dtype = torch.promote_types(self.token_embedding.weight.dtype, torch.float32)
        return frequencies(self.config.head_dim, self.config.local_rope_theta, device, dtype)


DEFAULTS = {"vocab_size": 262208, "max_position_embeddings": 131072, "rope_parameters.rope_theta": 1000000.0}


def _rope_parameters(config: Any) -> dict[str, Any]:
    """The rotary settings, for each kind of layer."""
    return {
        "full_attention": Gemma2.format.written(config)["rope_parameters"],
        "sliding_attention": {"rope_theta": config.local_rope_theta, "rope_type": "default"},
    }


Gemma3.format = dataclasses.replace(
    Gemma2.format,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    config_class=Gemma3Config,
    fields=(
        *(
            Field(
                f.theirs.replace("rope_parameters.", "rope_parameters.full_attention."),
                f.ours,
                DEFAULTS.get(f.theirs, f.default),
            )
            for f in Gemma2.format.fields
        ),
        Field("rope_parameters.sliding_attention.rope_theta", "local_rope_theta", 10000.0),
    ),
    aliases={
        "rope_theta": "rope_parameters.full_attention.rope_theta",
        "rope_local_base_freq": "rope_parameters.sliding_attention.rope_theta",
        "rope_scaling": "rope_parameters.full_attention",
        "rope_parameters.full_attention.type": "rope_parameters.full_attention.rope_type",
    },
    refused_fields={
        **{name: row for name, row in Gemma2.format.refused_fields.items() if "bidirectional" not in name},
        "use_bidirectional_attention": (False, "a decoder looks back only"),
        "rope_parameters.sliding_attention.rope_type": ("default", "local layers turn at one speed"),
    },
    ignored_fields={
        **Gemma2.format.ignored_fields,
        "sliding_window_pattern": "layer_types says it layer by layer",
        "_sliding_window_pattern": "layer_types says it layer by layer",
    },
    weights=(*Gemma2.format.weights, *QK_NORMS),
    written=lambda config: {**Gemma2.format.written(config), "rope_parameters": _rope_parameters(config)},
)
"""How Gemma 3's checkpoints name and lay out what is above."""
