"""Mistral's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import Field, Size
from allformers.models.llama.checkpoint import FORMAT as LLAMA
from allformers.models.mistral.mistral import Mistral, MistralConfig

SIZES = (
    Size("mistral-tiny", "", 119_104, MistralConfig.tiny()),
    Size("mistral-7b", "mistralai/Mistral-7B-v0.1", 7_241_732_096, MistralConfig.mistral_7b()),
    Size("mistral-7b-v03", "mistralai/Mistral-7B-v0.3", 7_248_023_552, MistralConfig.mistral_7b_v03()),
)
"""The sizes that commands know by name."""


def variants() -> tuple[type[Mistral], ...]:
    """The subclass that a few checkpoints need, imported when a checkpoint is opened."""
    from allformers.models.mistral.variants import Ministral

    return (Ministral,)


FORMAT = LLAMA.extended(
    "mistral",
    "MistralForCausalLM",
    MistralConfig,
    without=("attention_bias", "mlp_bias", "num_key_value_heads"),
    defaults={"max_position_embeddings": 131072, "intermediate_size": 14336},
    fields=(Field("num_key_value_heads", "num_kv_heads", 8), Field("sliding_window", "sliding_window", 4096)),
    variants=variants,
)
"""The format of Mistral's checkpoints: fields, and the weights of `mistral.py`."""
