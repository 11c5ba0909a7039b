"""Gemma 3's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from collections.abc import Mapping
from typing import Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.tables import Accepted, Field, Format, Size, Stated
from allformers.messages import shown
from allformers.models.gemma.checkpoint import FORMAT as GEMMA
from allformers.models.gemma2.checkpoint import IGNORED, SANDWICH
from allformers.models.gemma3.gemma3 import Gemma3Config
from allformers.models.llama.checkpoint import ROPE_FIELDS
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


def layer_types(known: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The types of the layers in a file without a list of them: `sliding_window_pattern` 3 makes every third full."""
    pattern = known.get("sliding_window_pattern")
    if pattern is None:
        return None
    layers = range(1, known["num_layers"] + 1)
    return tuple("sliding_attention" if layer % pattern else "full_attention" for layer in layers)


ROPE_NAMES = ("type", *(field.theirs.removeprefix("rope_parameters.") for field in ROPE_FIELDS))


def standardise_rope(form: Format, stated: Mapping[str, Stated]) -> Mapping[str, Stated]:
    """Move what `rope_scaling` says to the parameters of full layers, where it counts more than what stands there.

    Raises:
        CheckpointError: `rope_scaling` has a `type` and no `rope_type`, the only name that the reference reads there.
    """
    standard = {name: one for name, one in stated.items() if not name.startswith("rope_scaling.")}
    if "rope_scaling.type" in stated and "rope_scaling.rope_type" not in stated:
        raise CheckpointError(
            f"rope_scaling.type is {shown(stated['rope_scaling.type'].value)}, which the reference does not read for "
            "this model: call it rope_type"
        )
    for name, one in stated.items():
        if name.startswith("rope_scaling."):
            standard[name.replace("rope_scaling", FULL, 1)] = one
    return standard


FORMAT = GEMMA.extended(
    "gemma3_text",
    "Gemma3ForCausalLM",
    Gemma3Config,
    without=("hidden_act", "layers.{layer}.input_layernorm", "layers.{layer}.post_attention_layernorm"),
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
        Field("hidden_activation", "activation", "gelu_pytorch_tanh"),
        Field("sliding_window", "sliding_window", 4096),
        Field("layer_types", "layer_types", layer_types, null_is_missing=True),
        Field("query_pre_attn_scalar", "query_pre_attn_scalar", 256),
        Field(f"{SLIDING}.rope_theta", "local_rope_theta", 10000.0),
    ),
    objects=("rope_parameters", FULL, SLIDING, "rope_scaling"),
    standardise=standardise_rope,
    aliases={
        "rope_theta": f"{FULL}.rope_theta",
        "rope_local_base_freq": f"{SLIDING}.rope_theta",
        "partial_rotary_factor": f"{FULL}.partial_rotary_factor",
        f"{FULL}.type": f"{FULL}.rope_type",
        f"{SLIDING}.type": f"{SLIDING}.rope_type",
    },
    unsupported_fields={
        "use_bidirectional_attention": ((False, None), "a decoder attends to earlier positions only"),
        "attn_logit_softcapping": (None, "no published Gemma 3 caps its scores"),
        "final_logit_softcapping": (None, "no published Gemma 3 caps its logits"),
        "sliding_window_pattern": (
            Accepted("a whole number above 0", lambda value: type(value) is int and value > 0),
            "where layer_types is missing, every layer with a number that it divides is a full one",
        ),
        f"{SLIDING}.rope_type": ("default", "sliding layers have the plain frequencies"),
        f"{FULL}.truncate": (True, "the reference does not read it there"),
        "original_max_position_embeddings": (None, f"the reference reads it inside {FULL} only"),
        **{f"rope_parameters.{name}": (None, f"it belongs inside {FULL} or {SLIDING}") for name in ROPE_NAMES},
    },
    ignored_fields={
        **{f"{SLIDING}.{name}": "without effect on the plain frequencies" for name in ROPE_NAMES},
        **IGNORED,
        "_sliding_window_pattern": "what the reference remembers of it",
    },
    extra_config=lambda config: {},
    weights=(*SANDWICH, *QK_NORMS),
)
"""The format of Gemma 3's checkpoints: fields, and the weights of `gemma3.py`."""
