"""Llama's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from collections.abc import Mapping
from typing import Any

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.tables import (
    IGNORED_FIELDS,
    REQUIRED,
    UNSUPPORTED_FIELDS,
    Field,
    Format,
    Size,
    Stated,
    Weight,
    each_layer,
    linear,
)
from allformers.messages import shown
from allformers.models.llama.llama import LlamaConfig

STORIES_15M = LlamaConfig(
    vocab_size=32000,
    context_length=256,
    embedding_dim=288,
    num_layers=6,
    num_heads=6,
    num_kv_heads=6,
    head_dim=48,
    mlp_dim=768,
    tie_embeddings=True,
    rope_type="default",
    rope_theta=10000.0,
    rope_factor=1.0,
)
SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    context_length=8192,
    embedding_dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_dim=1536,
    tie_embeddings=True,
    rope_type="default",
    rope_theta=100000.0,
    rope_factor=1.0,
)
SMOLLM2_360M = LlamaConfig(
    vocab_size=49152,
    context_length=8192,
    embedding_dim=960,
    num_layers=32,
    num_heads=15,
    num_kv_heads=5,
    head_dim=64,
    mlp_dim=2560,
    tie_embeddings=True,
    rope_type="default",
    rope_theta=100000.0,
    rope_factor=1.0,
)
SMOLLM2_1_7B = LlamaConfig(
    vocab_size=49152,
    context_length=8192,
    embedding_dim=2048,
    num_layers=24,
    num_heads=32,
    num_kv_heads=32,
    head_dim=64,
    mlp_dim=8192,
    tie_embeddings=True,
    rope_type="default",
    rope_theta=130000.0,
    rope_factor=1.0,
)
TINYLLAMA = LlamaConfig(
    vocab_size=32000,
    context_length=2048,
    embedding_dim=2048,
    num_layers=22,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=5632,
    rope_type="default",
    rope_theta=10000.0,
    rope_factor=1.0,
)

SIZES = (
    Size("llama-tiny", "", 119_104, LlamaConfig.tiny()),
    Size("stories-15m", "", 15_191_712, STORIES_15M),  # llama2.c's
    Size("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 134_515_008, SMOLLM2_135M),
    Size("smollm2-360m", "HuggingFaceTB/SmolLM2-360M", 361_821_120, SMOLLM2_360M),
    Size("smollm2-1-7b", "HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384, SMOLLM2_1_7B),
    Size("tinyllama", "TinyLlama/TinyLlama_v1.1", 1_100_048_384, TINYLLAMA),
    Size("llama1-7b", "", 6_738_415_616, LlamaConfig.llama1_7b()),
    Size("llama2-7b", "meta-llama/Llama-2-7b-hf", 6_738_415_616, LlamaConfig.llama2_7b()),
    Size("llama2-13b", "meta-llama/Llama-2-13b-hf", 13_015_864_320, LlamaConfig.llama2_13b()),
    Size("llama2-70b", "meta-llama/Llama-2-70b-hf", 68_976_648_192, LlamaConfig.llama2_70b()),
    Size("llama3-2-1b", "meta-llama/Llama-3.2-1B", 1_235_814_400, LlamaConfig.llama3_2_1b()),
    Size("llama3-2-3b", "meta-llama/Llama-3.2-3B", 3_212_749_824, LlamaConfig.llama3_2_3b()),
    Size("llama3-1-8b", "meta-llama/Llama-3.1-8B", 8_030_261_248, LlamaConfig.llama3_1_8b()),
    Size("llama3-1-70b", "meta-llama/Llama-3.1-70B", 70_553_706_496, LlamaConfig.llama3_1_70b()),
    Size("llama3-1-405b", "meta-llama/Llama-3.1-405B", 405_853_388_800, LlamaConfig.llama3_1_405b()),
)
"""The sizes that commands know by name."""

SCALED = ("rope_type", "linear", "dynamic", "llama3", "yarn", "longrope")
WITH_ORIGINAL_CONTEXT = ("rope_type", "llama3", "yarn", "longrope")
LLAMA3, YARN, LONGROPE = ("rope_type", "llama3"), ("rope_type", "yarn"), ("rope_type", "longrope")
"""For which types of RoPE `config.json` has a field: the deciding field of ours, then its values."""


def rope_factor(known: Mapping[str, Any]) -> Any:
    """The factor where a file states none: longrope has the growth of the context, and no other type has a default."""
    if known["rope_type"] != "longrope":
        return REQUIRED
    return known["context_length"] / known["original_context_length"]


ROPE_FIELDS = (
    Field("rope_parameters.rope_theta", "rope_theta", 10000.0),
    Field("rope_parameters.rope_type", "rope_type", "default"),
    Field(
        "rope_parameters.original_max_position_embeddings",
        "original_context_length",
        lambda known: known["context_length"],
        WITH_ORIGINAL_CONTEXT,
    ),
    Field("rope_parameters.factor", "rope_factor", rope_factor, SCALED, otherwise=1.0, null_is_missing=True),
    Field("rope_parameters.low_freq_factor", "low_freq_factor", REQUIRED, LLAMA3),
    Field("rope_parameters.high_freq_factor", "high_freq_factor", REQUIRED, LLAMA3),
    Field("rope_parameters.beta_fast", "beta_fast", 32.0, YARN, null_is_missing=True),
    Field("rope_parameters.beta_slow", "beta_slow", 1.0, YARN, null_is_missing=True),
    Field("rope_parameters.truncate", "truncate", True, YARN),
    Field("rope_parameters.mscale", "mscale", None, YARN),
    Field("rope_parameters.mscale_all_dim", "mscale_all_dim", None, YARN),
    Field("rope_parameters.attention_factor", "attention_factor", None, ("rope_type", "yarn", "longrope")),
    Field("rope_parameters.short_factor", "short_factor", REQUIRED, LONGROPE),
    Field("rope_parameters.long_factor", "long_factor", REQUIRED, LONGROPE),
)
"""What `rope_parameters` holds."""


def standardise_rope(form: Format, stated: Mapping[str, Stated]) -> Mapping[str, Stated]:
    """Move what `rope_scaling` says to `rope_parameters`, of which it is the name in files from before transformers 5.

    Where both say something, `rope_scaling` counts and `rope_parameters` does not, as in the reference.

    Raises:
        CheckpointError: a `rope_theta` stated only in `rope_parameters` would be lost by that.
    """
    scaling = {name: one for name, one in stated.items() if name.startswith("rope_scaling.")}
    if not scaling:
        return stated
    standard = {name: one for name, one in stated.items() if not name.startswith(("rope_scaling.", "rope_parameters."))}
    for name, one in scaling.items():
        standard[name.replace("rope_scaling", "rope_parameters", 1)] = one
    theta = stated.get("rope_parameters.rope_theta")
    if theta is not None and theta.value is not None and "rope_parameters.rope_theta" not in standard:
        default = form.default("rope_parameters.rope_theta")
        if "rope_theta" not in stated and theta.value != default:
            raise CheckpointError(
                f"{theta.name} is {shown(theta.value)}, but rope_scaling takes the place of rope_parameters and has no "
                f"rope_theta, so that it would be {default!r}: state it in rope_scaling"
            )
        standard["rope_parameters.rope_theta"] = theta
    return standard


FORMAT = Format(
    model_type="llama",
    architecture="LlamaForCausalLM",
    config_class=LlamaConfig,
    fields=(
        Field("vocab_size", "vocab_size", 32000),
        Field("max_position_embeddings", "context_length", 2048),
        Field("hidden_size", "embedding_dim", 4096),
        Field("num_hidden_layers", "num_layers", 32),
        Field("num_attention_heads", "num_heads", 32),
        Field("num_key_value_heads", "num_kv_heads", lambda known: known["num_heads"], null_is_missing=True),
        Field(
            "head_dim",
            "head_dim",
            lambda known: known["embedding_dim"] // known["num_heads"],
            null_is_missing=True,
        ),
        Field("intermediate_size", "mlp_dim", 11008),
        Field("attention_dropout", "dropout", 0.0, null_is_missing=True),
        Field("rms_norm_eps", "norm_eps", 1e-6),
        Field("tie_word_embeddings", "tie_embeddings", False),
        Field("hidden_act", "activation", "silu"),
        Field("attention_bias", "attention_bias", False),
        Field("mlp_bias", "mlp_bias", False),
        *ROPE_FIELDS,
    ),
    objects=("rope_parameters", "rope_scaling"),
    standardise=standardise_rope,
    aliases={  # how files from before transformers 5 say it
        "rope_theta": "rope_parameters.rope_theta",
        "rope_parameters.type": "rope_parameters.rope_type",
        "original_max_position_embeddings": "rope_parameters.original_max_position_embeddings",
        "partial_rotary_factor": "rope_parameters.partial_rotary_factor",
    },
    unsupported_fields={
        **UNSUPPORTED_FIELDS,
        "is_encoder_decoder": ((False, None), "this is a decoder alone"),
        "is_causal": (True, "a decoder attends to earlier positions only"),
        "rope_parameters.partial_rotary_factor": ((None, 1.0), "RoPE rotates all numbers of a head"),
    },
    ignored_fields={**IGNORED_FIELDS, "pretraining_tp": "how the training was split among machines"},
    weights=(
        Weight("embed_tokens.weight", "token_embedding.weight", "vocab embed"),
        *each_layer(
            "layers.{layer}",
            "blocks.{layer}",
            Weight("input_layernorm.weight", "attention_norm.weight", "embed"),
            *linear("self_attn.q_proj", "attention.query", "(heads head_dim) embed"),
            *linear("self_attn.k_proj", "attention.key", "(kv_heads head_dim) embed"),
            *linear("self_attn.v_proj", "attention.value", "(kv_heads head_dim) embed"),
            *linear("self_attn.o_proj", "attention.output", "embed (heads head_dim)"),
            Weight("post_attention_layernorm.weight", "mlp_norm.weight", "embed"),
            *linear("mlp.gate_proj", "mlp.gate", "mlp embed"),
            *linear("mlp.up_proj", "mlp.up", "mlp embed"),
            *linear("mlp.down_proj", "mlp.down", "embed mlp"),
        ),
        Weight("norm.weight", "final_norm.weight", "embed"),
    ),
    head=(Weight("lm_head.weight", "unembedding.weight", "vocab embed", tied_to="token_embedding.weight"),),
    ignored_weights={"layers.{layer}.self_attn.rotary_emb.inv_freq": "RoPE's frequencies, which are computed"},
    prefix="model.",
)
"""The format of Llama's checkpoints: fields, and the weights of `llama.py`."""
