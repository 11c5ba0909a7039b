"""BERT: an encoder-only transformer. It reads in both directions and fills in masked tokens.

    token_ids   batch seq                 some of them replaced by [MASK]
        |  token embedding + position embedding + segment embedding, then a norm
        x       batch seq embed           every position attends to every other, before and behind
        |  num_layers x Block:  x = norm(x + attention(x)),  x = norm(x + mlp(x))
        x       batch seq embed
        |  one more layer, then the unembedding
    logits      batch seq vocab           logits[b, s] scores what token s is, not what follows it

Different from GPT-2: no causal mask, so a position sees what follows it, and the model cannot generate text; post-norm,
as in the original transformer; an embedding says which of two segments a token belongs to; queries, keys and values
have matrices of their own; the exact GELU.

Source: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
arXiv:1810.04805.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.checkpoints.pretrained import Encoder
from allformers.nn.activations import ACTIVATIONS, Activation
from allformers.nn.config import (
    Config,
    Count,
    LayerCount,
    PositionCount,
    PositiveFloat,
    PositiveInt,
    Probability,
    Width,
)
from allformers.nn.masks import padding_mask
from allformers.nn.shapes import check_token_ids, checked, value_outside


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """The sizes of the blocks, whatever they read. The defaults are BERT base's."""

    embedding_dim: Width = 768  # hidden_size: width of the residual stream
    num_layers: LayerCount = 12  # num_hidden_layers
    num_heads: Count = 12  # num_attention_heads
    mlp_dim: Width = 3072  # intermediate_size
    dropout: Probability = 0.1  # hidden_dropout_prob and attention_probs_dropout_prob
    norm_eps: PositiveFloat = 1e-12  # layer_norm_eps
    activation: Activation = "gelu"  # hidden_act

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_divisible("embedding_dim", "num_heads")

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.embedding_dim // self.num_heads

    @cached_property
    def axes(self) -> dict[str, int]:
        """The sizes that the shape checks hold every tensor to."""
        return {"embed": self.embedding_dim, "heads": self.num_heads, "head_dim": self.head_dim, "mlp": self.mlp_dim}


@dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """The defaults are BERT base."""

    vocab_size: PositiveInt = 30522
    context_length: PositionCount = 512  # max_position_embeddings: positions that have an embedding
    num_segments: Count = 2  # type_vocab_size: the kinds of token_type_ids
    tie_embeddings: bool = True  # tie_word_embeddings: the unembedding shares the token embedding's matrix

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """129,344 parameters, for first steps: bytes as tokens."""
        sizes: dict[str, Any] = {
            "vocab_size": 256,
            "context_length": 128,
            "embedding_dim": 64,
            "num_layers": 2,
            "num_heads": 4,
            "mlp_dim": 256,
        }
        return cls(**sizes | changes)

    @classmethod
    def bert_base(cls, **changes: Any) -> Self:
        """109,514,298 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def bert_large(cls, **changes: Any) -> Self:
        """335,174,458 parameters."""
        sizes: dict[str, Any] = {"embedding_dim": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
        return cls(**sizes | changes)

    @cached_property
    def axes(self) -> dict[str, int]:
        """The sizes that the shape checks hold every tensor to."""
        own = {"vocab": self.vocab_size, "context": self.context_length, "segments": self.num_segments}
        return {**super().axes, **own}


class SelfAttention(nn.Module):
    """Bidirectional multi-head attention: a position attends to all others, before and behind it."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.key = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.value = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.output = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.weights_dropout = nn.Dropout(config.dropout)
        self.output_dropout = nn.Dropout(config.dropout)

    @checked
    def forward(
        self, x: Float[Tensor, "batch seq embed"], mask: Bool[Tensor, "batch 1 1 seq_k"] | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Return, for each position, the weighted sum of the values that it attends to, projected.

        Args:
            x: the residual stream.
            mask: False for keys that are padding; None if there is none.
        """
        heads = self.config.num_heads
        queries = rearrange(self.query(x), "batch seq (heads head_dim) -> batch heads seq head_dim", heads=heads)
        keys = rearrange(self.key(x), "batch seq_k (heads head_dim) -> batch heads seq_k head_dim", heads=heads)
        values = rearrange(self.value(x), "batch seq_k (heads head_dim) -> batch heads seq_k head_dim", heads=heads)
        scores: Float[Tensor, "batch heads seq seq_k"] = einsum(
            queries * self.config.head_dim**-0.5,
            keys,
            "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k",
        )
        if mask is not None:
            scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
        weights: Float[Tensor, "batch heads seq seq_k"] = self.weights_dropout(F.softmax(scores, dim=-1))
        mixed: Float[Tensor, "batch heads seq head_dim"] = einsum(
            weights, values, "batch heads seq seq_k, batch heads seq_k head_dim -> batch heads seq head_dim"
        )
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.output_dropout(self.output(merged))


class MLP(nn.Module):
    """Two linear layers with an activation between them, applied to every position separately."""

    def __init__(self, embedding_dim: int, mlp_dim: int, dropout: float, *, activation: str = "gelu") -> None:
        super().__init__()
        self.axes = {"embed": embedding_dim, "mlp": mlp_dim}
        self.up = nn.Linear(embedding_dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, embedding_dim)
        self.activation = ACTIVATIONS[activation]
        self.dropout = nn.Dropout(dropout)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Transform each position by itself."""
        activated: Float[Tensor, "batch seq mlp"] = self.activation(self.up(x))
        return self.dropout(self.down(activated))


class Block(nn.Module):
    """Attention, then MLP, each with a residual connection and a norm behind it (post-norm).

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.1.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.mlp = MLP(config.embedding_dim, config.mlp_dim, config.dropout, activation=config.activation)
        self.mlp_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)

    @checked
    def forward(
        self, x: Float[Tensor, "batch seq embed"], mask: Bool[Tensor, "batch 1 1 seq_k"] | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream, and normalise it. Arguments as for attention."""
        x_mid: Float[Tensor, "batch seq embed"] = self.attention_norm(x + self.attention(x, mask))
        return self.mlp_norm(x_mid + self.mlp(x_mid))


class BertEncoder(Encoder):
    """Token ids in, a vector for every position out: BERT without a head, as models that compare texts have it.

    >>> BertEncoder(BertConfig.tiny()).eval()(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 64])
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.embedding_dim)
        self.segment_embedding = nn.Embedding(config.num_segments, config.embedding_dim)
        self.embedding_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights from a normal distribution with standard deviation 0.02; biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @checked
    def forward(
        self,
        token_ids: Int[Tensor, "batch seq"],
        segments: Int[Tensor, "batch seq"] | None = None,
        lengths: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Return a vector for every position: the residual stream (hidden states) after the last block.

        Args:
            token_ids: the text.
            segments: the segment that each token belongs to (token_type_ids); the first if None.
            lengths: for texts of different lengths, padded on the right: the number of tokens of each.

        Raises:
            ValueError: the text is longer than the context, or a token id, a segment or a length is out of range.
        """
        return self.residual_stream(token_ids, segments, lengths)

    @checked
    def residual_stream(
        self,
        token_ids: Int[Tensor, "batch seq"],
        segments: Int[Tensor, "batch seq"] | None = None,
        lengths: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """The residual stream (hidden states) after the last block. Arguments and errors as for `forward`."""
        check_token_ids(token_ids, self.config.vocab_size)
        x = self.embed(token_ids, segments)
        if lengths is not None and (index := value_outside(lengths - 1, token_ids.shape[1])) is not None:
            raise ValueError(
                f"length {index + 1} is out of range: these texts hold from 1 to {token_ids.shape[1]} tokens"
            )
        mask = None if lengths is None else padding_mask(lengths, token_ids.shape[1])
        for block in self.blocks:
            x = block(x, mask)
        return x

    @checked
    def embed(
        self, token_ids: Int[Tensor, "batch seq"], segments: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Token embedding plus position embedding plus segment embedding, normalised."""
        if token_ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"{token_ids.shape[1]} tokens are too many: this model's context_length is {self.config.context_length}"
            )
        if segments is not None and (segment := value_outside(segments, self.config.num_segments)) is not None:
            raise ValueError(
                f"segment {segment} (token_type_ids) is unknown: segments run from 0 to {self.config.num_segments - 1}"
            )
        token_embeddings = self.token_embedding(token_ids)
        position_embeddings = self.position_embedding.weight[: token_ids.shape[1]]
        segment_embeddings = self.segment_embedding(torch.zeros_like(token_ids) if segments is None else segments)
        embeddings = token_embeddings + segment_embeddings + position_embeddings
        return self.embedding_dropout(self.embedding_norm(embeddings))


class Bert(BertEncoder):
    """Token ids in, logits of the token at every position out: BERT with its masked-language-modelling head.

    >>> Bert(BertConfig.tiny()).eval()(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.mlm_transform = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.mlm_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.unembedding = nn.Linear(config.embedding_dim, config.vocab_size)
        if config.tie_embeddings:
            self.unembedding.weight = self.token_embedding.weight
        self.initialise()

    @checked
    def forward(
        self,
        token_ids: Int[Tensor, "batch seq"],
        segments: Int[Tensor, "batch seq"] | None = None,
        lengths: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return, at every position, the logits of the token there. Arguments and errors as the encoder's."""
        return self.unembed(self.residual_stream(token_ids, segments, lengths))

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """One more layer, then the unembedding (the MLM head)."""
        transformed = ACTIVATIONS[self.config.activation](self.mlm_transform(x))
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.mlm_norm(transformed))
        return logits
