"""Gemma's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from collections.abc import Mapping
from typing import Any

from allformers.checkpoints.tables import Field, Size
from allformers.models.gemma.gemma import GemmaConfig
from allformers.models.llama.checkpoint import FORMAT as LLAMA

SIZES = (
    Size("gemma-tiny", "", 108_864, GemmaConfig.tiny()),
    Size("gemma-2b", "google/gemma-2b", 2_506_172_416, GemmaConfig.gemma_2b()),
    Size("gemma-7b", "google/gemma-7b", 8_537_680_896, GemmaConfig.gemma_7b()),
)
"""The sizes that commands know by name."""


def activation(known: Mapping[str, Any]) -> str:
    """The activation of a file without `hidden_activation`: early files say "gelu" and mean its approximation."""
    named = known.get("hidden_act")
    return "gelu_pytorch_tanh" if named in (None, "gelu") else str(named)


FORMAT = LLAMA.extended(
    "gemma",
    "GemmaForCausalLM",
    GemmaConfig,
    without=("hidden_act", "mlp_bias"),
    defaults={
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },
    fields=(Field("hidden_activation", "activation", activation),),
    unsupported_fields={"use_bidirectional_attention": (None, "a decoder attends to earlier positions only")},
    ignored_fields={"hidden_act": "read where hidden_activation is missing"},
    extra_config=lambda config: {"hidden_act": config.activation},
)
"""The format of Gemma's checkpoints: fields, and the weights of `gemma.py`."""
