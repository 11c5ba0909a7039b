"""ViT's checkpoints: how `config.json` and the weights' names map to the model, and every published size."""

import dataclasses
from collections.abc import Mapping
from typing import Any

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
from allformers.models.bert.checkpoint import ENCODER_FIELDS
from allformers.models.vit.vit import ViT, ViTConfig, ViTEncoder

SIZES = (
    Size("vit-tests", "", 114_250, ViTConfig.tiny()),
    Size(
        "vit-tiny",
        "WinKawaks/vit-tiny-patch16-224",
        5_717_416,
        ViTConfig(embedding_dim=192, num_heads=3, mlp_dim=768),
    ),
    Size(
        "vit-small",
        "WinKawaks/vit-small-patch16-224",
        22_050_664,
        ViTConfig(embedding_dim=384, num_heads=6, mlp_dim=1536),
    ),
    Size("vit-base", "google/vit-base-patch16-224", 86_567_656, ViTConfig.vit_base()),
    Size("vit-large", "google/vit-large-patch16-224", 304_326_632, ViTConfig.vit_large()),
)
"""The sizes that commands know by name. "vit-tests" is for first steps; "vit-tiny" is a published one."""


def count_labels(known: Mapping[str, Any]) -> int:
    """The number of labels: as many as have names, two if none has."""
    return len(known.get("id2label") or {0: "", 1: ""})


FORMAT = Format(
    model_type="vit",
    architecture="ViTForImageClassification",
    config_class=ViTConfig,
    fields=(
        Field("image_size", "image_size", 224),
        Field("patch_size", "patch_size", 16),
        Field("num_channels", "num_channels", 3),
        Field("num_labels", "num_labels", count_labels),
        Field("hidden_dropout_prob", "dropout", 0.0, for_training=True),
        Field("attention_probs_dropout_prob", "dropout", 0.0, for_training=True),
        *ENCODER_FIELDS,
    ),
    aliases={},
    unsupported_fields={
        **UNSUPPORTED_FIELDS,
        "qkv_bias": (True, "released checkpoints have these biases"),
        "is_encoder_decoder": ((False, None), "ViT is an encoder alone"),
        "is_causal": (False, "a patch attends to all patches"),
        "head_dim": (None, "a head is as wide as hidden_size / num_attention_heads"),
    },
    ignored_fields={
        **IGNORED_FIELDS,
        "encoder_stride": "for filling in missing patches",
        "pooler_output_size": "for another head",
        "pooler_act": "for another head",
        "tie_word_embeddings": "there are no words",
    },
    weights=(
        Weight("embeddings.cls_token", "cls_token", "1 1 embed -> embed"),
        Weight("embeddings.position_embeddings", "position_embedding.weight", "1 context embed -> context embed"),
        *linear(
            "embeddings.patch_embeddings.projection",
            "patch_embedding",
            "embed channels patch_height patch_width -> embed (channels patch_height patch_width)",
        ),
        *each_layer(
            "encoder.layer.{layer}",
            "blocks.{layer}",
            *norm("layernorm_before", "attention_norm"),
            *linear("attention.attention.query", "attention.query", "(heads head_dim) embed"),
            *linear("attention.attention.key", "attention.key", "(heads head_dim) embed"),
            *linear("attention.attention.value", "attention.value", "(heads head_dim) embed"),
            *linear("attention.output.dense", "attention.output", "embed (heads head_dim)"),
            *norm("layernorm_after", "mlp_norm"),
            *linear("intermediate.dense", "mlp.up", "mlp embed"),
            *linear("output.dense", "mlp.down", "embed mlp"),
        ),
        *norm("layernorm", "final_norm"),
    ),
    head=linear("classifier", "classifier", "labels embed"),
    ignored_weights={},
    prefix="vit.",
    load_via_files=True,
    extra_config=lambda config: {
        "id2label": {str(label): f"LABEL_{label}" for label in range(config.num_labels)},
        "label2id": {f"LABEL_{label}": label for label in range(config.num_labels)},
    },
)
"""The format of ViT's checkpoints: fields, and weights."""

FORMATS: Mapping[type, Format] = {
    ViT: FORMAT,
    ViTEncoder: dataclasses.replace(FORMAT, architecture="ViTModel", head=()),
}
"""The formats of checkpoints with a classifier, and of those of the encoder alone."""
