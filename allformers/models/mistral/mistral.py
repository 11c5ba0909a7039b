"""Mistral: Llama with a window. Each position sees only so many before it, and the cache holds no more than that.

What a position cannot see directly can still reach it: over two layers from twice as far, over thirty from thirty
times.

Source: Jiang et al. 2023, "Mistral 7B", arXiv:2310.06825; windows of attention since Beltagy et al. 2020, "Longformer",
arXiv:2004.05150.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool, Int
from torch import Tensor

from allformers.checkpoints.tables import Field
from allformers.models.llama.llama import TINY, Llama, LlamaConfig, size
from allformers.nn.cache import Cache
from allformers.nn.config import Count
from allformers.nn.shapes import checked

V01: Mapping[str, Any] = {"vocab_size": 32000, "context_length": 32768, "sliding_window": 4096}
V03: Mapping[str, Any] = {"vocab_size": 32768, "context_length": 32768, "rope_theta": 1e6}


@dataclass(frozen=True, kw_only=True)
class MistralConfig(LlamaConfig):
    """The sizes and switches of a Mistral: Llama's without biases, and the window.

    Attributes:
        sliding_window: how many positions each sees, its own included; None for all.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    sliding_window: Count | None = None
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False

    mistral_tiny = size("for first steps", 119_104, 2, 4, 2, 16, 64, 160, **TINY, sliding_window=32)
    mistral_7b = size("mistralai/Mistral-7B-v0.1", 7_241_732_096, 32, 32, 8, 128, 4096, 14336, **V01)
    mistral_7b_v03 = size("mistralai/Mistral-7B-v0.3", 7_248_023_552, 32, 32, 8, 128, 4096, 14336, **V03)


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


Mistral.format = Llama.format.extended(
    "mistral",
    "MistralForCausalLM",
    MistralConfig,
    without=("attention_bias", "mlp_bias"),
    fields=(Field("sliding_window", "sliding_window", None),),
)
"""How Mistral's checkpoints name and lay out what is above."""
