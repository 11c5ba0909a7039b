"""DeepSeek-V3: multi-head latent attention (MLA), and a mixture of many small experts (DeepSeekMoE).

    token_ids   batch seq
        |  token embedding
        x       batch seq embed           the residual stream
        |  num_layers x Block:  x = x + attention(norm(x)),  x = x + mlp(norm(x))
        |      attention: a latent per position, all that the cache holds beside one short rotated key
        |      mlp: dense in the first layers, experts in all others
        x       batch seq embed
        |  final norm, then the unembedding (lm_head)
    logits      batch seq vocab

New since Llama and Mixtral: keys and values are made from one latent vector per position; RoPE has a short query and
key of its own (decoupled RoPE), the key shared by all heads, since with RoPE on the keys that are made from the latent,
their matrix could not be absorbed into the queries; hundreds of experts, chosen within a few groups of them, beside
shared ones; a bias, trained without gradients, that keeps the experts evenly loaded.

Sources: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437; MLA from "DeepSeek-V2", arXiv:2405.04434;
experts from "DeepSeekMoE", arXiv:2401.06066; the bias from Wang et al. 2024, arXiv:2408.15664.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.generation.decoder import Decoder
from allformers.models.llama.llama import MLP, RMSNorm
from allformers.models.mixtral.mixtral import MixtureOfExperts
from allformers.nn.activations import Activation
from allformers.nn.cache import Cache, LayerCache
from allformers.nn.config import (
    Count,
    EvenWidth,
    LayerCount,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Width,
)
from allformers.nn.masks import causal_mask
from allformers.nn.rope import RopeConfig, apply_rope, rope_cos_sin, yarn_mscale
from allformers.nn.shapes import check_token_ids, checked


@dataclass(frozen=True, kw_only=True)
class DeepSeekV3Config(RopeConfig):
    """The defaults are DeepSeek-V3."""

    vocab_size: PositiveInt = 129280
    context_length: PositiveInt = 163840  # max_position_embeddings
    embedding_dim: Width = 7168  # hidden_size
    num_layers: LayerCount = 61  # num_hidden_layers
    num_heads: Count = 128  # num_attention_heads
    mlp_dim: Width = 18432  # intermediate_size: of the dense layers
    q_latent_dim: Width | None = 1536  # q_lora_rank; None: queries are made from the residual stream itself
    kv_latent_dim: Width = 512  # kv_lora_rank: width of the latent that the cache holds
    nope_head_dim: Width = 128  # qk_nope_head_dim: the part of a query and key without RoPE
    rope_head_dim: EvenWidth = 64  # qk_rope_head_dim: the part with RoPE
    v_head_dim: Width = 128
    first_k_dense: NonNegativeInt = 3  # first_k_dense_replace: layers with an MLP in place of experts
    num_experts: Count = 256  # n_routed_experts
    num_experts_per_token: Count = 8  # num_experts_per_tok
    num_shared_experts: Count = 1  # n_shared_experts: every token uses these too
    num_expert_groups: Count = 8  # n_group
    topk_groups: Count = 4  # topk_group: groups that a token may choose from
    expert_mlp_dim: Width = 2048  # moe_intermediate_size: of one expert
    norm_topk_prob: bool = True  # the weights of a token's experts sum to one
    routed_scaling_factor: float = 2.5  # the factor on these weights
    dropout: Probability = 0.0  # attention_dropout
    norm_eps: PositiveFloat = 1e-6  # rms_norm_eps
    tie_embeddings: bool = False  # tie_word_embeddings
    activation: Activation = "silu"  # hidden_act
    attention_bias: bool = False
    rope_theta: PositiveFloat = 10000.0
    rope_type: Literal["default", "yarn"] = "yarn"
    rope_factor: PositiveFloat = 40.0  # factor
    original_context_length: PositiveInt = 4096  # original_max_position_embeddings
    mscale: PositiveFloat | None = 1.0
    mscale_all_dim: PositiveFloat | None = 1.0  # its square is a factor of all scores; None: no such factor

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_divisible("num_experts", "num_expert_groups")
        in_group = self.num_experts // self.num_expert_groups
        if in_group < 2 or self.topk_groups > self.num_expert_groups:
            raise ValueError(
                f"num_expert_groups {self.num_expert_groups} of num_experts {self.num_experts} have {in_group} each; a "
                f"group needs two or more, and topk_groups {self.topk_groups} must be among them"
            )
        if self.num_experts_per_token > self.topk_groups * in_group:
            raise ValueError(
                f"num_experts_per_token {self.num_experts_per_token} is more than topk_groups {self.topk_groups} have: "
                f"each of the num_expert_groups {self.num_expert_groups} has {in_group} of num_experts "
                f"{self.num_experts}"
            )

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """158,112 parameters, for first steps: bytes as tokens."""
        sizes: dict[str, Any] = {
            "vocab_size": 256,
            "context_length": 128,
            "embedding_dim": 64,
            "num_layers": 2,
            "num_heads": 4,
            "mlp_dim": 160,
            "q_latent_dim": 24,
            "kv_latent_dim": 20,
            "nope_head_dim": 16,
            "rope_head_dim": 8,
            "v_head_dim": 16,
            "first_k_dense": 1,
            "num_experts": 8,
            "num_experts_per_token": 2,
            "num_expert_groups": 2,
            "topk_groups": 1,
            "expert_mlp_dim": 40,
            "rope_type": "default",
            "rope_factor": 1.0,
        }
        return cls(**sizes | changes)

    @classmethod
    def deepseek_v3(cls, **changes: Any) -> Self:
        """671,026,419,200 parameters: the defaults. Without the layer that predicts a second token."""
        return cls(**changes)

    @property
    def rope_dim(self) -> int:
        """The numbers of a head that RoPE rotates: the part with RoPE."""
        return self.rope_head_dim

    @property
    def score_factor(self) -> float:
        """The factor of the scores: YaRN's mscale squared, once for the query and once for the key.

        `attention_scaling` would scale the part with RoPE alone; where `mscale` equals `mscale_all_dim`, it is one.
        """
        if self.rope_type != "yarn" or self.mscale_all_dim is None:
            return 1.0
        return yarn_mscale(self.rope_factor, self.mscale_all_dim) ** 2

    @cached_property
    def axes(self) -> dict[str, int]:
        """The sizes that the shape checks hold every tensor to."""
        q_latent = {} if self.q_latent_dim is None else {"q_latent": self.q_latent_dim}
        return {
            **q_latent,
            "vocab": self.vocab_size,
            "embed": self.embedding_dim,
            "heads": self.num_heads,
            "mlp": self.mlp_dim,
            "kv_latent": self.kv_latent_dim,
            "nope_dim": self.nope_head_dim,
            "rope_dim": self.rope_head_dim,
            "qk_dim": self.nope_head_dim + self.rope_head_dim,
            "kv_dim": self.nope_head_dim + self.v_head_dim,
            "kv_rope": self.kv_latent_dim + self.rope_head_dim,
            "v_head_dim": self.v_head_dim,
            "pair": self.rope_head_dim // 2,
            "component": 2,
            "experts": self.num_experts,
            "expert_groups": self.num_expert_groups,
            "experts_per_group": self.num_experts // self.num_expert_groups,
            "top_k": self.num_experts_per_token,
            "expert_mlp": self.expert_mlp_dim,
            "shared_mlp": self.expert_mlp_dim * self.num_shared_experts,
        }


class LatentAttention(nn.Module):
    """Multi-head latent attention: keys and values are made from one latent per position, which the cache holds.

    There are two ways to compute it, with the same result but for rounding. `expanded` ("naive" in DeepSeek's code)
    makes every head's keys and values, then attends as usual: less work where many positions ask at once. `absorbed`
    multiplies the key matrices into the queries and the value matrices into the result, and attends to the latents
    themselves: less work where one position asks and thousands are attended to.

    `forward` takes `absorbed` whenever the cache held positions before this pass, `expanded` otherwise. So the later
    chunks of a prompt that is read in chunks are `absorbed`, too. For long chunks (in DeepSeek-V3's sizes from some 170
    positions on) that is more arithmetic, but no pass makes the keys and values of all earlier positions anew, or needs
    memory for them.

    Source: arXiv:2405.04434, section 2.1.
    """

    LATENT_EPS = 1e-6  # of both latents' norms, whatever `norm_eps` says, as in the published model

    def __init__(self, config: DeepSeekV3Config) -> None:
        super().__init__()
        self.config = config
        embed, heads, bias = config.embedding_dim, config.num_heads, config.attention_bias
        q_dim = heads * (config.nope_head_dim + config.rope_head_dim)
        if config.q_latent_dim is None:
            self.query = nn.Linear(embed, q_dim, bias=False)
        else:
            self.query_down = nn.Linear(embed, config.q_latent_dim, bias=bias)
            self.query_norm = RMSNorm(config.q_latent_dim, self.LATENT_EPS)
            self.query_up = nn.Linear(config.q_latent_dim, q_dim, bias=False)
        self.kv_down = nn.Linear(embed, config.kv_latent_dim + config.rope_head_dim, bias=bias)
        self.kv_norm = RMSNorm(config.kv_latent_dim, self.LATENT_EPS)
        self.kv_up = nn.Linear(config.kv_latent_dim, heads * (config.nope_head_dim + config.v_head_dim), bias=False)
        self.output = nn.Linear(heads * config.v_head_dim, embed, bias=bias)
        self.weights_dropout = nn.Dropout(config.dropout)
        self.scale = (config.nope_head_dim + config.rope_head_dim) ** -0.5 * config.score_factor

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

        Arguments as for Llama's attention.
        """
        q_nope, q_rope = self.queries(x, cos, sin)
        kv_latent, k_rope = self.compress_kv(x, cos, sin)
        if cache is not None:
            kv_latent, k_rope = cache.append(kv_latent, k_rope)
        has_earlier_positions = kv_latent.shape[1] > x.shape[1]
        attend = self.absorbed if has_earlier_positions else self.expanded
        mixed: Float[Tensor, "batch heads seq v_head_dim"] = attend(q_nope, q_rope, kv_latent, k_rope, mask)
        return self.output(rearrange(mixed, "batch heads seq v_head_dim -> batch seq (heads v_head_dim)"))

    @checked
    def queries(
        self, x: Float[Tensor, "batch seq embed"], cos: Float[Tensor, "seq pair"], sin: Float[Tensor, "seq pair"]
    ) -> tuple[Float[Tensor, "batch heads seq nope_dim"], Float[Tensor, "batch heads seq rope_dim"]]:
        """Each head's query: the part without RoPE, and the part with it."""
        direct = self.config.q_latent_dim is None
        q = self.query(x) if direct else self.query_up(self.query_norm(self.query_down(x)))
        q = rearrange(q, "batch seq (heads qk_dim) -> batch heads seq qk_dim", heads=self.config.num_heads)
        nope = self.config.nope_head_dim
        return q[..., :nope], _apply_rope_to_neighbours(q[..., nope:], cos, sin)

    @checked
    def compress_kv(
        self, x: Float[Tensor, "batch seq embed"], cos: Float[Tensor, "seq pair"], sin: Float[Tensor, "seq pair"]
    ) -> tuple[Float[Tensor, "batch seq kv_latent"], Float[Tensor, "batch seq rope_dim"]]:
        """The KV cache's content for each position: the latent, and the one rotated key that all heads share."""
        compressed = self.kv_down(x)
        latent = self.config.kv_latent_dim
        return self.kv_norm(compressed[..., :latent]), _apply_rope_to_neighbours(compressed[..., latent:], cos, sin)

    @checked
    def expanded(
        self,
        q_nope: Float[Tensor, "batch heads seq nope_dim"],
        q_rope: Float[Tensor, "batch heads seq rope_dim"],
        kv_latent: Float[Tensor, "batch seq_k kv_latent"],
        k_rope: Float[Tensor, "batch seq_k rope_dim"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
    ) -> Float[Tensor, "batch heads seq v_head_dim"]:
        """Make every head's keys and values from the latents, then attend ("naive" in DeepSeek's own code)."""
        heads, nope = self.config.num_heads, self.config.nope_head_dim
        kv = rearrange(self.kv_up(kv_latent), "batch seq_k (heads kv_dim) -> batch heads seq_k kv_dim", heads=heads)
        k_nope, values = kv[..., :nope], kv[..., nope:]
        shared = repeat(k_rope, "batch seq_k rope_dim -> batch heads seq_k rope_dim", heads=heads)
        queries = torch.cat([q_nope, q_rope], dim=-1)
        keys = torch.cat([k_nope, shared], dim=-1)
        scores = einsum(queries, keys, "batch heads seq qk_dim, batch heads seq_k qk_dim -> batch heads seq seq_k")
        weights = self.attention_weights(scores, mask).to(values.dtype)
        return einsum(
            weights, values, "batch heads seq seq_k, batch heads seq_k v_head_dim -> batch heads seq v_head_dim"
        )

    @checked
    def absorbed(
        self,
        q_nope: Float[Tensor, "batch heads seq nope_dim"],
        q_rope: Float[Tensor, "batch heads seq rope_dim"],
        kv_latent: Float[Tensor, "batch seq_k kv_latent"],
        k_rope: Float[Tensor, "batch seq_k rope_dim"],
        mask: Bool[Tensor, "#batch 1 seq seq_k"],
    ) -> Float[Tensor, "batch heads seq v_head_dim"]:
        """Attend to the latents themselves: the matrices of keys and values are applied to queries and results."""
        heads, nope = self.config.num_heads, self.config.nope_head_dim
        kv_up = rearrange(self.kv_up.weight, "(heads kv_dim) kv_latent -> heads kv_dim kv_latent", heads=heads)
        k_up, v_up = kv_up[:, :nope], kv_up[:, nope:]
        q_absorbed = einsum(
            q_nope, k_up, "batch heads seq nope_dim, heads nope_dim kv_latent -> batch heads seq kv_latent"
        )
        scores = einsum(
            q_absorbed, kv_latent, "batch heads seq kv_latent, batch seq_k kv_latent -> batch heads seq seq_k"
        )
        scores = scores + einsum(
            q_rope, k_rope, "batch heads seq rope_dim, batch seq_k rope_dim -> batch heads seq seq_k"
        )
        weights = self.attention_weights(scores, mask).to(kv_latent.dtype)
        mixed_latents = einsum(
            weights, kv_latent, "batch heads seq seq_k, batch seq_k kv_latent -> batch heads seq kv_latent"
        )
        return einsum(
            mixed_latents, v_up, "batch heads seq kv_latent, heads v_head_dim kv_latent -> batch heads seq v_head_dim"
        )

    @checked
    def attention_weights(
        self, scores: Float[Tensor, "batch heads seq seq_k"], mask: Bool[Tensor, "#batch 1 seq seq_k"]
    ) -> Float[Tensor, "batch heads seq seq_k"]:
        """Scaled and masked softmax over keys, in float32 at least."""
        scores = torch.where(mask, scores * self.scale, torch.finfo(scores.dtype).min)
        compute_dtype = torch.promote_types(scores.dtype, torch.float32)
        weights: Float[Tensor, "batch heads seq seq_k"] = F.softmax(scores.to(compute_dtype), dim=-1)
        return self.weights_dropout(weights)


@checked
def _apply_rope_to_neighbours(
    x: Float[Tensor, "... seq rope_dim"], cos: Float[Tensor, "seq pair"], sin: Float[Tensor, "seq pair"]
) -> Float[Tensor, "... seq rope_dim"]:
    """RoPE for checkpoints whose pairs are neighbours.

    The order of the result differs from DeepSeek's, which changes nothing: queries and keys have the same order and are
    used only in dot products.
    """
    halves = rearrange(x, "... seq (pair component) -> ... seq (component pair)", component=2)
    return apply_rope(halves, cos, sin)


class DeepSeekMoE(MixtureOfExperts):
    """Many small experts, chosen within a few groups, beside shared ones that every token uses.

    Source: DeepSeek-V3, section 2.1.2.
    """

    def __init__(self, config: DeepSeekV3Config) -> None:
        super().__init__(
            config.embedding_dim,
            expert_mlp_dim=config.expert_mlp_dim,
            num_experts=config.num_experts,
            top_k=config.num_experts_per_token,
            activation=config.activation,
        )
        self.config = config
        self.expert_bias = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False)
        shared_mlp = config.expert_mlp_dim * config.num_shared_experts
        self.shared = MLP(config.embedding_dim, shared_mlp, activation=config.activation)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """The weighted outputs of each token's experts, plus those of the shared ones."""
        return super().forward(x) + self.shared(x)

    @checked
    def route(
        self, tokens: Float[Tensor, "tokens embed"]
    ) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
        """The weights (float32 or wider) and the indices of each token's experts.

        Each expert's score is a sigmoid, independent of the others. `expert_bias` takes part in the choice alone, not
        in the weights. DeepSeek's training raised it for experts that got too few tokens, and lowered it for those that
        got too many; this package's loop does not change it.
        """
        compute_dtype = torch.promote_types(tokens.dtype, torch.float32)
        scores: Float[Tensor, "tokens experts"] = F.linear(
            tokens.to(compute_dtype), self.router.weight.to(compute_dtype)
        ).sigmoid()
        biased_scores = rearrange(
            scores + self.expert_bias.to(compute_dtype),
            "tokens (expert_groups experts_per_group) -> tokens expert_groups experts_per_group",
            expert_groups=self.config.num_expert_groups,
        )
        # A group's score is the sum of its two highest biased scores.
        best_two = biased_scores.topk(2, dim=-1).values
        group_scores = reduce(best_two, "tokens expert_groups best -> tokens expert_groups", "sum")
        groups = group_scores.topk(self.config.topk_groups, dim=-1).indices
        group_mask = torch.zeros_like(group_scores, dtype=torch.bool).scatter(-1, groups, True)
        expert_mask = rearrange(group_mask, "tokens expert_groups -> tokens expert_groups 1")
        allowed_scores = rearrange(
            torch.where(expert_mask, biased_scores, -torch.inf),
            "tokens expert_groups experts_per_group -> tokens (expert_groups experts_per_group)",
        )
        expert_ids = allowed_scores.topk(self.top_k, dim=-1).indices
        weights = scores.gather(-1, expert_ids)
        if self.config.norm_topk_prob:
            weights = weights / (reduce(weights, "tokens top_k -> tokens 1", "sum") + 1e-20)
        return weights * self.config.routed_scaling_factor, expert_ids


class Block(nn.Module):
    """Latent attention, then MLP or experts, each with pre-norm and a residual connection."""

    def __init__(self, config: DeepSeekV3Config, layer: int) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = RMSNorm(config.embedding_dim, config.norm_eps)
        self.attention = LatentAttention(config)
        self.mlp_norm = RMSNorm(config.embedding_dim, config.norm_eps)
        # The first layers are dense: the load balance of experts converges especially slowly in the first layer.
        # Source: DeepSeekMoE.
        self.mlp = (
            MLP(config.embedding_dim, config.mlp_dim, activation=config.activation)
            if layer < config.first_k_dense
            else DeepSeekMoE(config)
        )

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


class DeepSeekV3(Decoder):
    """Token ids in, logits of the next token at every position out.

    `Decoder` adds `generate` and `from_pretrained`.

    >>> DeepSeekV3(DeepSeekV3Config.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    def __init__(self, config: DeepSeekV3Config) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.final_norm = RMSNorm(config.embedding_dim, config.norm_eps)
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
        x: Float[Tensor, "batch seq embed"] = self.token_embedding(token_ids)
        cos, sin = self.rope(token_ids, cache)
        mask = causal_mask(self.positions(token_ids, cache), self.key_positions(token_ids, cache))
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, None if cache is None else cache.layers[layer])
        if cache is not None:
            cache.advance(token_ids.shape[1])
        return x

    @checked
    def rope(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "seq pair"], Float[Tensor, "seq pair"]]:
        """RoPE's cosine and sine at each new position. Only distances count, so padding need not be subtracted."""
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + token_ids.shape[1], device=token_ids.device)
        dtype = self.token_embedding.weight.dtype
        compute_dtype = torch.promote_types(dtype, torch.float32)
        inv_freq = self.config.inv_freq(positions, compute_dtype)
        cos, sin = rope_cos_sin(positions, inv_freq, self.config.attention_scaling)
        return cos.to(dtype), sin.to(dtype)

    @checked
    def unembed(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq vocab"]:
        """Final norm, then the unembedding (lm_head)."""
        logits: Float[Tensor, "batch seq vocab"] = self.unembedding(self.final_norm(x))
        return logits
