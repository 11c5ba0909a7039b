"""Gemma 2's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import Field, Size, Weight, each_layer
from allformers.models.gemma.checkpoint import FORMAT as GEMMA
from allformers.models.gemma2.gemma2 import Gemma2Config
from allformers.models.llama.checkpoint import FORMAT as LLAMA

SIZES = (
    Size("gemma2-tiny", "", 115_264, Gemma2Config.tiny()),
    Size("gemma2-2b", "google/gemma-2-2b", 2_614_341_888, Gemma2Config.gemma2_2b()),
    Size("gemma2-9b", "google/gemma-2-9b", 9_241_705_984, Gemma2Config.gemma2_9b()),
    Size("gemma2-27b", "google/gemma-2-27b", 27_227_128_320, Gemma2Config.gemma2_27b()),
)
"""The sizes that commands know by name."""

SANDWICH = each_layer(
    "layers.{layer}",
    "blocks.{layer}",
    Weight("input_layernorm.weight", "attention_norm.weight", "embed"),
    Weight("post_attention_layernorm.weight", "post_attention_norm.weight", "embed"),
    Weight("pre_feedforward_layernorm.weight", "mlp_norm.weight", "embed"),
    Weight("post_feedforward_layernorm.weight", "post_mlp_norm.weight", "embed"),
)
"""The rows of a block's four norms; `post_attention_layernorm` is another norm than Llama's of that name."""

IGNORED = {
    "cache_implementation": "how the reference keeps its cache",
    "hidden_act": "hidden_activation says it",
}
"""What the reference does not read since Gemma 2."""

FORMAT = GEMMA.extended(
    "gemma2",
    "Gemma2ForCausalLM",
    Gemma2Config,
    without=("hidden_act", "layers.{layer}.input_layernorm", "layers.{layer}.post_attention_layernorm"),
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    fields=(
        Field("hidden_activation", "activation", "gelu_pytorch_tanh"),
        Field("sliding_window", "sliding_window", 4096),
        Field("layer_types", "layer_types", None, null_is_missing=True),
        Field("query_pre_attn_scalar", "query_pre_attn_scalar", 256),
        Field("attn_logit_softcapping", "attn_logit_softcap", 50.0),
        Field("final_logit_softcapping", "final_logit_softcap", 30.0),
    ),
    standardise=LLAMA.standardise,
    ignored_fields=IGNORED,
    extra_config=lambda config: {},
    weights=SANDWICH,
)
"""The format of Gemma 2's checkpoints: fields, and the weights of `gemma2.py`."""
