"""ViT: an image is a sequence of patches, and one rearrangement says so.

    images      batch channels image_height image_width
        |  patches: one rearrange, one linear layer
        x       batch seq embed           a vector for each patch, behind one that stands for the whole image
        |  num_layers x Block:  x = x + attention(norm(x)),  x = x + mlp(norm(x))
        x       batch seq embed
        |  norm, then the first position is compared with every label
    logits      batch labels

Attention is BERT's, without any mask; the norms stand before the sub-layers, as in GPT-2. Nothing in the model knows
that patches lie in a plane: each has a learned position, and the rest is learned from images.

Source: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv:2010.11929.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allformers.checkpoints.pretrained import Checkpointed
from allformers.checkpoints.tables import NOT_ARITHMETIC, Field, Format, Weight, each_layer, linear, norm
from allformers.models.bert.bert import ENCODER_FIELDS, EncoderConfig
from allformers.models.bert.bert import Block as PostNormBlock
from allformers.models.gpt2.gpt2 import size
from allformers.nn.config import Count, Probability
from allformers.nn.linear import Linear
from allformers.nn.shapes import checked

IMAGENET: Mapping[str, Any] = {"image_size": 224, "patch_size": 16, "num_labels": 1000}
TESTS: Mapping[str, Any] = {"image_size": 32, "patch_size": 8, "num_labels": 10}


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """The sizes and switches that define a ViT: BERT's of the blocks, and those of the images. Checked when made.

    Attributes:
        image_size: height and width of the images, in pixels; a multiple of `patch_size`.
        patch_size: height and width of a patch.
        num_channels: numbers a pixel: red, green and blue.
        num_labels: what an image may show.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    image_size: Count
    patch_size: Count
    num_labels: Count
    num_channels: Count = 3
    dropout: Probability = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.divides("image_size", "patch_size")

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis that the configuration fixes."""
        side = self.image_size // self.patch_size
        images = {"channels": self.num_channels, "image_height": self.image_size, "image_width": self.image_size}
        patches = {"rows": side, "columns": side, "patch_height": self.patch_size, "patch_width": self.patch_size}
        return {**super().axes, **images, **patches, "context": self.context_length, "labels": self.num_labels}

    @property
    def context_length(self) -> int:
        """Positions: the patches, and one for the whole image."""
        return (self.image_size // self.patch_size) ** 2 + 1

    vit_tests = size("for first steps", 114_250, embed=64, layers=2, heads=4, **TESTS)
    vit_tiny = size("WinKawaks/vit-tiny-patch16-224", 5_717_416, embed=192, layers=12, heads=3, **IMAGENET)
    vit_small = size("WinKawaks/vit-small-patch16-224", 22_050_664, embed=384, layers=12, heads=6, **IMAGENET)
    vit_base = size("google/vit-base-patch16-224", 86_567_656, embed=768, layers=12, heads=12, **IMAGENET)
    vit_large = size("google/vit-large-patch16-224", 304_326_632, embed=1024, layers=24, heads=16, **IMAGENET)


class Block(PostNormBlock):
    """BERT's block with its norms before the sub-layers and outside the stream, as in GPT-2."""

    @checked
    def forward(
        self, x: Float[Tensor, "batch seq embed"], blocked: Bool[Tensor, "batch 1 1 seq_k"] | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the stream what attention and then the MLP make of it. Arguments as for BERT's."""
        between: Float[Tensor, "batch seq embed"] = x + self.attention(self.attention_norm(x), blocked)
        return between + self.mlp(self.mlp_norm(between))


class ViT(Checkpointed):
    """The whole model: images in, a score for each label out.

    >>> model = ViT(ViTConfig.vit_tests()).eval()
    >>> model(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        numbers = config.num_channels * config.patch_size**2
        self.patch_embedding = Linear(numbers, config.embedding_dim)
        self.whole_image = nn.Parameter(torch.zeros(config.embedding_dim))
        self.position_embedding = nn.Embedding(config.context_length, config.embedding_dim)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.classifier = Linear(config.embedding_dim, config.num_labels)
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights: everything small, biases at zero. Loading a checkpoint replaces them."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def example(self, batch: int, seq: int, device: torch.device | str) -> Tensor:
        """Something that the model can read: images, whatever `seq` is."""
        config = self.config
        return torch.zeros(batch, config.num_channels, config.image_size, config.image_size, device=device)

    @checked
    def forward(
        self, images: Float[Tensor, "batch channels image_height image_width"]
    ) -> Float[Tensor, "batch labels"]:
        """Score every label for every image."""
        return self.classify(self.read(images))

    @checked
    def read(
        self, images: Float[Tensor, "batch channels image_height image_width"]
    ) -> Float[Tensor, "batch seq embed"]:
        """Run all blocks: what the image shows, patch by patch, behind what it shows as a whole."""
        x: Float[Tensor, "batch seq embed"] = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    @checked
    def embed(
        self, images: Float[Tensor, "batch channels image_height image_width"]
    ) -> Float[Tensor, "batch seq embed"]:
        """Cut images into patches, and make a vector of each."""
        size = self.config.patch_size
        patches = rearrange(
            images,
            "batch channels (rows patch_height) (columns patch_width)"
            " -> batch (rows columns) (channels patch_height patch_width)",
            patch_height=size,
            patch_width=size,
        )
        seen = self.patch_embedding(patches)
        whole = repeat(self.whole_image, "embed -> batch 1 embed", batch=len(images))
        return self.embedding_dropout(torch.cat([whole, seen], dim=1) + self.position_embedding.weight)

    @checked
    def classify(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch labels"]:
        """Ask the position that stands for the whole image."""
        logits: Float[Tensor, "batch labels"] = self.classifier(self.final_norm(x)[:, 0])
        return logits


def _labels(known: Mapping[str, Any]) -> int:
    """How many labels there are: as many as have names, two if none has."""
    return len(known.get("id2label") or {0: "", 1: ""})


ViT.format = Format(
    model_type="vit",
    architecture="ViTForImageClassification",
    config_class=ViTConfig,
    fields=(
        Field("image_size", "image_size", 224),
        Field("patch_size", "patch_size", 16),
        Field("num_channels", "num_channels", 3),
        Field("num_labels", "num_labels", _labels),
        Field("hidden_dropout_prob", "dropout", 0.0),
        Field("attention_probs_dropout_prob", "dropout", 0.0),
        *ENCODER_FIELDS,
    ),
    aliases={},
    refused_fields={
        "qkv_bias": (True, "released checkpoints have these biases"),
        "is_encoder_decoder": (False, "ViT is an encoder alone"),
    },
    ignored_fields={
        **NOT_ARITHMETIC,
        "encoder_stride": "for filling in missing patches",
        "pooler_output_size": "for another head",
        "pooler_act": "for another head",
        "tie_word_embeddings": "there are no words",
    },
    weights=(
        Weight("vit.embeddings.cls_token", "whole_image", "1 1 embed -> embed"),
        Weight("vit.embeddings.position_embeddings", "position_embedding.weight", "1 context embed -> context embed"),
        *linear(
            "vit.embeddings.patch_embeddings.projection",
            "patch_embedding",
            "embed channels patch_height patch_width -> embed (channels patch_height patch_width)",
        ),
        *each_layer(
            "vit.encoder.layer.{layer}",
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
        *norm("vit.layernorm", "final_norm"),
        *linear("classifier", "classifier", "labels embed"),
    ),
    ignored_weights={
        "vit.pooler.dense.weight": "for another head",
        "vit.pooler.dense.bias": "for another head",
    },
    from_disk=True,
    written=lambda config: {
        "id2label": {str(label): f"LABEL_{label}" for label in range(config.num_labels)},
        "label2id": {f"LABEL_{label}": label for label in range(config.num_labels)},
    },
)
"""How ViT's checkpoints name and lay out what is above."""
