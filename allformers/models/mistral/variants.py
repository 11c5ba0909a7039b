"""A variant of Mistral for a few published checkpoints; `Mistral.from_pretrained` returns it where `config.json` asks.

Ministral 8B (`mistralai/Ministral-8B-Instruct-2410`) has the window in some layers only. Its `model_type` is Mistral's,
and the reference, too, tells the two apart by the field `layer_types`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Bool, Int
from torch import Tensor

from allformers.checkpoints.tables import Field, Format
from allformers.models.mistral.mistral import Mistral, MistralConfig
from allformers.nn.cache import Cache
from allformers.nn.masks import causal_mask
from allformers.nn.shapes import checked


@dataclass(frozen=True, kw_only=True)
class MinistralConfig(MistralConfig):
    """Mistral's configuration, and the type of each layer."""

    layer_types: tuple[Literal["sliding_attention", "full_attention"], ...] | None = None  # None: all slide

    def type_of_each_layer(self) -> tuple[str, ...]:
        """`layer_types`; without, all layers slide, if there is a window."""
        without = "full_attention" if self.sliding_window is None else "sliding_attention"
        return self.layer_types or (without,) * self.num_layers

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer_types is None:
            return
        if len(self.layer_types) != self.num_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for num_layers {self.num_layers}")
        if "sliding_attention" in self.layer_types and self.sliding_window is None:
            raise ValueError("sliding_window must be a number where layer_types has sliding_attention, not None")


class Ministral(Mistral):
    """Mistral with the window in layers of type "sliding_attention" only."""

    config: MinistralConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def layer_types(self) -> tuple[str, ...]:
        """The attention type of each layer."""
        return self.config.type_of_each_layer()

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

    @classmethod
    def is_asked_for(cls, config_json: Mapping[str, Any]) -> bool:
        """The file has a field for the types of the layers."""
        return "layer_types" in config_json

    @classmethod
    def checkpoint_format(cls) -> Format:
        """Mistral's tables, and the types of the layers."""
        return Mistral.checkpoint_format().extended(
            "mistral",
            "MinistralForCausalLM",
            MinistralConfig,
            fields=(Field("layer_types", "layer_types", None, null_is_missing=True),),
            extra_config=lambda config: {"layer_types": list(config.type_of_each_layer())},  # or it would be Mistral's
        )
