"""Llama: a decoder with RMSNorm, RoPE, grouped-query attention and SwiGLU. Most open models since keep its block.

    token_ids   batch seq
        |  token embedding; positions enter later, as rotations of queries and keys
        x       batch seq embed           the residual stream
        |  num_layers x Block:  x = x + attention(norm(x)),  x = x + mlp(norm(x))
        x       batch seq embed
        |  final norm, then the unembedding (lm_head)
    logits      batch seq vocab

New since GPT-2: RMSNorm in place of LayerNorm, RoPE in place of learned positions, SwiGLU in place of the GELU MLP, no
biases, an unembedding of its own. Llama 2 70B and all of Llama 3 use grouped-query attention; Llama 3.1 slows down some
of RoPE's frequencies for longer texts.

Sources: Touvron et al. 2023, "LLaMA", arXiv:2302.13971, and "Llama 2", arXiv:2307.09288; Dubey et al. 2024, "The
Llama 3 Herd of Models", arXiv:2407.21783.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.generation.decoder import Decoder
from allformers.nn.activations import ACTIVATIONS, Activation
from allformers.nn.cache import Cache, LayerCache
from allformers.nn.config import Count, EvenWidth, LayerCount, PositiveFloat, PositiveInt, Probability, Width
from allformers.nn.masks import causal_mask
from allformers.nn.rope import RopeConfig, RopeType, apply_rope, rope_cos_sin
from allformers.nn.shapes import check_token_ids, checked


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(RopeConfig):
    """The defaults are Llama 3.1 8B."""

    vocab_size: PositiveInt = 128256
    context_length: PositiveInt = 131072  # max_position_embeddings: the longest text that it was trained on
    embedding_dim: Width = 4096  # hidden_size: width of the residual stream
    num_layers: LayerCount = 32  # num_hidden_layers
    num_heads: Count = 32  # num_attention_heads: query heads
    num_kv_heads: Count = 8  # num_key_value_heads: each serves num_heads / num_kv_heads query heads
    head_dim: EvenWidth = 128
    mlp_dim: Width = 14336  # intermediate_size
    dropout: Probability = 0.0  # attention_dropout
    norm_eps: PositiveFloat = 1e-5  # rms_norm_eps
    tie_embeddings: bool = False  # tie_word_embeddings
    activation: Activation = "silu"  # hidden_act
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: PositiveFloat = 500000.0
    rope_type: RopeType = "llama3"
    rope_factor: PositiveFloat = 8.0  # factor

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_divisible("num_heads", "num_kv_heads")

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """119,104 parameters, for first steps: bytes as tokens."""
        sizes: dict[str, Any] = {
            "vocab_size": 256,
            "context_length": 128,
            "embedding_dim": 64,
            "num_layers": 2,
            "num_heads": 4,
            "num_kv_heads": 2,
            "head_dim": 16,
            "mlp_dim": 160,
            "rope_type": "default",
            "rope_theta": 10000.0,
            "rope_factor": 1.0,
        }
        return cls(**sizes | changes)

    @classmethod
    def llama1_7b(cls, **changes: Any) -> Self:
        """6,738,415,616 parameters."""
        return cls.llama2_7b(**{"context_length": 2048, "norm_eps": 1e-6} | changes)

    @classmethod
    def llama2_7b(cls, **changes: Any) -> Self:
        """6,738,415,616 parameters."""
        sizes: dict[str, Any] = {
            "vocab_size": 32000,
            "context_length": 4096,
            "num_kv_heads": 32,
            "mlp_dim": 11008,
            "rope_type": "default",
            "rope_theta": 10000.0,
            "rope_factor": 1.0,
        }
        return cls(**sizes | changes)

    @classmethod
    def llama2_13b(cls, **changes: Any) -> Self:
        """13,015,864,320 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 5120,
            "num_layers": 40,
            "num_heads": 40,
            "num_kv_heads": 40,
            "mlp_dim": 13824,
        }
        return cls.llama2_7b(**sizes | changes)

    @classmethod
    def llama2_70b(cls, **changes: Any) -> Self:
        """68,976,648,192 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 8192,
            "num_layers": 80,
            "num_heads": 64,
            "num_kv_heads": 8,
            "mlp_dim": 28672,
        }
        return cls.llama2_7b(**sizes | changes)

    @classmethod
    def llama3_1_8b(cls, **changes: Any) -> Self:
        """8,030,261,248 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def llama3_1_70b(cls, **changes: Any) -> Self:
        """70,553,706,496 parameters."""
        sizes: dict[str, Any] = {"embedding_dim": 8192, "num_layers": 80, "num_heads": 64, "mlp_dim": 28672}
        return cls(**sizes | changes)

    @classmethod
    def llama3_1_405b(cls, **changes: Any) -> Self:
        """405,853,388,800 parameters."""
        sizes: dict[str, Any] = {"embedding_dim": 16384, "num_layers": 126, "num_heads": 128, "mlp_dim": 53248}
        return cls(**sizes | changes)

    @classmethod
    def llama3_2_1b(cls, **changes: Any) -> Self:
        """1,235,814,400 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 2048,
            "num_layers": 16,
            "head_dim": 64,
            "mlp_dim": 8192,
            "tie_embeddings": True,
            "rope_factor": 32.0,
        }
        return cls(**sizes | changes)

    @classmethod
    def llama3_2_3b(cls, **changes: Any) -> Self:
        """3,212,749,824 parameters."""
        sizes: dict[str, Any] = {
            "embedding_dim": 3072,
            "num_layers": 28,
            "num_heads": 24,
            "mlp_dim": 8192,
            "tie_embeddings": True,
            "rope_factor": 32.0,
        }
        return cls(**sizes | changes)

    @property
    def rope_dim(self) -> int:
        """The numbers of a head that RoPE rotates: all."""
        return self.head_dim

    @cached_property
    def axes(self) -> dict[str, int]:
        """The sizes that the shape checks hold every tensor to."""
        return {
            "vocab": self.vocab_size,
            "embed": self.embedding_dim,
            "heads": self.num_heads,
            "kv_heads": self.num_kv_heads,
            "group": self.num_heads // self.num_kv_heads,
            "head_dim": self.head_dim,
            "pair": self.head_dim // 2,
            "component": 2,
            "mlp": self.mlp_dim,
        }


class RMSNorm(nn.Module):
    """Divide a vector by its root mean square, then scale it: a LayerNorm without mean and shift.

    Computed in float32 at least, and rounded before the learned gain.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    @checked
    def forward(self, x: Float[Tensor, "... _"]) -> Float[Tensor, "... _"]:
        """Normalise the last axis."""
        x32 = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = reduce(x32 * x32, "... width -> ... 1", "mean")
        normalised = x32 * torch.rsqrt(mean_square + self.eps)
        return self.weight * normalised.to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention (GQA) with RoPE: a group of query heads shares one key and value head.

    Sharing makes the KV cache smaller. With as many key heads as query heads it is multi-head attention.

    Source: Ainslie et al. 2023, "GQA", arXiv:2305.13245.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        q_dim, kv_dim = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.embedding_dim, q_dim, bias=config.attention_bias)
        self.key = nn.Linear(config.embedding_dim, kv_dim, bias=config.attention_bias)
        self.value = nn.Linear(config.embedding_dim, kv_dim, bias=config.attention_bias)
        self.output = nn.Linear(q_dim, config.embedding_dim, bias=config.attention_bias)
        self.weights_dropout = nn.Dropout(config.dropout)
        self.scale = config.head_dim**-0.5

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        cos: Float[Tensor, "seq pair"],
        sin: Float[Tensor, "seq pair"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Return, for each position, the weighted sum of the values that it attends to, projected.

        Args:
            x: the residual stream after the norm.
            cos: RoPE's cosine for each position and pair.
            sin: likewise the sine.
            mask: True where a query may attend to a key.
            cache: earlier positions' keys, rotated already, and values; this call's are appended. Without it, seq_k
                equals seq.
        """
        queries, keys, values = self.project(x)
        queries = apply_rope(queries, cos, sin)
        keys = apply_rope(keys, cos, sin)
        if cache is not None:
            keys, values = cache.append(keys, values)

        scores: Float[Tensor, "batch kv_heads group seq seq_k"] = self.score(queries, keys)
        # finfo.min, not -inf: a padding query that may attend to nothing gets uniform weights instead of NaN.
        grouped_mask = rearrange(mask, "batch 1 seq seq_k -> batch 1 1 seq seq_k")
        scores = torch.where(grouped_mask, scores, torch.finfo(scores.dtype).min)
        # Softmax adds up thousands of small numbers: in float32 at least.
        compute_dtype = torch.promote_types(scores.dtype, torch.float32)
        weights: Float[Tensor, "batch kv_heads group seq seq_k"] = F.softmax(scores, dim=-1, dtype=compute_dtype).to(
            x.dtype
        )
        weights = self.weights_dropout(weights)
        mixed: Float[Tensor, "batch kv_heads group seq head_dim"] = einsum(
            weights,
            values,
            "batch kv_heads group seq seq_k, batch kv_heads seq_k head_dim -> batch kv_heads group seq head_dim",
        )
        merged = rearrange(mixed, "batch kv_heads group seq head_dim -> batch seq (kv_heads group head_dim)")
        return self.output(merged)

    @checked
    def project(
        self, x: Float[Tensor, "batch seq embed"]
    ) -> tuple[
        Float[Tensor, "batch kv_heads group seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
    ]:
        """Queries, keys and values, split into heads; queries by the key head that they share."""
        sizes = {"kv_heads": self.config.num_kv_heads, "head_dim": self.config.head_dim}
        queries = rearrange(
            self.query(x), "batch seq (kv_heads group head_dim) -> batch kv_heads group seq head_dim", **sizes
        )
        keys = rearrange(self.key(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", **sizes)
        values = rearrange(self.value(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", **sizes)
        return queries, keys, values

    @checked
    def score(
        self,
        queries: Float[Tensor, "batch kv_heads group seq head_dim"],
        keys: Float[Tensor, "batch kv_heads seq_k head_dim"],
    ) -> Float[Tensor, "batch kv_heads group seq seq_k"]:
        """Scaled dot products of each query with the keys of its group."""
        return einsum(
            queries * self.scale,
            keys,
            "batch kv_heads group seq head_dim, batch kv_heads seq_k head_dim -> batch kv_heads group seq seq_k",
        )


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), applied to every position separately.

    Three matrices with mlp_dim = 2/3 of 4 * embedding_dim have as many parameters as the two of GPT-2's MLP, whose
    mlp_dim is 4 * embedding_dim.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202.
    """

    def __init__(self, embedding_dim: int, mlp_dim: int, *, bias: bool = False, activation: str = "silu") -> None:
        super().__init__()
        self.axes = {"embed": embedding_dim, "mlp": mlp_dim}
        self.gate = nn.Linear(embedding_dim, mlp_dim, bias=bias)
        self.up = nn.Linear(embedding_dim, mlp_dim, bias=bias)
        self.down = nn.Linear(mlp_dim, embedding_dim, bias=bias)
        self.activation = ACTIVATIONS[activation]

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Transform each position by itself."""
        gate: Float[Tensor, "batch seq mlp"] = self.activation(self.gate(x))
        activated: Float[Tensor, "batch seq mlp"] = gate * self.up(x)
        return self.down(activated)


class Block(nn.Module):
    """Attention, then MLP, each with pre-norm and a residual connection."""

    norm_class: type[nn.Module] = RMSNorm
    attention_class: type[nn.Module] = Attention

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = self.norm_class(config.embedding_dim, config.norm_eps)
        self.attention = self.attention_class(config)
        self.mlp_norm = self.norm_class(config.embedding_dim, config.norm_eps)
        self.mlp = self.make_mlp(layer)

    def make_mlp(self, layer: int) -> nn.Module:
        """The MLP of a layer. A model whose layers differ overrides this."""
        config = self.config
        return MLP(config.embedding_dim, config.mlp_dim, bias=config.mlp_bias, activation=config.activation)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        cos: Float[Tensor, "seq pair"],
        sin: Float[Tensor, "seq pair"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream. Arguments as for attention."""
        x_mid: Float[Tensor, "batch seq embed"] = x + self.attention(self.attention_norm(x), cos, sin, mask, cache)
        return x_mid + self.mlp(self.mlp_norm(x_mid))


class Llama(Decoder):
    """Token ids in, logits of the next token at every position out.

    `Decoder` adds `generate` and `from_pretrained`.

    >>> Llama(LlamaConfig.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: type[nn.Module] = Block
    norm_class: type[nn.Module] = RMSNorm

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.blocks = nn.ModuleList(self.block_class(config, layer) for layer in range(config.num_layers))
        self.final_norm = self.norm_class(config.embedding_dim, config.norm_eps)
        self.unembedding = nn.Linear(config.embedding_dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembedding.weight = self.token_embedding.weight
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights from a normal distribution with standard deviation 0.02; biases zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def layer_types(self) -> tuple[str, ...]:
        """The attention type of each layer; layers of one type share their mask and RoPE."""
        return ("full_attention",) * self.config.num_layers

    @checked
    def forward(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Return the logits of the next token at every position.

        Args:
            token_ids: the text; with a cache, only the tokens that follow those that it holds.
            cache: from `make_cache`; it grows by these tokens.

        Raises:
            ValueError: a token id is outside the vocabulary, or the cache is full.
        """
        return self.unembed(self.residual_stream(token_ids, cache))

    @checked
    def residual_stream(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """The residual stream (hidden states) after the last block. Arguments and errors as for `forward`."""
        check_token_ids(token_ids, self.config.vocab_size)
        x = self.embed(token_ids)
        layer_types = self.layer_types()
        rope = {layer_type: self.rope(token_ids, cache, layer_type) for layer_type in set(layer_types)}
        mask = {layer_type: self.mask(token_ids, cache, layer_type) for layer_type in set(layer_types)}
        for layer, block in enumerate(self.blocks):
            cos, sin = rope[layer_types[layer]]
            x = block(x, cos, sin, mask[layer_types[layer]], None if cache is None else cache.layers[layer])
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return x

    @checked
    def embed(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq embed"]:
        """Look up each token's embedding."""
        return self.token_embedding(token_ids)

    @checked
    def rope(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None, layer_type: str
    ) -> tuple[Float[Tensor, "seq pair"], Float[Tensor, "seq pair"]]:
        """RoPE's cosine and sine at each new position. Only distances count, so padding need not be subtracted."""
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + token_ids.shape[1], device=token_ids.device)
        dtype = self.token_embedding.weight.dtype
        cos, sin = rope_cos_sin(positions, self.inv_freq(layer_type, positions), self.attention_scaling(layer_type))
        return cos.to(dtype), sin.to(dtype)

    @checked
    def inv_freq(self, layer_type: str, positions: Int[Tensor, "seq"]) -> Float[Tensor, "pair"]:
        """RoPE's frequencies in layers of a type, in float32 at least."""
        return self.config.inv_freq(positions, torch.promote_types(self.token_embedding.weight.dtype, torch.float32))

    def attention_scaling(self, layer_type: str) -> float:
        """The factor on RoPE's cosine and sine in layers of a type."""
        return self.config.attention_scaling

    @checked
    def mask(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None, layer_type: str
    ) -> Bool[Tensor, "#batch 1 seq seq_k"]:
        """The attention mask, True where a query may attend to a key: not later, and not padding."""
        return causal_mask(self.positions(token_ids, cache), self.key_positions(token_ids, cache))

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """Final norm, then the unembedding (lm_head)."""
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.final_norm(x))
        return logits
