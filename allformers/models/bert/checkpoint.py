"""BERT's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

import dataclasses
from collections.abc import Mapping

from allformers.checkpoints.tables import (
    IGNORED_FIELDS,
    OTHER_HEADS,
    UNSUPPORTED_FIELDS,
    Field,
    Format,
    Size,
    Weight,
    each_layer,
    linear,
    norm,
)
from allformers.models.bert.bert import Bert, BertConfig, BertEncoder

SIZES = (
    Size("bert-tests", "", 129_344, BertConfig.tiny()),
    Size(
        "bert-tiny",
        "google/bert_uncased_L-2_H-128_A-2",
        4_416_698,
        BertConfig(embedding_dim=128, num_layers=2, num_heads=2, mlp_dim=512),
    ),
    Size("bert-base", "bert-base-uncased", 109_514_298, BertConfig.bert_base()),
    Size("bert-large", "bert-large-uncased", 335_174_458, BertConfig.bert_large()),
)
"""The sizes that commands know by name. "bert-tests" is for first steps; "bert-tiny" is a published one."""

ENCODER_FIELDS = (
    Field("hidden_size", "embedding_dim", 768),
    Field("num_hidden_layers", "num_layers", 12),
    Field("num_attention_heads", "num_heads", 12),
    Field("intermediate_size", "mlp_dim", 3072),
    Field("layer_norm_eps", "norm_eps", 1e-12),
    Field("hidden_act", "activation", "gelu"),
)

FORMAT = Format(
    model_type="bert",
    architecture="BertForMaskedLM",
    config_class=BertConfig,
    fields=(
        Field("vocab_size", "vocab_size", 30522),
        Field("max_position_embeddings", "context_length", 512),
        Field("type_vocab_size", "num_segments", 2),
        Field("hidden_dropout_prob", "dropout", 0.1, for_training=True),
        Field("attention_probs_dropout_prob", "dropout", 0.1, for_training=True),
        *ENCODER_FIELDS,
    ),
    aliases={},
    unsupported_fields={
        **UNSUPPORTED_FIELDS,
        "tie_word_embeddings": (True, "released checkpoints have one matrix for both"),
        "is_decoder": (False, "BERT sees in both directions"),
        "add_cross_attention": (False, "BERT reads one text and attends to nothing outside it"),
        "is_encoder_decoder": ((False, None), "BERT is an encoder alone"),
        "is_causal": (False, "BERT sees in both directions"),
        "position_embedding_type": ("absolute", "released checkpoints have a vector for each position"),
    },
    ignored_fields={
        **IGNORED_FIELDS,
        "classifier_dropout": "for classification heads",
        "pooler_fc_size": "for another program's pooling",
        "pooler_num_attention_heads": "for another program's pooling",
        "pooler_num_fc_layers": "for another program's pooling",
        "pooler_size_per_head": "for another program's pooling",
        "pooler_type": "for another program's pooling",
        "directionality": "both, always",
    },
    weights=(
        Weight("embeddings.word_embeddings.weight", "token_embedding.weight", "vocab embed"),
        Weight("embeddings.position_embeddings.weight", "position_embedding.weight", "context embed"),
        Weight("embeddings.token_type_embeddings.weight", "segment_embedding.weight", "segments embed"),
        *norm("embeddings.LayerNorm", "embedding_norm"),
        *each_layer(
            "encoder.layer.{layer}",
            "blocks.{layer}",
            *linear("attention.self.query", "attention.query", "(heads head_dim) embed"),
            *linear("attention.self.key", "attention.key", "(heads head_dim) embed"),
            *linear("attention.self.value", "attention.value", "(heads head_dim) embed"),
            *linear("attention.output.dense", "attention.output", "embed (heads head_dim)"),
            *norm("attention.output.LayerNorm", "attention_norm"),
            *linear("intermediate.dense", "mlp.up", "mlp embed"),
            *linear("output.dense", "mlp.down", "embed mlp"),
            *norm("output.LayerNorm", "mlp_norm"),
        ),
    ),
    head=(
        *linear("cls.predictions.transform.dense", "mlm_transform", "embed embed"),
        *norm("cls.predictions.transform.LayerNorm", "mlm_norm"),
        Weight("cls.predictions.bias", "unembedding.bias", "vocab"),
        Weight("cls.predictions.decoder.weight", "unembedding.weight", "vocab embed", tied_to="token_embedding.weight"),
    ),
    ignored_weights={
        "embeddings.position_ids": "the numbers 0, 1, 2 ..., which older files carry",
    },
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    prefix="bert.",
    legacy_suffixes={".gamma": ".weight", ".beta": ".bias"},
    load_via_files=True,
)
"""The format of BERT's checkpoints: fields, and weights."""

FORMATS: Mapping[type, Format] = {
    Bert: FORMAT,
    BertEncoder: dataclasses.replace(
        FORMAT,
        architecture="BertModel",
        head=(),
        other_heads={**OTHER_HEADS, "cls.predictions.": "the head that fills in masked tokens"},
    ),
}
"""The formats of checkpoints with the head that fills in masked tokens, and of those of the encoder alone."""
