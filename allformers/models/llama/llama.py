"""Llama: the block that nearly every open model since has kept.

    token_ids   batch seq
        |  embed: each token's vector; where it stands is said later, by turning queries and keys
        x       batch seq embed           the residual stream
        |  num_layers x Block:  x = x + attention(norm(x)),  x = x + mlp(norm(x))
        x       batch seq embed
        |  unembed: norm, then score every token
    logits      batch seq vocab

What it changed from GPT-2: root-mean-square norms without a shift, rotary positions instead of learned ones, a gated
MLP (SwiGLU), no biases, an unembedding of its own. Llama 2's largest model and all of Llama 3 let several query heads
share a key and value head; Llama 3.1 slows some rotations down for longer texts.

The file reads from top to bottom in the order that data flows. Its parts have seams, small methods and class
attributes, where later models put in what they do differently.

Sources: Touvron et al. 2023, "LLaMA", arXiv:2302.13971, and "Llama 2", arXiv:2307.09288; Dubey et al. 2024, "The
Llama 3 Herd of Models", arXiv:2407.21783.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.checkpoints.pretrained import Checkpointed
from allformers.checkpoints.tables import NOT_ARITHMETIC, Field, Format, Weight, each_layer, linear
from allformers.generation.decoder import Generative
from allformers.models.gpt2.gpt2 import ACTIVATIONS
from allformers.nn.cache import Cache, LayerCache
from allformers.nn.config import Count, EvenCount, Positive, Preset, Probability, one_of
from allformers.nn.linear import Linear
from allformers.nn.rope import Rotations, angles, rotate, turns
from allformers.nn.shapes import check_token_ids, checked

SIZES = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "embedding_dim", "mlp_dim")


def size(source: str, parameters: int, *sizes: int, **others: Any) -> Preset:
    """A row of the table of sizes: the six that every model of this family states, then whatever else is not usual."""
    return Preset(source, parameters, **dict(zip(SIZES, sizes, strict=True)), **others)


TINY: Mapping[str, Any] = {"vocab_size": 256, "context_length": 128}
SMOLLM2: Mapping[str, Any] = {"vocab_size": 49152, "context_length": 8192, "tie_embeddings": True}
LLAMA: Mapping[str, Any] = {"vocab_size": 32000, "context_length": 2048}
LLAMA2: Mapping[str, Any] = {"vocab_size": 32000, "context_length": 4096}
LLAMA3: Mapping[str, Any] = {"vocab_size": 128256, "context_length": 131072, "rope_theta": 5e5, "rope_type": "llama3"}
LLAMA3_1: Mapping[str, Any] = {**LLAMA3, "rope_factor": 8.0}
LLAMA3_2: Mapping[str, Any] = {**LLAMA3, "rope_factor": 32.0, "tie_embeddings": True}
"""What the published sizes of one generation share."""


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(Rotations):
    """The sizes and switches that define a Llama, and how it turns queries and keys. Immutable; checked when made.

    Attributes:
        vocab_size: tokens in the vocabulary.
        context_length: positions that it was trained to read; rotary positions would go on, less and less well.
        embedding_dim: width of the residual stream.
        num_layers: blocks.
        num_heads: query heads in each block.
        num_kv_heads: key and value heads; each serves as many query heads, so it divides `num_heads`.
        head_dim: width of a head, an even number; not tied to `embedding_dim`.
        mlp_dim: hidden width of the MLP.
        dropout: probability of dropping an attention weight, in training only.
        norm_eps: what the norms add to the mean square, so that they never divide by zero.
        tie_embeddings: whether the unembedding is the token embedding.
        activation: the MLP's non-linearity, a key of `ACTIVATIONS`.
        attention_bias: whether the four projections of attention have biases.
        mlp_bias: whether the three of the MLP do.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    vocab_size: Count
    context_length: Count
    embedding_dim: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: EvenCount
    mlp_dim: Count
    dropout: Probability = 0.0
    norm_eps: Positive = 1e-5
    tie_embeddings: bool = False
    activation: Annotated[str, one_of(ACTIVATIONS)] = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.divides("num_heads", "num_kv_heads")

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis that the configuration fixes."""
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

    # In the order of `SIZES`: layers, heads, key heads, width of a head, of the stream, of the MLP.
    llama_tiny = size("for first steps", 119_104, 2, 4, 2, 16, 64, 160, **TINY)
    stories_15m = size(
        "llama2.c", 15_191_712, 6, 6, 6, 48, 288, 768, vocab_size=32000, context_length=256, tie_embeddings=True
    )
    smollm2_135m = size("HuggingFaceTB/SmolLM2-135M", 134_515_008, 30, 9, 3, 64, 576, 1536, **SMOLLM2, rope_theta=1e5)
    smollm2_360m = size("HuggingFaceTB/SmolLM2-360M", 361_821_120, 32, 15, 5, 64, 960, 2560, **SMOLLM2, rope_theta=1e5)
    smollm2_1_7b = size(
        "HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384, 24, 32, 32, 64, 2048, 8192, **SMOLLM2, rope_theta=1.3e5
    )
    tinyllama = size("TinyLlama/TinyLlama_v1.1", 1_100_048_384, 22, 32, 4, 64, 2048, 5632, **LLAMA)
    llama1_7b = size("LLaMA", 6_738_415_616, 32, 32, 32, 128, 4096, 11008, **LLAMA, norm_eps=1e-6)
    llama2_7b = size("meta-llama/Llama-2-7b-hf", 6_738_415_616, 32, 32, 32, 128, 4096, 11008, **LLAMA2)
    llama2_13b = size("meta-llama/Llama-2-13b-hf", 13_015_864_320, 40, 40, 40, 128, 5120, 13824, **LLAMA2)
    llama2_70b = size("meta-llama/Llama-2-70b-hf", 68_976_648_192, 80, 64, 8, 128, 8192, 28672, **LLAMA2)
    llama3_2_1b = size("meta-llama/Llama-3.2-1B", 1_235_814_400, 16, 32, 8, 64, 2048, 8192, **LLAMA3_2)
    llama3_2_3b = size("meta-llama/Llama-3.2-3B", 3_212_749_824, 28, 24, 8, 128, 3072, 8192, **LLAMA3_2)
    llama3_1_8b = size("meta-llama/Llama-3.1-8B", 8_030_261_248, 32, 32, 8, 128, 4096, 14336, **LLAMA3_1)
    llama3_1_70b = size("meta-llama/Llama-3.1-70B", 70_553_706_496, 80, 64, 8, 128, 8192, 28672, **LLAMA3_1)
    llama3_1_405b = size("meta-llama/Llama-3.1-405B", 405_853_388_800, 126, 128, 8, 128, 16384, 53248, **LLAMA3_1)


class RMSNorm(nn.Module):
    """Bring a vector to a length that the next layer can rely on: divide by its root mean square, then scale.

    A layer norm without its mean and its shift. Computed in float32 at least, and rounded before the learned gain.

    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    @checked
    def forward(self, x: Float[Tensor, "... _"]) -> Float[Tensor, "... _"]:
        """Normalise the last axis."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = reduce(wide * wide, "... width -> ... 1", "mean")
        normalised = wide * torch.rsqrt(mean_square + self.eps)
        return self.weight * normalised.to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions, in which several query heads may share a key and value head.

    Shared heads make the cache smaller by as much as they are shared, and that is what they are for: the queries of a
    group look at the same keys, each in its own way.

    The seams for later models: `project`, `score`, and the slots that it builds its layers from.

    Source: Ainslie et al. 2023, "GQA", arXiv:2305.13245; rotary positions arXiv:2104.09864.
    """

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config = config
        embed, bias = config.embedding_dim, config.attention_bias
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = Linear(embed, queries, bias=bias)
        self.key = Linear(embed, keys, bias=bias)
        self.value = Linear(embed, keys, bias=bias)
        self.output = Linear(queries, embed, bias=bias)
        self.weights_dropout = nn.Dropout(config.dropout)
        self.scale = config.head_dim**-0.5 * config.sharpening

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        turned: Float[Tensor, "part seq component pair"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Let each position gather from itself and the positions before it.

        Args:
            x: the normalised residual stream.
            turned: how to turn the queries and keys of each position.
            blocked: True where a query must not see a key. Without a cache `seq_k` equals `seq`.
            cache: the keys, turned already, and values of earlier positions; this call's are appended.
        """
        queries: Float[Tensor, "batch heads seq head_dim"]
        keys: Float[Tensor, "batch kv_heads seq_k head_dim"]
        values: Float[Tensor, "batch kv_heads seq_k head_dim"]
        queries, keys, values = self.project(x)
        queries, keys = rotate(queries, turned), rotate(keys, turned)
        if cache is not None:
            keys, values = cache.append(keys, values)
        scores: Float[Tensor, "batch heads seq seq_k"] = self.score(queries, keys)
        # The lowest finite number, not -inf: a row of padding that sees nothing then gets weights and not NaN.
        scores = torch.where(blocked, torch.finfo(scores.dtype).min, scores)
        wide = torch.promote_types(scores.dtype, torch.float32)  # thousands of small numbers are added up
        weights: Float[Tensor, "batch heads seq seq_k"] = F.softmax(scores, dim=-1, dtype=wide).to(values.dtype)
        weights = self.weights_dropout(weights)
        grouped = rearrange(
            weights, "batch (kv_heads group) seq seq_k -> batch kv_heads group seq seq_k", kv_heads=values.shape[1]
        )
        means = einsum(
            grouped,
            values,
            "batch kv_heads group seq seq_k, batch kv_heads seq_k head_dim -> batch kv_heads group seq head_dim",
        )
        mixed: Float[Tensor, "batch heads seq head_dim"] = rearrange(
            means, "batch kv_heads group seq head_dim -> batch (kv_heads group) seq head_dim"
        )
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.output(merged)

    @checked
    def project(
        self, x: Float[Tensor, "batch seq embed"]
    ) -> tuple[
        Float[Tensor, "batch heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
        Float[Tensor, "batch kv_heads seq head_dim"],
    ]:
        """Make queries, keys and values, split into heads."""
        width = self.config.head_dim
        queries = rearrange(self.query(x), "batch seq (heads head_dim) -> batch heads seq head_dim", head_dim=width)
        keys = rearrange(self.key(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", head_dim=width)
        values = rearrange(
            self.value(x), "batch seq (kv_heads head_dim) -> batch kv_heads seq head_dim", head_dim=width
        )
        return queries, keys, values

    @checked
    def score(
        self,
        queries: Float[Tensor, "batch heads seq head_dim"],
        keys: Float[Tensor, "batch kv_heads seq_k head_dim"],
    ) -> Float[Tensor, "batch heads seq seq_k"]:
        """Compare each query with the keys of its group, scaled so that softmax stays soft."""
        grouped = rearrange(
            queries * self.scale,
            "batch (kv_heads group) seq head_dim -> batch kv_heads group seq head_dim",
            kv_heads=keys.shape[1],
        )
        scores = einsum(
            grouped,
            keys,
            "batch kv_heads group seq_q head_dim, batch kv_heads seq_k head_dim -> batch kv_heads group seq_q seq_k",
        )
        return rearrange(scores, "batch kv_heads group seq_q seq_k -> batch (kv_heads group) seq_q seq_k")


class MLP(nn.Module):
    """Widen twice, let one widening gate the other, narrow: each position by itself.

    The gate decides, number by number, how much of what has been found passes on. With three matrices instead of two, a
    width of two thirds makes it as large as GPT-2's.

    Source: Shazeer 2020, "GLU Variants Improve Transformer" (SwiGLU), arXiv:2002.05202.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.gate = Linear(config.embedding_dim, config.mlp_dim, bias=config.mlp_bias)
        self.up = Linear(config.embedding_dim, config.mlp_dim, bias=config.mlp_bias)
        self.down = Linear(config.mlp_dim, config.embedding_dim, bias=config.mlp_bias)
        self.activation = ACTIVATIONS[config.activation]

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Transform each position by itself."""
        opened = self.activation(self.gate(x))
        active: Float[Tensor, "batch seq mlp"] = opened * self.up(x)
        return self.down(active)


class Block(nn.Module):
    """One layer: attention, then the MLP, each behind a norm, each only ever adding to the residual stream."""

    attention_class: ClassVar[type[Any]] = Attention
    mlp_class: ClassVar[type[Any]] = MLP
    norm_class: ClassVar[type[Any]] = RMSNorm

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = self.norm_class(config.embedding_dim, config.norm_eps)
        self.attention = self.attention_class(config, layer)
        self.mlp_norm = self.norm_class(config.embedding_dim, config.norm_eps)
        self.mlp = self.make_mlp(config, layer)

    def make_mlp(self, config: Any, layer: int) -> nn.Module:
        """The part after attention; the same in all layers here."""
        return self.mlp_class(config)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        turned: Float[Tensor, "part seq component pair"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream what attention and then the MLP make of it. Arguments as for attention."""
        between: Float[Tensor, "batch seq embed"] = x + self.attention(self.attention_norm(x), turned, blocked, cache)
        return between + self.mlp(self.mlp_norm(between))


class Llama(Generative, Checkpointed):
    """The whole model: token ids in, for each position the logits of the token that comes next out.

    The seams for later models: `embed`, `turn`, `mask`, `unembed`, `kinds` (layers that differ in what they see), and
    `block_class`.

    >>> model = Llama(LlamaConfig.llama_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = Block

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.blocks = nn.ModuleList(self.block_class(config, layer) for layer in range(config.num_layers))
        self.final_norm = self.block_class.norm_class(config.embedding_dim, config.norm_eps)
        self.unembedding = Linear(config.embedding_dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembedding.weight = self.token_embedding.weight
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights: everything small, biases at zero. Loading a checkpoint replaces them."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def kinds(self) -> tuple[str, ...]:
        """For each layer, its kind: layers of one kind see the same positions and turn at the same speeds."""
        return ("full",) * self.config.num_layers

    @checked
    def forward(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Score, at each position, every token as the next one.

        Args:
            token_ids: the text; with a cache, only what follows the text that it holds.
            cache: the memory of earlier positions, which grows by these.
        """
        return self.unembed(self.read(token_ids, cache))

    @checked
    def read(self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None) -> Float[Tensor, "batch seq embed"]:
        """Run all blocks, and leave out the scores."""
        check_token_ids(token_ids, self.config.vocab_size)
        x: Float[Tensor, "batch seq embed"] = self.embed(token_ids)
        turned = {kind: self.turn(token_ids, cache, kind) for kind in set(self.kinds)}
        blocked = {kind: self.mask(token_ids, cache, kind) for kind in set(self.kinds)}
        layers = [None] * len(self.blocks) if cache is None else cache.layers
        for block, kind, layer in zip(self.blocks, self.kinds, layers, strict=True):
            x = block(x, turned[kind], blocked[kind], layer)
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return x

    @checked
    def embed(self, token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq embed"]:
        """Look up each token's vector."""
        return self.token_embedding(token_ids)

    @checked
    def turn(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None, kind: str
    ) -> Float[Tensor, "part seq component pair"]:
        """How to turn at each new position: the same for all rows, since only distances count."""
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + token_ids.shape[1], device=token_ids.device)
        return turns(angles(positions, self.speeds(kind, token_ids.device))).to(self.token_embedding.weight.dtype)

    def speeds(self, kind: str, device: torch.device) -> Tensor:
        """How fast each pair turns, in float32 at least, whatever the weights are in."""
        dtype = torch.promote_types(self.token_embedding.weight.dtype, torch.float32)
        return self.config.speeds(self.config.axes["pair"], device, dtype)

    @checked
    def mask(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None, kind: str
    ) -> Bool[Tensor, "#batch 1 seq seq_k"]:
        """Which keys each query must not see: those of later positions, and padding."""
        start = 0 if cache is None else cache.length
        places = torch.arange(start + token_ids.shape[1], device=token_ids.device)
        queries, keys = rearrange(places[start:], "seq -> seq 1"), rearrange(places, "seq_k -> 1 seq_k")
        blocked = rearrange(self.hide(queries, keys, kind), "seq seq_k -> 1 1 seq seq_k")
        return blocked if cache is None else cache.block_padding(blocked)

    @checked
    def hide(self, queries: Int[Tensor, "seq 1"], keys: Int[Tensor, "1 seq_k"], kind: str) -> Bool[Tensor, "seq seq_k"]:
        """Whether a query at one place must not see a key at another: if the key stands later."""
        return keys > queries

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """Turn the residual stream into logits."""
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.final_norm(x))
        return logits


SCALED = ("rope_type", "linear", "llama3", "yarn")
EXTENDED = ("rope_type", "llama3", "yarn")

Llama.format = Format(
    model_type="llama",
    architecture="LlamaForCausalLM",
    config_class=LlamaConfig,
    fields=(
        Field("vocab_size", "vocab_size", 32000),
        Field("max_position_embeddings", "context_length", 2048),
        Field("hidden_size", "embedding_dim", 4096),
        Field("num_hidden_layers", "num_layers", 32),
        Field("num_attention_heads", "num_heads", 32),
        Field("num_key_value_heads", "num_kv_heads", lambda known: known["num_heads"]),
        Field("head_dim", "head_dim", lambda known: known["embedding_dim"] // known["num_heads"]),
        Field("intermediate_size", "mlp_dim", 11008),
        Field("attention_dropout", "dropout", 0.0),
        Field("rms_norm_eps", "norm_eps", 1e-6),
        Field("tie_word_embeddings", "tie_embeddings", False),
        Field("hidden_act", "activation", "silu"),
        Field("attention_bias", "attention_bias", False),
        Field("mlp_bias", "mlp_bias", False),
        Field("rope_parameters.rope_theta", "rope_theta", 10000.0),
        Field("rope_parameters.rope_type", "rope_type", "default"),
        Field("rope_parameters.factor", "rope_factor", 1.0, SCALED),
        Field("rope_parameters.original_max_position_embeddings", "rope_context", 8192, EXTENDED),
        Field("rope_parameters.low_freq_factor", "rope_low_frequency_factor", 1.0, ("rope_type", "llama3")),
        Field("rope_parameters.high_freq_factor", "rope_high_frequency_factor", 4.0, ("rope_type", "llama3")),
        Field("rope_parameters.beta_fast", "rope_fast", 32.0, ("rope_type", "yarn")),
        Field("rope_parameters.beta_slow", "rope_slow", 1.0, ("rope_type", "yarn")),
    ),
    aliases={  # how files from before transformers 5 say it
        "rope_theta": "rope_parameters.rope_theta",
        "rope_scaling": "rope_parameters",
        "rope_parameters.type": "rope_parameters.rope_type",
    },
    refused_fields={
        "is_encoder_decoder": (False, "this is a decoder alone"),
        "rope_parameters.attention_factor": (None, "how far scores are sharpened follows from the factor"),
        "rope_parameters.mscale": (None, "likewise"),
        "rope_parameters.mscale_all_dim": (None, "likewise"),
    },
    ignored_fields={**NOT_ARITHMETIC, "pretraining_tp": "how the training was split among machines"},
    weights=(
        Weight("embed_tokens.weight", "token_embedding.weight", "vocab embed"),
        *each_layer(
            "layers.{layer}",
            "blocks.{layer}",
            Weight("input_layernorm.weight", "attention_norm.weight", "embed"),
            *linear("self_attn.q_proj", "attention.query", "(heads head_dim) embed"),
            *linear("self_attn.k_proj", "attention.key", "(kv_heads head_dim) embed"),
            *linear("self_attn.v_proj", "attention.value", "(kv_heads head_dim) embed"),
            *linear("self_attn.o_proj", "attention.output", "embed (heads head_dim)"),
            Weight("post_attention_layernorm.weight", "mlp_norm.weight", "embed"),
            *linear("mlp.gate_proj", "mlp.gate", "mlp embed"),
            *linear("mlp.up_proj", "mlp.up", "mlp embed"),
            *linear("mlp.down_proj", "mlp.down", "embed mlp"),
        ),
        Weight("norm.weight", "final_norm.weight", "embed"),
        Weight("lm_head.weight", "unembedding.weight", "vocab embed", tied_to="token_embedding.weight"),
    ),
    ignored_weights={"layers.{layer}.self_attn.rotary_emb.inv_freq": "the rotary frequencies, which are computed"},
    prefix="model.",
)
"""How Llama's checkpoints name and lay out what is above."""
