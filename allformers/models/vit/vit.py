"""ViT: an encoder-only transformer for images. An image is a sequence of patches, and one rearrangement says so.

    images      batch channels image_height image_width
        |  patches: one rearrange, one linear layer
        x       batch seq embed           an embedding for each patch, behind the class token
        |  num_layers x Block:  x = x + attention(norm(x)),  x = x + mlp(norm(x))
        x       batch seq embed
        |  final norm, then a linear layer on the class token
    logits      batch labels

Attention and MLP are BERT's, without any mask; pre-norm as in GPT-2. Nothing in the model knows that patches lie in a
plane: each has a learned position, and the rest is learned from images.

Source: Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words", arXiv:2010.11929.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allformers.checkpoints.pretrained import Classifier, Encoder
from allformers.models.bert.bert import Block as PostNormBlock
from allformers.models.bert.bert import EncoderConfig
from allformers.nn.config import Count, PositionCount, Probability, Width
from allformers.nn.shapes import checked


@dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """The defaults are ViT base, on images of 224 x 224 pixels."""

    image_size: PositionCount = 224  # height and width in pixels
    patch_size: PositionCount = 16  # height and width of a patch
    num_channels: Count = 3  # numbers per pixel: red, green and blue
    num_labels: Width = 1000
    dropout: Probability = 0.0  # hidden_dropout_prob and attention_probs_dropout_prob

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_divisible("image_size", "patch_size")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """114,250 parameters, for first steps."""
        sizes: dict[str, Any] = {
            "image_size": 32,
            "patch_size": 8,
            "num_labels": 10,
            "embedding_dim": 64,
            "num_layers": 2,
            "num_heads": 4,
            "mlp_dim": 256,
        }
        return cls(**sizes | changes)

    @classmethod
    def vit_base(cls, **changes: Any) -> Self:
        """86,567,656 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def vit_large(cls, **changes: Any) -> Self:
        """304,326,632 parameters."""
        sizes: dict[str, Any] = {"embedding_dim": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
        return cls(**sizes | changes)

    @property
    def context_length(self) -> int:
        """Positions: the class token and the patches."""
        return 1 + (self.image_size // self.patch_size) ** 2

    @cached_property
    def axes(self) -> dict[str, int]:
        """The sizes that the shape checks hold every tensor to. Those of images are not among them: they may vary."""
        patches = {"channels": self.num_channels, "patch_height": self.patch_size, "patch_width": self.patch_size}
        return {**super().axes, **patches, "context": self.context_length, "labels": self.num_labels}


class Block(PostNormBlock):
    """BERT's block with pre-norm: the norms stand inside the branches, as in GPT-2."""

    @checked
    def forward(
        self, x: Float[Tensor, "batch seq embed"], mask: Bool[Tensor, "batch 1 1 seq_k"] | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream. Arguments as for BERT's."""
        x_mid: Float[Tensor, "batch seq embed"] = x + self.attention(self.attention_norm(x), mask)
        return x_mid + self.mlp(self.mlp_norm(x_mid))


class ViTEncoder(Encoder):
    """Images in, a vector for the class token and for each patch out: ViT without a classifier.

    >>> ViTEncoder(ViTConfig.tiny()).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 17, 64])
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Linear(config.num_channels * config.patch_size**2, config.embedding_dim)
        self.cls_token = nn.Parameter(torch.zeros(config.embedding_dim))
        self.position_embedding = nn.Embedding(config.context_length, config.embedding_dim)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights from a normal distribution with standard deviation 0.02, truncated at +-2; biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def dummy_input(self, batch: int, seq: int, device: torch.device | str) -> Tensor:
        """Images of zeros, whatever `seq` is, for tracing and summaries."""
        config = self.config
        return torch.zeros(batch, config.num_channels, config.image_size, config.image_size, device=device)

    @checked
    def forward(
        self, images: Float[Tensor, "batch channels image_height image_width"]
    ) -> Float[Tensor, "batch seq embed"]:
        """Return the normalised residual stream (hidden states): class token first, then the patches row by row.

        Args:
            images: of the configuration's size or another; position embeddings are then interpolated.

        Raises:
            ValueError: patches do not fill the images.
        """
        return self.final_norm(self.residual_stream(images))

    @checked
    def residual_stream(
        self, images: Float[Tensor, "batch channels image_height image_width"]
    ) -> Float[Tensor, "batch seq embed"]:
        """The residual stream after the last block, not normalised yet. Arguments and errors as for `forward`."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return x

    @checked
    def embed(
        self, images: Float[Tensor, "batch channels image_height image_width"]
    ) -> Float[Tensor, "batch seq embed"]:
        """Cut images into patches, embed each, put the class token before them, and add position embeddings."""
        patch_size, image_height, image_width = self.config.patch_size, *images.shape[2:]
        if image_height % patch_size or image_width % patch_size:
            raise ValueError(
                f"patches of {patch_size} x {patch_size} pixels do not fill an image of {image_height} x {image_width}"
            )
        patches = rearrange(
            images,
            "batch channels (rows patch_height) (columns patch_width)"
            " -> batch (rows columns) (channels patch_height patch_width)",
            patch_height=patch_size,
            patch_width=patch_size,
        )
        patch_embeddings = self.patch_embedding(patches)
        cls_token = repeat(self.cls_token, "embed -> batch 1 embed", batch=len(images))
        x = torch.cat([cls_token, patch_embeddings], dim=1)
        return self.embedding_dropout(x + self.positions(image_height // patch_size, image_width // patch_size))

    @checked
    def positions(self, rows: int, columns: int) -> Float[Tensor, "seq embed"]:
        """The position embeddings of an image of so many patches, interpolated where they are not the usual ones.

        The patches' embeddings lie in a plane, which is stretched (bicubically); the class token's stays as it is.

        Source: Dosovitskiy et al. 2020, section 3.2.
        """
        table = self.position_embedding.weight
        side = self.config.image_size // self.config.patch_size
        if (rows, columns) == (side, side):
            return table
        plane = rearrange(table[1:], "(rows columns) embed -> 1 embed rows columns", rows=side)
        stretched: Float[Tensor, "1 embed rows columns"] = F.interpolate(
            plane, size=(rows, columns), mode="bicubic", align_corners=False
        )
        return torch.cat([table[:1], rearrange(stretched, "1 embed rows columns -> (rows columns) embed")])


class ViT(ViTEncoder, Classifier):
    """Images in, a score for each label out.

    >>> ViT(ViTConfig.tiny()).eval()(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.classifier = nn.Linear(config.embedding_dim, config.num_labels)
        self.initialise()

    @checked
    def forward(
        self, images: Float[Tensor, "batch channels image_height image_width"]
    ) -> Float[Tensor, "batch labels"]:
        """Score every label for every image.

        Args:
            images: of the configuration's size or another; position embeddings are then interpolated.

        Raises:
            ValueError: patches do not fill the images.
        """
        return self.classify(self.residual_stream(images))

    @checked
    def classify(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch labels"]:
        """Final norm, then a linear layer on the class token."""
        logits: Float[Tensor, "batch labels"] = self.classifier(self.final_norm(x)[:, 0])
        return logits
