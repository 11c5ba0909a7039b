"""Gemma's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from collections.abc import Mapping

from allformers.checkpoints.tables import Field, Format, Size, Stated
from allformers.models.gemma.gemma import GemmaConfig
from allformers.models.llama.checkpoint import FORMAT as LLAMA

SIZES = (
    Size("gemma-tiny", "", 108_864, GemmaConfig.tiny()),
    Size("gemma-2b", "google/gemma-2b", 2_506_172_416, GemmaConfig.gemma_2b()),
    Size("gemma-7b", "google/gemma-7b", 8_537_680_896, GemmaConfig.gemma_7b()),
)
"""The sizes that commands know by name."""


def standardise_activation(form: Format, stated: Mapping[str, Stated]) -> Mapping[str, Stated]:
    """Early files say "gelu" and mean its approximation, as the reference knows."""
    standard = dict(LLAMA.standardise(form, stated))
    if "hidden_act" in standard and standard["hidden_act"].value == "gelu":
        standard["hidden_act"] = standard["hidden_act"]._replace(value="gelu_pytorch_tanh")
    return standard


FORMAT = LLAMA.extended(
    "gemma",
    "GemmaForCausalLM",
    GemmaConfig,
    without=("mlp_bias", "num_key_value_heads", "head_dim"),
    defaults={
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "hidden_size": 3072,
        "intermediate_size": 24576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
    },
    fields=(
        Field("num_key_value_heads", "num_kv_heads", 16),
        Field("head_dim", "head_dim", 256),
        # The reference no longer reads it. Where it is another one, which of the two counts is not known.
        Field("hidden_activation", "activation", lambda known: known["activation"], null_is_missing=True),
    ),
    standardise=standardise_activation,
    unsupported_fields={"use_bidirectional_attention": ((False, None), "a decoder attends to earlier positions only")},
    # The exact GELU by a name that means it here, too.
    extra_config=lambda config: (
        dict.fromkeys(("hidden_act", "hidden_activation"), "gelu_python") if config.activation == "gelu" else {}
    ),
)
"""The format of Gemma's checkpoints: fields, and the weights of `gemma.py`."""
