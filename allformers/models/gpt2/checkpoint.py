"""GPT-2's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

from allformers.checkpoints.tables import (
    IGNORED_FIELDS,
    UNSUPPORTED_FIELDS,
    Field,
    Format,
    Size,
    Weight,
    each_layer,
    linear,
    norm,
)
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config

SIZES = (
    Size("tiny", "", 124_672, GPT2Config.tiny()),
    Size("bundled", "", 858_880, GPT2Config.bundled()),
    Size("gpt2-small", "gpt2", 124_439_808, GPT2Config.gpt2_small()),
    Size("gpt2-medium", "gpt2-medium", 354_823_168, GPT2Config.gpt2_medium()),
    Size("gpt2-large", "gpt2-large", 774_030_080, GPT2Config.gpt2_large()),
    Size("gpt2-xl", "gpt2-xl", 1_557_611_200, GPT2Config.gpt2_xl()),
    Size("distilgpt2", "distilgpt2", 81_912_576, GPT2Config(num_layers=6)),
)
"""The sizes that commands know by name. "tiny" is for first steps, "bundled" comes with this package."""


def variants() -> tuple[type[GPT2], ...]:
    """The subclasses that a few checkpoints need, imported when a checkpoint is opened."""
    from allformers.models.gpt2.variants import CerebrasGPT2, StanfordGPT2

    return StanfordGPT2, CerebrasGPT2


FORMAT = Format(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    config_class=GPT2Config,
    fields=(
        Field("vocab_size", "vocab_size", 50257),
        Field("n_positions", "context_length", 1024),
        Field("n_embd", "embedding_dim", 768),
        Field("n_layer", "num_layers", 12),
        Field("n_head", "num_heads", 12),
        Field("n_inner", "mlp_dim", lambda known: 4 * known["embedding_dim"], null_is_missing=True),
        Field("resid_pdrop", "dropout", 0.1, for_training=True),
        Field("embd_pdrop", "dropout", 0.1, for_training=True),
        Field("attn_pdrop", "dropout", 0.1, for_training=True),
        Field("layer_norm_epsilon", "norm_eps", 1e-5),
        Field("tie_word_embeddings", "tie_embeddings", True),
    ),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    unsupported_fields={
        **UNSUPPORTED_FIELDS,
        "activation_function": (
            ("gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast"),  # one function by four names
            "GPT-2's GELU is the tanh approximation; Cerebras's exact one is known too",
        ),
        "scale_attn_weights": (True, "every published GPT-2 divides scores by the root of head_dim"),
        "scale_attn_by_inverse_layer_idx": (False, "only Stanford's GPT-2 has it"),
        "reorder_and_upcast_attn": (False, "only Stanford's GPT-2 has it"),
        "add_cross_attention": (False, "GPT-2 reads one text and attends to nothing outside it"),
        "is_encoder_decoder": ((False, None), "GPT-2 is a decoder alone"),
        "is_causal": (True, "a decoder attends to earlier positions only"),
    },
    ignored_fields={
        **IGNORED_FIELDS,
        "n_special": "for fine-tuning GPT-1",
        "predict_special_tokens": "for fine-tuning GPT-1",
        "output_past": "what the reference's forward returned",
        "n_ctx": "the same as n_positions, from before 2020",
        "summary_type": "for the double-heads model",
        "summary_use_proj": "for the double-heads model",
        "summary_activation": "for the double-heads model",
        "summary_proj_to_labels": "for the double-heads model",
        "summary_first_dropout": "for the double-heads model",
    },
    weights=(
        Weight("wte.weight", "token_embedding.weight", "vocab embed"),
        Weight("wpe.weight", "position_embedding.weight", "context embed"),
        # OpenAI's matrices are stored inputs by outputs, and nn.Linear's the other way round.
        *each_layer(
            "h.{layer}",
            "blocks.{layer}",
            *norm("ln_1", "attention_norm"),
            *linear(
                "attn.c_attn",
                "attention.query_key_value",
                "embed (qkv heads head_dim) -> (qkv heads head_dim) embed",
            ),
            *linear("attn.c_proj", "attention.output", "(heads head_dim) embed -> embed (heads head_dim)"),
            *norm("ln_2", "mlp_norm"),
            *linear("mlp.c_fc", "mlp.up", "embed mlp -> mlp embed"),
            *linear("mlp.c_proj", "mlp.down", "mlp embed -> embed mlp"),
        ),
        *norm("ln_f", "final_norm"),
    ),
    head=(Weight("lm_head.weight", "unembedding.weight", "vocab embed", tied_to="token_embedding.weight"),),
    ignored_weights={
        "h.{layer}.attn.bias": "the causal mask, which older files carry; here it is made, not stored",
        "h.{layer}.attn.masked_bias": "the number that stood for minus infinity in older files",
    },
    prefix="transformer.",
    # The reference takes token 50256 for the end of a text unless it is told that there is none.
    extra_config=lambda config: {} if config.vocab_size > 50256 else {"bos_token_id": None, "eos_token_id": None},
    variants=variants,
)
"""The format of GPT-2's checkpoints: fields, and the weights of `gpt2.py`."""
