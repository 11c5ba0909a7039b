"""GPT-2: a decoder-only, autoregressive transformer. It reads the text so far and predicts the next token.

    token_ids   batch seq
        |  token embedding + position embedding
        x       batch seq embed           the residual stream
        |  num_layers x Block:  x = x + attention(norm(x)),  x = x + mlp(norm(x))
        x       batch seq embed
        |  final norm, then the unembedding (lm_head)
    logits      batch seq vocab           logits[b, s] scores the token that follows position s

New since GPT-1: pre-norm blocks and a final norm, residual projections initialised smaller in deeper models, a context
of 1024 tokens, byte-level BPE. How published checkpoints name these weights is in `checkpoint.py` beside this file.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Attention and MLP are those of
Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762, section 3.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.generation.decoder import Decoder
from allformers.nn.cache import Cache, LayerCache
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
from allformers.nn.shapes import check_token_ids, checked


@dataclass(frozen=True, kw_only=True)
class GPT2Config(Config):
    """The defaults are GPT-2 small; the class methods are the other sizes."""

    vocab_size: PositiveInt = 50257
    context_length: PositionCount = 1024  # n_positions: positions that have an embedding
    embedding_dim: Width = 768  # n_embd: width of the residual stream
    num_layers: LayerCount = 12  # n_layer
    num_heads: Count = 12  # n_head
    mlp_dim: Width = 3072  # n_inner: 4 * embedding_dim in every published size
    dropout: Probability = 0.1  # embd_pdrop, attn_pdrop and resid_pdrop
    norm_eps: PositiveFloat = 1e-5  # layer_norm_epsilon
    tie_embeddings: bool = True  # tie_word_embeddings: the unembedding shares the token embedding's matrix

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_divisible("embedding_dim", "num_heads")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """124,672 parameters, for first steps: bytes as tokens."""
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
    def bundled(cls, **changes: Any) -> Self:
        """858,880 parameters: the model that comes with this package, with bytes as tokens."""
        sizes: dict[str, Any] = {
            "vocab_size": 256,
            "context_length": 256,
            "embedding_dim": 128,
            "num_layers": 4,
            "num_heads": 4,
            "mlp_dim": 512,
        }
        return cls(**sizes | changes)

    @classmethod
    def gpt2_small(cls, **changes: Any) -> Self:
        """124,439,808 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def gpt2_medium(cls, **changes: Any) -> Self:
        """354,823,168 parameters."""
        sizes: dict[str, Any] = {"embedding_dim": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
        return cls(**sizes | changes)

    @classmethod
    def gpt2_large(cls, **changes: Any) -> Self:
        """774,030,080 parameters."""
        sizes: dict[str, Any] = {"embedding_dim": 1280, "num_layers": 36, "num_heads": 20, "mlp_dim": 5120}
        return cls(**sizes | changes)

    @classmethod
    def gpt2_xl(cls, **changes: Any) -> Self:
        """1,557,611,200 parameters."""
        sizes: dict[str, Any] = {"embedding_dim": 1600, "num_layers": 48, "num_heads": 25, "mlp_dim": 6400}
        return cls(**sizes | changes)

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.embedding_dim // self.num_heads

    @cached_property
    def axes(self) -> dict[str, int]:
        """The sizes that the shape checks hold every tensor to."""
        return {
            "vocab": self.vocab_size,
            "context": self.context_length,
            "embed": self.embedding_dim,
            "heads": self.num_heads,
            "head_dim": self.head_dim,
            "mlp": self.mlp_dim,
            "qkv": 3,
        }


class CausalSelfAttention(nn.Module):
    """Multi-head attention in which a position attends to itself and to earlier positions only.

    It is the one place where positions exchange information. A position's query is compared with the keys of all that
    it may attend to, softmax makes weights of the scores, and it receives the weighted sum of their values.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.query_key_value = nn.Linear(config.embedding_dim, 3 * config.embedding_dim)
        self.output = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.weights_dropout = nn.Dropout(config.dropout)
        self.output_dropout = nn.Dropout(config.dropout)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Return, for each position, the weighted sum of the values that it attends to, projected.

        Args:
            x: the residual stream after the norm.
            mask: True where a query may attend to a key.
            cache: earlier positions' keys and values; this call's are appended. Without it, seq_k equals seq.
        """
        queries, keys, values = rearrange(
            self.query_key_value(x),
            "batch seq (qkv heads head_dim) -> qkv batch heads seq head_dim",
            qkv=3,
            heads=self.config.num_heads,
        )
        if cache is not None:
            keys, values = cache.append(keys, values)

        # Dot products of head_dim terms have standard deviation sqrt(head_dim): unscaled, softmax would saturate.
        queries = queries * (1 / math.sqrt(self.config.head_dim))
        scores: Float[Tensor, "batch heads seq seq_k"] = einsum(
            queries, keys, "batch heads seq head_dim, batch heads seq_k head_dim -> batch heads seq seq_k"
        )
        # finfo.min, not -inf: a padding query that may attend to nothing gets uniform weights instead of NaN.
        scores = torch.where(mask, scores, torch.finfo(scores.dtype).min)
        weights: Float[Tensor, "batch heads seq seq_k"] = self.weights_dropout(F.softmax(scores, dim=-1))
        mixed: Float[Tensor, "batch heads seq head_dim"] = einsum(
            weights, values, "batch heads seq seq_k, batch heads seq_k head_dim -> batch heads seq head_dim"
        )
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.output_dropout(self.output(merged))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, applied to every position separately."""

    def __init__(self, embedding_dim: int, mlp_dim: int, dropout: float) -> None:
        super().__init__()
        self.axes = {"embed": embedding_dim, "mlp": mlp_dim}
        self.up = nn.Linear(embedding_dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, embedding_dim)
        self.dropout = nn.Dropout(dropout)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Transform each position by itself."""
        # GPT-2 was trained with the tanh approximation of GELU.
        activated: Float[Tensor, "batch seq mlp"] = F.gelu(self.up(x), approximate="tanh")
        return self.dropout(self.down(activated))


class Block(nn.Module):
    """Attention, then MLP, each with a residual connection.

    Pre-norm: the norms stand inside the branches, so the residual stream itself is only ever added to.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.mlp = MLP(config.embedding_dim, config.mlp_dim, config.dropout)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream. Arguments as for attention."""
        x_mid: Float[Tensor, "batch seq embed"] = x + self.attention(self.attention_norm(x), mask, cache)
        return x_mid + self.mlp(self.mlp_norm(x_mid))


class GPT2(Decoder):
    """Token ids in, logits of the next token at every position out.

    `Decoder` adds `generate` and `from_pretrained`.

    >>> GPT2(GPT2Config.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    lower_triangle: Tensor

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.embedding_dim)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.unembedding = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembedding.weight = self.token_embedding.weight
        # Built once for context_length and sliced; not saved in checkpoints.
        lower_triangle = torch.ones(config.context_length, config.context_length, dtype=torch.bool).tril()
        self.register_buffer("lower_triangle", lower_triangle, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights from a normal distribution with standard deviation 0.02; biases zero.

        The two projections per block that add to the residual stream are divided by sqrt(2 * num_layers), so that its
        variance does not grow with depth. Source: the GPT-2 paper, section 2.3.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                for projection in (module.attention.output, module.mlp.down):
                    nn.init.normal_(projection.weight, std=0.02 / math.sqrt(2 * self.config.num_layers))

    @checked
    def forward(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the next token at every position.

        Args:
            token_ids: at most `context_length` tokens a row, counting those in the cache.
            cache: from `make_cache`. Then `token_ids` are only the new tokens, and the cache grows by them.

        Raises:
            ValueError: the text is longer than the context, or a token id is outside the vocabulary.
        """
        return self.unembed(self.residual_stream(token_ids, cache))

    @checked
    def residual_stream(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """The residual stream (hidden states) after the last block. Arguments and errors as for `forward`."""
        x = self.embed(token_ids, cache)
        mask = self.mask(token_ids, cache)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, None if cache is None else cache.layers[layer])
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return x

    @checked
    def embed(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Token embedding plus position embedding: attention by itself does not know the order of tokens."""
        self.check_length(token_ids, cache)
        check_token_ids(token_ids, self.config.vocab_size)
        positions = self.positions(token_ids, cache).clamp(min=0)  # padding has a negative position
        return self.embedding_dropout(self.token_embedding(token_ids) + self.position_embedding(positions))

    @checked
    def mask(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Bool[Tensor, "#batch 1 seq seq_k"]:
        """The attention mask, True where a query may attend to a key: not later, and not padding.

        Queries are the last `seq` of the `seq_k` positions.
        """
        seq = token_ids.shape[1]
        seq_k = seq if cache is None else cache.length + seq
        mask = rearrange(self.lower_triangle[seq_k - seq : seq_k, :seq_k], "seq seq_k -> 1 1 seq seq_k")
        return mask if cache is None else cache.mask_padding(mask)

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """Final norm, then the LM head: the dot product with every token's embedding."""
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.final_norm(x))
        return logits
