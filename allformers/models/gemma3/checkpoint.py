"""Gemma 3's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import Field, Size
from allformers.models.gemma.checkpoint import FORMAT as GEMMA
from allformers.models.gemma2.checkpoint import SANDWICH
from allformers.models.gemma3.gemma3 import Gemma3Config
from allformers.models.qwen3.checkpoint import QK_NORMS

SIZES = (
    Size("gemma3-tiny", "", 294_752, Gemma3Config.tiny()),
    Size("gemma3-270m", "google/gemma-3-270m", 268_098_176, Gemma3Config.gemma3_270m()),
    Size("gemma3-1b", "google/gemma-3-1b-pt", 999_885_952, Gemma3Config.gemma3_1b()),
    # The language models of those that also read images.
    Size("gemma3-4b", "google/gemma-3-4b-pt", 3_880_263_168, Gemma3Config.gemma3_4b()),
    Size("gemma3-12b", "google/gemma-3-12b-pt", 11_766_034_176, Gemma3Config.gemma3_12b()),
    Size("gemma3-27b", "google/gemma-3-27b-pt", 27_009_346_304, Gemma3Config.gemma3_27b()),
)
"""The sizes that commands know by name."""

FULL = "rope_parameters.full_attention"
SLIDING = "rope_parameters.sliding_attention"
"""RoPE's parameters, by the type of layer."""

FORMAT = GEMMA.extended(
    "gemma3_text",
    "Gemma3ForCausalLM",
    Gemma3Config,
    without=("layers.{layer}.input_layernorm", "layers.{layer}.post_attention_layernorm"),
    renamed={"rope_parameters": FULL},
    defaults={
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        f"{FULL}.rope_theta": 1000000.0,
    },
    fields=(
        Field("sliding_window", "sliding_window", 4096),
        Field("layer_types", "layer_types", None),
        Field("query_pre_attn_scalar", "query_pre_attn_scalar", 256),
        Field(f"{SLIDING}.rope_theta", "local_rope_theta", 10000.0),
    ),
    aliases={
        "rope_theta": f"{FULL}.rope_theta",
        "rope_local_base_freq": f"{SLIDING}.rope_theta",
        "rope_scaling": FULL,
        f"{FULL}.type": f"{FULL}.rope_type",
    },
    unsupported_fields={
        "use_bidirectional_attention": (False, "a decoder attends to earlier positions only"),
        "attn_logit_softcapping": (None, "no published Gemma 3 caps its scores"),
        "final_logit_softcapping": (None, "no published Gemma 3 caps its logits"),
        f"{SLIDING}.rope_type": ("default", "sliding layers have the plain frequencies"),
    },
    ignored_fields={
        "cache_implementation": "how the reference keeps its cache",
        "sliding_window_pattern": "layer_types says it layer by layer",
        "_sliding_window_pattern": "layer_types says it layer by layer",
    },
    weights=(*SANDWICH, *QK_NORMS),
)
"""The format of Gemma 3's checkpoints: fields, and the weights of `gemma3.py`."""
