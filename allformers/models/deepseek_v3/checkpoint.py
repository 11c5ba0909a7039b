"""DeepSeek-V3's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import Field, Size, Weight, each_layer, linear
from allformers.models.deepseek_v3.deepseek_v3 import DeepSeekV3Config
from allformers.models.llama.checkpoint import FORMAT as LLAMA

SIZES = (
    Size("deepseek-v3-tiny", "", 158_112, DeepSeekV3Config.tiny()),
    # The reference does not count 14,848 of them, the experts' biases.
    Size("deepseek-v3", "deepseek-ai/DeepSeek-V3", 671_026_419_200, DeepSeekV3Config.deepseek_v3()),
)
"""The sizes that commands know by name."""

FORMAT = LLAMA.extended(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    DeepSeekV3Config,
    without=(
        "head_dim",
        "mlp_bias",
        "num_key_value_heads",
        "layers.{layer}.self_attn",
    ),
    defaults={
        "vocab_size": 129280,
        "max_position_embeddings": 4096,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
    },
    fields=(
        Field("q_lora_rank", "q_latent_dim", 1536),
        Field("kv_lora_rank", "kv_latent_dim", 512),
        Field("qk_nope_head_dim", "nope_head_dim", 128),
        Field("qk_rope_head_dim", "rope_head_dim", 64),
        Field("head_dim", "rope_head_dim", lambda known: known["rope_head_dim"]),
        Field("v_head_dim", "v_head_dim", 128),
        Field("num_key_value_heads", "num_heads", lambda known: known["num_heads"], null_is_missing=True),
        Field("first_k_dense_replace", "first_k_dense", 3),
        Field("n_routed_experts", "num_experts", 256),
        Field("num_experts_per_tok", "num_experts_per_token", 8),
        Field("n_shared_experts", "num_shared_experts", 1),
        Field("n_group", "num_expert_groups", 8),
        Field("topk_group", "topk_groups", 4),
        Field("moe_intermediate_size", "expert_mlp_dim", 2048),
        Field("norm_topk_prob", "norm_topk_prob", True),
        Field("routed_scaling_factor", "routed_scaling_factor", 2.5),
    ),
    aliases={
        **LLAMA.aliases,
        "num_local_experts": "n_routed_experts",
        "num_mtp_layers": "num_nextn_predict_layers",
    },
    unsupported_fields={
        "rope_interleave": (True, "published checkpoints rotate pairs of neighbours"),
        "scoring_func": ("sigmoid", "published checkpoints score experts by sigmoids"),
        "topk_method": ("noaux_tc", "published checkpoints choose with a bias"),
        "moe_layer_freq": (1, "published checkpoints have experts in every layer after the first ones"),
    },
    ignored_fields={
        "qk_head_dim": "the sum of qk_nope_head_dim and qk_rope_head_dim",
        "num_nextn_predict_layers": "layers that predict one more token, which the reference leaves out too",
        "ep_size": "how experts are spread over machines",
        "output_router_logits": "what the reference's forward returns",
        "seq_aux": "a loss of DeepSeek's training, which this package's loop does not add",
        "aux_loss_alpha": "a loss of DeepSeek's training, which this package's loop does not add",
    },
    weights=(
        *each_layer(
            "layers.{layer}.self_attn",
            "blocks.{layer}.attention",
            Weight("q_proj.weight", "query.weight", "(heads qk_dim) embed"),
            *linear("q_a_proj", "query_down", "q_latent embed"),
            Weight("q_a_layernorm.weight", "query_norm.weight", "q_latent"),
            Weight("q_b_proj.weight", "query_up.weight", "(heads qk_dim) q_latent"),
            *linear("kv_a_proj_with_mqa", "kv_down", "kv_rope embed"),
            Weight("kv_a_layernorm.weight", "kv_norm.weight", "kv_latent"),
            Weight("kv_b_proj.weight", "kv_up.weight", "(heads kv_dim) kv_latent"),
            *linear("o_proj", "output", "embed (heads v_head_dim)"),
        ),
        *each_layer(
            "layers.{layer}.mlp",
            "blocks.{layer}.mlp",
            Weight("gate.weight", "router.weight", "experts embed"),
            Weight("gate.e_score_correction_bias", "expert_bias", "experts"),
            Weight("experts.{expert}.gate_proj.weight", "gate", "experts expert_mlp embed"),
            Weight("experts.{expert}.up_proj.weight", "up", "experts expert_mlp embed"),
            Weight("experts.{expert}.down_proj.weight", "down", "experts embed expert_mlp"),
            Weight("shared_experts.gate_proj.weight", "shared.gate.weight", "shared_mlp embed"),
            Weight("shared_experts.up_proj.weight", "shared.up.weight", "shared_mlp embed"),
            Weight("shared_experts.down_proj.weight", "shared.down.weight", "embed shared_mlp"),
        ),
    ),
    extra_layers="num_nextn_predict_layers",
    load_via_files=True,
)
"""The format of DeepSeek-V3's checkpoints: fields, and the weights of `deepseek_v3.py`."""
