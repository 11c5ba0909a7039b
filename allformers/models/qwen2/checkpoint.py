"""Qwen2's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import Accepted, Field, Size
from allformers.models.llama.checkpoint import FORMAT as LLAMA
from allformers.models.qwen2.qwen2 import Qwen2Config

SIZES = (
    Size("qwen2-tiny", "", 119_360, Qwen2Config.tiny()),
    Size("qwen2-5-0-5b", "Qwen/Qwen2.5-0.5B", 494_032_768, Qwen2Config.qwen2_5_0_5b()),
    Size(
        "qwen2-5-1-5b",
        "Qwen/Qwen2.5-1.5B",
        1_543_714_304,
        Qwen2Config.qwen2_5_0_5b(embedding_dim=1536, num_layers=28, num_heads=12, head_dim=128, mlp_dim=8960),
    ),
    Size(
        "qwen2-5-3b",
        "Qwen/Qwen2.5-3B",
        3_085_938_688,
        Qwen2Config.qwen2_5_0_5b(embedding_dim=2048, num_layers=36, num_heads=16, head_dim=128, mlp_dim=11008),
    ),
    Size("qwen2-5-7b", "Qwen/Qwen2.5-7B", 7_615_616_512, Qwen2Config.qwen2_5_7b()),
    Size(
        "qwen2-5-14b",
        "Qwen/Qwen2.5-14B",
        14_770_033_664,
        Qwen2Config(embedding_dim=5120, num_layers=48, num_heads=40, num_kv_heads=8, mlp_dim=13824, norm_eps=1e-5),
    ),
    Size(
        "qwen2-5-32b",
        "Qwen/Qwen2.5-32B",
        32_763_876_352,
        Qwen2Config(embedding_dim=5120, num_layers=64, num_heads=40, num_kv_heads=8, mlp_dim=27648, norm_eps=1e-5),
    ),
    Size("qwen2-5-72b", "Qwen/Qwen2.5-72B", 72_706_203_648, Qwen2Config.qwen2_5_72b()),
)
"""The sizes that commands know by name."""

UNSUPPORTED_WINDOW = {
    "use_sliding_window": (False, "no released checkpoint uses the window, and it is not built here"),
    "layer_types": (
        Accepted(
            "'full_attention' for each layer",
            lambda value: value is None or (isinstance(value, list) and value == ["full_attention"] * len(value)),
        ),
        "no layer has the window unless use_sliding_window is true",
    ),
}
IGNORED_WINDOW = {
    "sliding_window": "has no effect unless use_sliding_window is true, which is refused",
    "max_window_layers": "likewise",
}
DEFAULTS = {"vocab_size": 151936, "max_position_embeddings": 32768, "intermediate_size": 22016}
"""The defaults of fields that Qwen's `config.json` may leave out."""

KEY_HEADS = Field("num_key_value_heads", "num_kv_heads", 32)
"""A row of its own: Llama's has another default, and takes null for it."""

FORMAT = LLAMA.extended(
    "qwen2",
    "Qwen2ForCausalLM",
    Qwen2Config,
    without=("attention_bias", "mlp_bias", "num_key_value_heads"),
    defaults=DEFAULTS,
    fields=(KEY_HEADS,),
    unsupported_fields=UNSUPPORTED_WINDOW,
    ignored_fields=IGNORED_WINDOW,
)
"""The format of Qwen2's checkpoints: fields, and the weights of `qwen2.py`."""
