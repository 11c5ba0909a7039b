"""GPT-2: a stack of identical blocks that reads the text so far and predicts the token that comes next.

    token_ids   batch seq
        |  embed: each token's vector + each position's vector
        x       batch seq embed           the residual stream: every block reads it and adds to it
        |  num_layers x Block:  x = x + attention(norm(x)),  x = x + mlp(norm(x))
        x       batch seq embed
        |  unembed: norm, then compare with every token's vector
    logits      batch seq vocab           logits[b, s] scores what may follow token s

The file reads from top to bottom in the order that data flows: configuration, attention, MLP, block, model, and last
the tables that connect it with published checkpoints.

What GPT-2 changed from GPT-1: the norm moved from after each sub-layer to before it, one more norm before the
unembedding, residual projections that start smaller the deeper the model, a longer context, byte-level BPE tokens.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2); Radford et al. 2018,
"Improving Language Understanding by Generative Pre-Training" (GPT-1); Vaswani et al. 2017, "Attention Is All You
Need", arXiv:1706.03762.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.checkpoints.pretrained import Checkpointed
from allformers.checkpoints.tables import NOT_ARITHMETIC, Field, Format, Weight, each_layer, linear, norm
from allformers.generation.decoder import Generative
from allformers.nn.cache import Cache, LayerCache
from allformers.nn.config import Configuration, Count, Positive, Preset, Probability, one_of
from allformers.nn.linear import Linear
from allformers.nn.shapes import check_token_ids, checked

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "gelu_new": partial(F.gelu, approximate="tanh"),
        "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
        "gelu": F.gelu,
        "relu": F.relu,
        "silu": F.silu,
        "tanh": torch.tanh,
    }
)
"""The MLP's non-linearity, by the names that checkpoints use.

GPT-2's own, `gelu_new`, is the tanh approximation of GELU (Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2):
0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))). `gelu` is the exact one, x times the normal distribution function.
"""


def size(source: str, parameters: int, *, embed: int, layers: int, heads: int, **others: Any) -> Preset:
    """A row of the table of sizes, in all of which the MLP is four times as wide as the stream."""
    widths = {"embedding_dim": embed, "num_layers": layers, "num_heads": heads, "mlp_dim": 4 * embed}
    return Preset(source, parameters, **widths, **others)


WEB: Mapping[str, Any] = {"vocab_size": 50257, "context_length": 1024}
"""What the published sizes share: they were trained on text from the web."""


@dataclass(frozen=True, kw_only=True)
class GPT2Config(Configuration):
    """The sizes and switches that define a GPT-2. Immutable; checked when made.

    Attributes:
        vocab_size: tokens in the vocabulary.
        context_length: positions that the model has an embedding for; it can read no more at once.
        embedding_dim: width of the residual stream; a multiple of `num_heads`.
        num_layers: blocks.
        num_heads: attention heads in each block.
        mlp_dim: hidden width of the MLP; four times `embedding_dim` in every published GPT-2.
        dropout: probability of dropping a value, in training only: of the embeddings' sum, of the attention weights,
            and of what each sub-layer adds.
        norm_eps: what layer norm adds to the variance, so that it never divides by zero.
        tie_embeddings: whether the unembedding is the token embedding (one tensor) or a matrix of its own.
        activation: the MLP's non-linearity, a key of `ACTIVATIONS`.
        scale_scores: whether attention scores are divided by the square root of the head's width.
        scale_scores_by_layer: whether they are also divided by the layer's number, counted from 1. Stanford's
            checkpoints do this so that training in float16 does not overflow.
        float32_scores: whether scores and softmax are computed in float32 even if the model is in a smaller dtype.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    vocab_size: Count
    context_length: Count
    embedding_dim: Count
    num_layers: Count
    num_heads: Count
    mlp_dim: Count
    dropout: Probability = 0.1
    norm_eps: Positive = 1e-5
    tie_embeddings: bool = True
    activation: Annotated[str, one_of(ACTIVATIONS)] = "gelu_new"
    scale_scores: bool = True
    scale_scores_by_layer: bool = False
    float32_scores: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"embedding_dim {self.embedding_dim} does not divide into {self.num_heads} heads of equal width: "
                "make it a multiple of num_heads"
            )

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis that the configuration fixes."""
        return {
            "vocab": self.vocab_size,
            "context": self.context_length,
            "embed": self.embedding_dim,
            "heads": self.num_heads,
            "head_dim": self.embedding_dim // self.num_heads,
            "mlp": self.mlp_dim,
            "three": 3,
        }

    tiny = size("for first steps", 124_672, embed=64, layers=2, heads=4, vocab_size=256, context_length=128)
    bundled = size("in this package", 858_880, embed=128, layers=4, heads=4, vocab_size=256, context_length=256)
    gpt2_small = size("gpt2", 124_439_808, embed=768, layers=12, heads=12, **WEB)
    gpt2_medium = size("gpt2-medium", 354_823_168, embed=1024, layers=24, heads=16, **WEB)
    gpt2_large = size("gpt2-large", 774_030_080, embed=1280, layers=36, heads=20, **WEB)
    gpt2_xl = size("gpt2-xl", 1_557_611_200, embed=1600, layers=48, heads=25, **WEB)


class CausalSelfAttention(nn.Module):
    """The one place where positions exchange information: each looks back and takes what it needs.

    Every position makes a query (what it looks for), a key (what it can be found by) and a value (what it passes on).
    A query is compared with the keys of its own and all earlier positions; softmax turns the scores into weights; the
    weighted mean of the values is what the position receives. Several heads do this side by side, each in its own
    slice of the width, so that one position can look for several things at once.

    "Causal" is what makes a language model of it: no position sees a later one, so one pass over a text gives, at
    every position at once, a prediction that has not seen the answer.

    Source: arXiv:1706.03762, section 3.2; one matrix for query, key and value as in OpenAI's code.
    """

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.config = config
        self.query_key_value = Linear(config.embedding_dim, 3 * config.embedding_dim)
        self.output = Linear(config.embedding_dim, config.embedding_dim)
        self.weights_dropout = nn.Dropout(config.dropout)
        self.output_dropout = nn.Dropout(config.dropout)
        # A dot product of head_dim independent terms has a spread of sqrt(head_dim); divided by it, softmax stays soft.
        self.scale = 1 / math.sqrt(config.axes["head_dim"]) if config.scale_scores else 1.0
        if config.scale_scores_by_layer:
            self.scale /= layer + 1

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Let each position gather from itself and the positions before it.

        Args:
            x: the normalised residual stream.
            blocked: True where a query must not see a key. Without a cache `seq_k` equals `seq`.
            cache: the keys and values of earlier positions; this call's are appended.
        """
        queries: Float[Tensor, "batch heads seq head_dim"]
        keys: Float[Tensor, "batch heads seq_k head_dim"]
        values: Float[Tensor, "batch heads seq_k head_dim"]
        fused = self.query_key_value(x)
        queries, keys, values = rearrange(
            fused,
            "batch seq (three heads head_dim) -> three batch heads seq head_dim",
            three=3,
            heads=self.config.num_heads,
        )
        if cache is not None:
            keys, values = cache.append(keys, values)
        if self.config.float32_scores:
            dtype = torch.promote_types(x.dtype, torch.float32)
            queries, keys = queries.to(dtype), keys.to(dtype)

        scaled = queries * self.scale  # scaling the scores would take seq_k / head_dim times the work
        scores: Float[Tensor, "batch heads seq seq_k"] = einsum(
            scaled, keys, "batch heads seq_q head_dim, batch heads seq_k head_dim -> batch heads seq_q seq_k"
        )
        # The lowest finite number, not -inf: a row of padding that sees nothing then gets weights and not NaN.
        scores = torch.where(blocked, torch.finfo(scores.dtype).min, scores)
        weights: Float[Tensor, "batch heads seq seq_k"] = F.softmax(scores, dim=-1).to(values.dtype)
        weights = self.weights_dropout(weights)
        mixed: Float[Tensor, "batch heads seq head_dim"] = einsum(
            weights, values, "batch heads seq_q seq_k, batch heads seq_k head_dim -> batch heads seq_q head_dim"
        )
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        output = self.output(merged)
        return self.output_dropout(output)


class MLP(nn.Module):
    """What each position does with what it has gathered, alone: widen, apply a non-linearity, narrow again.

    The same small network at every position. Two thirds of a block's weights are here.

    Source: arXiv:1706.03762, section 3.3; GELU instead of ReLU since GPT-1.
    """

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.up = Linear(config.embedding_dim, config.mlp_dim)
        self.activation = ACTIVATIONS[config.activation]
        self.down = Linear(config.mlp_dim, config.embedding_dim)
        self.dropout = nn.Dropout(config.dropout)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Transform each position by itself."""
        widened = self.up(x)
        active: Float[Tensor, "batch seq mlp"] = self.activation(widened)
        narrowed = self.down(active)
        return self.dropout(narrowed)


class Block(nn.Module):
    """One layer: positions talk (attention), then each thinks (MLP), and both only ever add to the residual stream.

    The norms stand before the sub-layers ("pre-norm"), outside the stream itself. So there is a path of pure additions
    from the first layer to the last, along which gradients pass undamped: a deep model trains without long warm-up.

    Source: the GPT-2 paper, section 2.3.
    """

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.attention = CausalSelfAttention(config, layer)
        self.mlp_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.mlp = MLP(config)

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream what attention and then the MLP make of it. Arguments as for attention."""
        between: Float[Tensor, "batch seq embed"] = x + self.attention(self.attention_norm(x), blocked, cache)
        return between + self.mlp(self.mlp_norm(between))


class GPT2(Generative, Checkpointed):
    """The whole model: token ids in, for each position the logits of the token that comes next out.

    `from_pretrained`, `from_huggingface` and `save_pretrained` come from `Checkpointed`; `generate` and `stream` from
    `Generative`.

    >>> model = GPT2(GPT2Config.tiny())
    >>> token_ids = torch.tensor([[72, 101, 108, 108, 111]])
    >>> model(token_ids).shape
    torch.Size([1, 5, 256])
    """

    later: Tensor

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.position_embedding = nn.Embedding(config.context_length, config.embedding_dim)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.unembedding = Linear(config.embedding_dim, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.unembedding.weight = self.token_embedding.weight
        # Made once, for the longest text; any shorter one uses its corner. On the CPU even if the weights are on the
        # meta device, so that it never lacks values; `.to(device)` moves it along.
        later = torch.ones(config.context_length, config.context_length, dtype=torch.bool, device="cpu").triu(1)
        self.register_buffer("later", later, persistent=False)
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights as GPT-2's training did.

        Everything from a normal distribution of standard deviation 0.02; biases zero; norms the identity. The
        projections that add to the residual stream (two a layer) start smaller by sqrt(2 * num_layers), so that the
        stream's variance does not grow with depth. Source: the GPT-2 paper, section 2.3. (OpenAI's code draws
        positions with 0.01; like most that follow it, this does not.)
        """
        residual_std = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                is_residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
                nn.init.normal_(parameter, std=residual_std if is_residual else 0.02)

    @checked
    def forward(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq vocab"]:
        """Score, for every position, each token of the vocabulary as the next one.

        Args:
            token_ids: at most `context_length` tokens a row, counting those in the cache.
            cache: from `make_cache`. Then `token_ids` are only the new tokens, and the cache grows by them.

        Raises:
            ValueError: the text is longer than the context, or a token id is outside the vocabulary.
        """
        return self.unembed(self.read(token_ids, cache))

    @checked
    def read(self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None) -> Float[Tensor, "batch seq embed"]:
        """Run all blocks: the residual stream as the last one leaves it. Arguments and errors as for `forward`."""
        x = self.embed(token_ids, cache)
        blocked = self.mask(token_ids, cache)
        for layer, block in enumerate(self.blocks):
            x = block(x, blocked, None if cache is None else cache.layers[layer])
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return x

    @checked
    def embed(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Say what each token is and where it stands: the sum of two learned vectors.

        Attention by itself does not know order; without the second vector a text would be a bag of tokens.
        """
        start, stop = _span(token_ids, cache)
        if stop > self.config.context_length:
            raise ValueError(
                f"{stop} tokens are too many: this model's context_length is {self.config.context_length}. Shorten the "
                "text, or use `generate`, whose window slides"
            )
        check_token_ids(token_ids, self.config.vocab_size)
        tokens = self.token_embedding(token_ids)
        if cache is None:
            positions = self.position_embedding.weight[start:stop]
        else:
            positions = self.position_embedding(cache.positions(token_ids))
        return self.embedding_dropout(tokens + positions)

    @checked
    def mask(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> Bool[Tensor, "#batch 1 seq seq_k"]:
        """Which keys each query must not see: those of later positions, and padding.

        The rows of the new tokens, cut from the mask made for the longest text. Row and column count from the start
        of the text, so the same cut is right with a cache, where old positions have a key but no query any more.
        """
        start, stop = _span(token_ids, cache)
        blocked = rearrange(self.later[start:stop, :stop], "seq seq_k -> 1 1 seq seq_k")
        return blocked if cache is None else cache.block_padding(blocked)

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """Turn the residual stream into logits: how well it matches each token's vector."""
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.final_norm(x))
        return logits


@checked
def _span(token_ids: Int[Tensor, "batch seq"], cache: Cache | None) -> tuple[int, int]:
    """The first position of the new tokens, and the one after the last."""
    start = 0 if cache is None else cache.length
    return start, start + token_ids.shape[1]


GPT2.format = Format(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    config_class=GPT2Config,
    fields=(
        Field("vocab_size", "vocab_size", 50257),
        Field("n_positions", "context_length", 1024),
        Field("n_embd", "embedding_dim", 768),
        Field("n_layer", "num_layers", 12),
        Field("n_head", "num_heads", 12),
        Field("n_inner", "mlp_dim", lambda known: 4 * known["embedding_dim"]),
        Field("activation_function", "activation", "gelu_new"),
        Field("embd_pdrop", "dropout", 0.1),
        Field("attn_pdrop", "dropout", 0.1),
        Field("resid_pdrop", "dropout", 0.1),
        Field("layer_norm_epsilon", "norm_eps", 1e-5),
        Field("tie_word_embeddings", "tie_embeddings", True),
        Field("scale_attn_weights", "scale_scores", True),
        Field("scale_attn_by_inverse_layer_idx", "scale_scores_by_layer", False),
        Field("reorder_and_upcast_attn", "float32_scores", False),
    ),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    refused_fields={
        "add_cross_attention": (False, "GPT-2 reads one text and attends to nothing outside it"),
        "is_encoder_decoder": (False, "GPT-2 is a decoder alone"),
    },
    ignored_fields={
        **NOT_ARITHMETIC,
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
        # OpenAI's matrices are stored inputs by outputs, and Linear's the other way round.
        *each_layer(
            "h.{layer}",
            "blocks.{layer}",
            *norm("ln_1", "attention_norm"),
            *linear(
                "attn.c_attn",
                "attention.query_key_value",
                "embed (three heads head_dim) -> (three heads head_dim) embed",
            ),
            *linear("attn.c_proj", "attention.output", "(heads head_dim) embed -> embed (heads head_dim)"),
            *norm("ln_2", "mlp_norm"),
            *linear("mlp.c_fc", "mlp.up", "embed mlp -> mlp embed"),
            *linear("mlp.c_proj", "mlp.down", "mlp embed -> embed mlp"),
        ),
        *norm("ln_f", "final_norm"),
        Weight("lm_head.weight", "unembedding.weight", "vocab embed", tied_to="token_embedding.weight"),
    ),
    ignored_weights={
        "h.{layer}.attn.bias": "the causal mask, which older files carry; here it is made, not stored",
        "h.{layer}.attn.masked_bias": "the number that stood for minus infinity in older files",
    },
    prefix="transformer.",
    # The reference takes token 50256 for the end of a text unless it is told that there is none.
    written=lambda config: {} if config.vocab_size > 50256 else {"bos_token_id": None, "eos_token_id": None},
)
"""How GPT-2's checkpoints name and lay out what is above."""
