"""Mixtral's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import Field, Size, Weight, each_layer
from allformers.models.mistral.checkpoint import FORMAT as MISTRAL
from allformers.models.mixtral.mixtral import MixtralConfig

SIZES = (
    Size("mixtral-tiny", "", 205_632, MixtralConfig.tiny()),
    Size("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1", 46_702_792_704, MixtralConfig.mixtral_8x7b()),
    Size("mixtral-8x22b", "mistralai/Mixtral-8x22B-v0.1", 140_630_071_296, MixtralConfig.mixtral_8x22b()),
)
"""The sizes that commands know by name."""

FORMAT = MISTRAL.extended(
    "mixtral",
    "MixtralForCausalLM",
    MixtralConfig,
    defaults={"rope_parameters.rope_theta": 1000000.0, "rms_norm_eps": 1e-5, "sliding_window": None},
    aliases={**MISTRAL.aliases, "num_experts": "num_local_experts"},
    fields=(Field("num_local_experts", "num_experts", 8), Field("num_experts_per_tok", "num_experts_per_token", 2)),
    ignored_fields={
        "output_router_logits": "what the reference's forward returns",
        "router_aux_loss_coef": "a loss of training, which this package's loop does not add",
        "router_jitter_noise": "noise in training",
    },
    weights=each_layer(
        "layers.{layer}.block_sparse_moe",
        "blocks.{layer}.mlp",
        Weight("gate.weight", "router.weight", "experts embed"),
        Weight("experts.{expert}.w1.weight", "gate", "experts expert_mlp embed"),
        Weight("experts.{expert}.w3.weight", "up", "experts expert_mlp embed"),
        Weight("experts.{expert}.w2.weight", "down", "experts embed expert_mlp"),
    ),
    load_via_files=True,
    variants=tuple,
)
"""The format of Mixtral's checkpoints: fields, and the weights of `mixtral.py`, an expert's matrices by themselves."""
