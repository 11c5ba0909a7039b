"""Qwen3's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import Field, Size, Weight, each_layer
from allformers.models.llama.checkpoint import FORMAT as LLAMA
from allformers.models.qwen2.checkpoint import DEFAULTS, IGNORED_WINDOW, KEY_HEADS, UNSUPPORTED_WINDOW
from allformers.models.qwen3.qwen3 import Qwen3Config

SIZES = (
    Size("qwen3-tiny", "", 131_488, Qwen3Config.tiny()),
    Size("qwen3-0-6b", "Qwen/Qwen3-0.6B", 596_049_920, Qwen3Config.qwen3_0_6b()),
    Size("qwen3-1-7b", "Qwen/Qwen3-1.7B", 1_720_574_976, Qwen3Config.qwen3_0_6b(embedding_dim=2048, mlp_dim=6144)),
    Size(
        "qwen3-4b",
        "Qwen/Qwen3-4B",
        4_022_468_096,
        Qwen3Config(embedding_dim=2560, mlp_dim=9728, tie_embeddings=True),
    ),
    Size("qwen3-8b", "Qwen/Qwen3-8B", 8_190_735_360, Qwen3Config.qwen3_8b()),
    Size(
        "qwen3-14b",
        "Qwen/Qwen3-14B",
        14_768_307_200,
        Qwen3Config(embedding_dim=5120, num_layers=40, num_heads=40, mlp_dim=17408),
    ),
    Size("qwen3-32b", "Qwen/Qwen3-32B", 32_762_123_264, Qwen3Config.qwen3_32b()),
)
"""The sizes that commands know by name."""

QK_NORMS = each_layer(
    "layers.{layer}.self_attn",
    "blocks.{layer}.attention",
    Weight("q_norm.weight", "query_norm.weight", "head_dim"),
    Weight("k_norm.weight", "key_norm.weight", "head_dim"),
)
"""The rows of the norms on queries and keys."""

FORMAT = LLAMA.extended(
    "qwen3",
    "Qwen3ForCausalLM",
    Qwen3Config,
    without=("mlp_bias", "num_key_value_heads", "head_dim"),
    defaults=DEFAULTS,
    fields=(KEY_HEADS, Field("head_dim", "head_dim", 128)),
    unsupported_fields=UNSUPPORTED_WINDOW,
    ignored_fields=IGNORED_WINDOW,
    weights=QK_NORMS,
)
"""The format of Qwen3's checkpoints: fields, and the weights of `qwen3.py`."""
