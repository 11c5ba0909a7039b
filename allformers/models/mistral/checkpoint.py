"""Mistral's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import Field, Size
from allformers.models.llama.checkpoint import FORMAT as LLAMA
from allformers.models.mistral.mistral import MistralConfig

SIZES = (
    Size("mistral-tiny", "", 119_104, MistralConfig.tiny()),
    Size("mistral-7b", "mistralai/Mistral-7B-v0.1", 7_241_732_096, MistralConfig.mistral_7b()),
    Size("mistral-7b-v03", "mistralai/Mistral-7B-v0.3", 7_248_023_552, MistralConfig.mistral_7b_v03()),
)
"""The sizes that commands know by name."""

FORMAT = LLAMA.extended(
    "mistral",
    "MistralForCausalLM",
    MistralConfig,
    without=("attention_bias", "mlp_bias"),
    fields=(Field("sliding_window", "sliding_window", None),),
)
"""The format of Mistral's checkpoints: fields, and the weights of `mistral.py`."""
