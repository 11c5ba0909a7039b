"""Mistral: Llama with a window. Each position sees only so many before it, and the cache holds no more than that.

What a position cannot see directly can still reach it: over two layers from twice as far, over thirty from thirty
times.

Source: Jiang et al. 2023, "Mistral 7B", arXiv:2310.06825; windows of attention since Beltagy et al. 2020, "Longformer",
arXiv:2004.05150.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from jaxtyping import Bool, Int
from torch import Tensor

from allformers.cache import Cache
from allformers.checkpoints import NOT_ARITHMETIC, Field, Format
from allformers.models.llama.llama import (
    ALIASES,
    FIELDS,
    IGNORED_WEIGHTS,
    MLP_WEIGHTS,
    SCALED_ROPE,
    WEIGHTS,
    Llama,
    LlamaConfig,
    rope_parameters,
)
from allformers.shapes import checked


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """The sizes and switches of a Mistral: Llama's, and the window.

    Attributes:
        sliding_window: how many positions each sees, its own included; None for all.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    sliding_window: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sliding_window is not None:
            self._check_count("sliding_window")
        self._check_no_biases()

    def _check_no_biases(self) -> None:
        """Llama's switches for biases are not this family's."""
        if self.attention_bias or self.mlp_bias:
            raise ValueError(f"{type(self).__name__} has no switch for biases: leave attention_bias and mlp_bias False")

    @classmethod
    def presets(cls) -> dict[str, Callable[[], Self]]:
        """Published sizes and a small one, by name."""
        return {make.__name__: make for make in (cls.mistral_tiny, cls.mistral_7b, cls.mistral_7b_v03)}

    @classmethod
    def mistral_tiny(cls) -> Self:
        """A model for tests and first steps, with a window of 32."""
        return cls._make(2, 4, 2, 16, 64, 160, vocab_size=256, context_length=128, sliding_window=32)

    @classmethod
    def mistral_7b(cls) -> Self:
        """`mistralai/Mistral-7B-v0.1`: 7,241,732,096 parameters."""
        return cls._make(32, 32, 8, 128, 4096, 14336, context_length=32768, sliding_window=4096)

    @classmethod
    def mistral_7b_v03(cls) -> Self:
        """`mistralai/Mistral-7B-v0.3`, without a window: 7,248,023,552 parameters."""
        sizes = {"vocab_size": 32768, "context_length": 32768, "rope_theta": 1000000.0}
        return cls._make(32, 32, 8, 128, 4096, 14336, **sizes)


class Mistral(Llama):
    """Llama with a sliding window.

    >>> import torch
    >>> model = Mistral(MistralConfig.mistral_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    def window(self, kind: str) -> int | None:
        """How many positions layers of a kind see; None for all."""
        return self.config.sliding_window

    @checked
    def make_cache(self, capacity: int | None = None, padding: Int[Tensor, "batch"] | None = None) -> Cache:
        """A new, empty cache, whose layers hold no more than they will look at."""
        capacity = self.config.context_length if capacity is None else capacity
        return Cache(self.config.num_layers, capacity, padding, [self.window(kind) for kind in self.kinds])

    @checked
    def mask(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None, kind: str
    ) -> Bool[Tensor, "#batch 1 seq seq_k"]:
        """Llama's, cut down to the keys that a layer with a window still holds."""
        blocked = super().mask(token_ids, cache, kind)
        return blocked if cache is None else blocked[..., cache.dropped(self.window(kind)) :]

    @checked
    def hide(self, queries: Int[Tensor, "seq 1"], keys: Int[Tensor, "1 seq_k"], kind: str) -> Bool[Tensor, "seq seq_k"]:
        """Later keys, and those that have dropped out of the window."""
        hidden, window = super().hide(queries, keys, kind), self.window(kind)
        return hidden if window is None else hidden | (keys <= queries - window)


Mistral.format = Format(
    model_type="mistral",
    architecture="MistralForCausalLM",
    config_class=MistralConfig,
    fields=(
        *FIELDS,
        *SCALED_ROPE,
        Field("sliding_window", "sliding_window", None),
    ),
    aliases=ALIASES,
    refused_fields={"is_encoder_decoder": (False, "Mistral is a decoder alone")},
    ignored_fields=NOT_ARITHMETIC,
    weights=(*WEIGHTS, *MLP_WEIGHTS),
    ignored_weights=IGNORED_WEIGHTS,
    prefix="model.",
    written=lambda config: {"rope_parameters": rope_parameters(config)},
)
"""How Mistral's checkpoints name and lay out what is above."""
