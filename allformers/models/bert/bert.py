"""BERT: a transformer that reads in both directions and fills in what is missing.

    token_ids   batch seq                 some of them replaced by a token that says: missing
        |  embed: token + position + segment, then a norm
        x       batch seq embed           every position sees every other, before and behind
        |  num_layers x Block:  x = norm(x + attention(x)),  x = norm(x + mlp(x))
        x       batch seq embed
        |  unembed: one more layer, then compare with every token's vector
    logits      batch seq vocab           logits[b, s] scores what token s is, not what follows it

What it does differently from GPT-2: no mask, so that a position knows what comes behind it, and the model cannot write;
the norms stand after each addition, as in the original transformer; a text may have two segments, and an embedding says
which; queries, keys and values have matrices of their own; the activation is the exact GELU.

Source: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
arXiv:1810.04805.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.checkpoints.pretrained import Checkpointed
from allformers.checkpoints.tables import NOT_ARITHMETIC, Field, Format, Weight, each_layer, linear, norm
from allformers.models.gpt2.gpt2 import ACTIVATIONS, MLP, size
from allformers.nn.config import Configuration, Count, Positive, Probability, one_of
from allformers.nn.linear import Linear
from allformers.nn.shapes import check_token_ids, checked

WORDS: Mapping[str, Any] = {"vocab_size": 30522, "context_length": 512}
BYTES: Mapping[str, Any] = {"vocab_size": 256, "context_length": 128}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Configuration):
    """The sizes of the blocks, whatever it is that they read: a part of a model's configuration.

    Attributes:
        embedding_dim: width of the residual stream; a multiple of `num_heads`.
        num_layers: blocks.
        num_heads: attention heads in each block.
        mlp_dim: hidden width of the MLP.
        dropout: probability of dropping a value, in training only.
        norm_eps: what layer norm adds to the variance.
        activation: the non-linearity, a key of `ACTIVATIONS`.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    embedding_dim: Count
    num_layers: Count
    num_heads: Count
    mlp_dim: Count
    dropout: Probability = 0.1
    norm_eps: Positive = 1e-12
    activation: Annotated[str, one_of(ACTIVATIONS)] = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.divides("embedding_dim", "num_heads")

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis that the configuration fixes."""
        head_dim = self.embedding_dim // self.num_heads
        return {"embed": self.embedding_dim, "heads": self.num_heads, "head_dim": head_dim, "mlp": self.mlp_dim}


@dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """The sizes and switches that define a BERT. Immutable; checked when made.

    Attributes:
        vocab_size: tokens in the vocabulary.
        context_length: positions that the model has an embedding for.
        num_segments: parts of a text that an embedding tells apart.
        tie_embeddings: whether the unembedding's matrix is the token embedding.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    vocab_size: Count
    context_length: Count
    num_segments: Count = 2
    tie_embeddings: bool = True

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis that the configuration fixes."""
        own = {"vocab": self.vocab_size, "context": self.context_length, "segments": self.num_segments}
        return {**super().axes, **own, "rewritten": self.embedding_dim}

    bert_tests = size("for first steps", 129_344, embed=64, layers=2, heads=4, **BYTES)
    bert_tiny = size("google/bert_uncased_L-2_H-128_A-2", 4_416_698, embed=128, layers=2, heads=2, **WORDS)
    bert_base = size("bert-base-uncased", 109_514_298, embed=768, layers=12, heads=12, **WORDS)
    bert_large = size("bert-large-uncased", 335_174_458, embed=1024, layers=24, heads=16, **WORDS)


class SelfAttention(nn.Module):
    """Each position gathers from all others, before and behind it.

    The same as GPT-2's but for the mask, and three matrices where GPT-2 has one.

    Source: arXiv:1706.03762, section 3.2.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.query = Linear(config.embedding_dim, config.embedding_dim)
        self.key = Linear(config.embedding_dim, config.embedding_dim)
        self.value = Linear(config.embedding_dim, config.embedding_dim)
        self.output = Linear(config.embedding_dim, config.embedding_dim)
        self.weights_dropout = nn.Dropout(config.dropout)
        self.output_dropout = nn.Dropout(config.dropout)
        self.scale = (config.embedding_dim // config.num_heads) ** -0.5

    @checked
    def forward(
        self, x: Float[Tensor, "batch seq embed"], blocked: Bool[Tensor, "batch 1 1 seq_k"] | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Let each position gather.

        Args:
            x: the residual stream.
            blocked: True for keys that no query must see: padding.
        """
        heads = self.config.num_heads
        queries: Float[Tensor, "batch heads seq head_dim"] = rearrange(
            self.query(x), "batch seq (heads head_dim) -> batch heads seq head_dim", heads=heads
        )
        keys: Float[Tensor, "batch heads seq_k head_dim"] = rearrange(
            self.key(x), "batch seq_k (heads head_dim) -> batch heads seq_k head_dim", heads=heads
        )
        values: Float[Tensor, "batch heads seq_k head_dim"] = rearrange(
            self.value(x), "batch seq_k (heads head_dim) -> batch heads seq_k head_dim", heads=heads
        )
        scaled = queries * self.scale
        scores: Float[Tensor, "batch heads seq seq_k"] = einsum(
            scaled, keys, "batch heads seq_q head_dim, batch heads seq_k head_dim -> batch heads seq_q seq_k"
        )
        if blocked is not None:
            scores = torch.where(blocked, torch.finfo(scores.dtype).min, scores)
        weights: Float[Tensor, "batch heads seq seq_k"] = F.softmax(scores, dim=-1)
        weights = self.weights_dropout(weights)
        mixed: Float[Tensor, "batch heads seq head_dim"] = einsum(
            weights, values, "batch heads seq_q seq_k, batch heads seq_k head_dim -> batch heads seq_q head_dim"
        )
        merged = rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)")
        return self.output_dropout(self.output(merged))


class Block(nn.Module):
    """One layer: attention, then the MLP, each followed by a norm of the stream itself ("post-norm").

    Source: arXiv:1706.03762, section 3.1.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.mlp_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)

    @checked
    def forward(
        self, x: Float[Tensor, "batch seq embed"], blocked: Bool[Tensor, "batch 1 1 seq_k"] | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the stream what attention and then the MLP make of it, and normalise it after each."""
        between: Float[Tensor, "batch seq embed"] = self.attention_norm(x + self.attention(x, blocked))
        return self.mlp_norm(between + self.mlp(between))


class Bert(Checkpointed):
    """The whole model, with the head that fills in missing tokens.

    >>> model = Bert(BertConfig.bert_tests()).eval()
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
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
        self.head = Linear(config.embedding_dim, config.embedding_dim)
        self.head_norm = nn.LayerNorm(config.embedding_dim, eps=config.norm_eps)
        self.unembedding = Linear(config.embedding_dim, config.vocab_size)
        if config.tie_embeddings:
            self.unembedding.weight = self.token_embedding.weight
        self.initialise()

    def initialise(self) -> None:
        """Draw fresh weights: everything small, biases at zero. Loading a checkpoint replaces them."""
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
    ) -> Float[Tensor, "batch seq vocab"]:
        """Score, at each position, every token as the one that stands there.

        Args:
            token_ids: the text.
            segments: which part of the text each token belongs to; the first if None.
            lengths: for texts of different lengths, filled up behind: how many tokens of each count.
        """
        return self.unembed(self.read(token_ids, segments, lengths))

    @checked
    def read(
        self,
        token_ids: Int[Tensor, "batch seq"],
        segments: Int[Tensor, "batch seq"] | None = None,
        lengths: Int[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Run all blocks, and leave out the scores: what the text means, position by position."""
        check_token_ids(token_ids, self.config.vocab_size)
        x: Float[Tensor, "batch seq embed"] = self.embed(token_ids, segments)
        blocked = None if lengths is None else self.mask(token_ids, lengths)
        for block in self.blocks:
            x = block(x, blocked)
        return x

    @checked
    def embed(
        self, token_ids: Int[Tensor, "batch seq"], segments: Int[Tensor, "batch seq"] | None = None
    ) -> Float[Tensor, "batch seq embed"]:
        """What each token is, where it stands, and in which part of the text.

        Raises:
            ValueError: the text is longer than the model's context.
        """
        if token_ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"{token_ids.shape[1]} tokens are too many: this model's context_length is {self.config.context_length}"
            )
        tokens = self.token_embedding(token_ids)
        positions = self.position_embedding.weight[: token_ids.shape[1]]
        parts = self.segment_embedding(torch.zeros_like(token_ids) if segments is None else segments)
        return self.embedding_dropout(self.embedding_norm(tokens + parts + positions))

    @checked
    def mask(self, token_ids: Int[Tensor, "batch seq"], lengths: Int[Tensor, "batch"]) -> Bool[Tensor, "batch 1 1 seq"]:
        """Which positions no query must see: what was filled up."""
        places = torch.arange(token_ids.shape[1], device=token_ids.device)
        filled = rearrange(places, "seq -> 1 seq") >= rearrange(lengths, "batch -> batch 1")
        return rearrange(filled, "batch seq -> batch 1 1 seq")

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """One more layer, then compare with every token's vector."""
        bent = ACTIVATIONS[self.config.activation](self.head(x))
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.head_norm(bent))
        return logits


ENCODER_FIELDS = (
    Field("hidden_size", "embedding_dim", 768),
    Field("num_hidden_layers", "num_layers", 12),
    Field("num_attention_heads", "num_heads", 12),
    Field("intermediate_size", "mlp_dim", 3072),
    Field("layer_norm_eps", "norm_eps", 1e-12),
    Field("hidden_act", "activation", "gelu"),
)

Bert.format = Format(
    model_type="bert",
    architecture="BertForMaskedLM",
    config_class=BertConfig,
    fields=(
        Field("vocab_size", "vocab_size", 30522),
        Field("max_position_embeddings", "context_length", 512),
        Field("type_vocab_size", "num_segments", 2),
        Field("hidden_dropout_prob", "dropout", 0.1),
        Field("attention_probs_dropout_prob", "dropout", 0.1),
        *ENCODER_FIELDS,
    ),
    aliases={},
    refused_fields={
        "tie_word_embeddings": (True, "released checkpoints have one matrix for both"),
        "is_decoder": (False, "BERT sees in both directions"),
        "add_cross_attention": (False, "BERT reads one text and attends to nothing outside it"),
        "is_encoder_decoder": (False, "BERT is an encoder alone"),
        "position_embedding_type": ("absolute", "released checkpoints have a vector for each position"),
    },
    ignored_fields={
        **NOT_ARITHMETIC,
        "classifier_dropout": "for classification heads",
        "pooler_fc_size": "for another program's pooling",
        "pooler_num_attention_heads": "for another program's pooling",
        "pooler_num_fc_layers": "for another program's pooling",
        "pooler_size_per_head": "for another program's pooling",
        "pooler_type": "for another program's pooling",
        "directionality": "both, always",
    },
    weights=(
        Weight("bert.embeddings.word_embeddings.weight", "token_embedding.weight", "vocab embed"),
        Weight("bert.embeddings.position_embeddings.weight", "position_embedding.weight", "context embed"),
        Weight("bert.embeddings.token_type_embeddings.weight", "segment_embedding.weight", "segments embed"),
        *norm("bert.embeddings.LayerNorm", "embedding_norm"),
        *each_layer(
            "bert.encoder.layer.{layer}",
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
        *linear("cls.predictions.transform.dense", "head", "rewritten embed"),
        *norm("cls.predictions.transform.LayerNorm", "head_norm", "rewritten"),
        Weight("cls.predictions.bias", "unembedding.bias", "vocab"),
        Weight("cls.predictions.decoder.weight", "unembedding.weight", "vocab embed", tied_to="token_embedding.weight"),
    ),
    ignored_weights={
        "bert.embeddings.position_ids": "the numbers 0, 1, 2 ..., which older files carry",
        "bert.pooler.dense.weight": "for classification",
        "bert.pooler.dense.bias": "for classification",
        "cls.seq_relationship.weight": "the head that tells whether two segments belong together",
        "cls.seq_relationship.bias": "likewise",
        "cls.predictions.decoder.bias": "the same as cls.predictions.bias",
    },
    endings={".gamma": ".weight", ".beta": ".bias"},
    from_disk=True,
)
"""How BERT's checkpoints name and lay out what is above."""
