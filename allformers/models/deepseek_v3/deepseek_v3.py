"""DeepSeek-V3: attention that remembers a short vector in place of keys and values, and many small experts.

Each position leaves one latent vector, from which every head makes its own key and value when it needs them; so the
cache is a small part of what it would be. Positions are said by a second, short key that all heads share, since a key
that has been turned could not be made from the latent any more. The router picks a few of hundreds of experts, from a
few groups, and a bias that no gradient touches keeps them evenly busy.

Source: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv:2412.19437; multi-head latent attention from
"DeepSeek-V2", arXiv:2405.04434; fine-grained and shared experts from "DeepSeekMoE", arXiv:2401.06066; balance by a bias
from Wang et al. 2024, arXiv:2408.15664.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from allformers.checkpoints.tables import Field, Weight, each_layer, linear
from allformers.models.llama.llama import MLP, TINY, Block, Llama, LlamaConfig, RMSNorm, size
from allformers.models.mixtral.mixtral import MixtureOfExperts
from allformers.nn.cache import LayerCache
from allformers.nn.config import Count, EvenCount, Positive, Whole
from allformers.nn.linear import Linear
from allformers.nn.rope import rotate, sharpen_like_yarn
from allformers.nn.shapes import checked

LATENT_EPS = 1e-6
"""What the norms of both latents add, whatever `norm_eps` says: the reference has it so."""

NARROW: Mapping[str, Any] = {"query_latent_dim": 24, "latent_dim": 20, "plain_dim": 16, "rope_dim": 8, "expert_dim": 40}
FEW: Mapping[str, Any] = {"num_experts": 8, "num_chosen": 2, "num_shared": 1, "num_nodes": 2, "num_chosen_nodes": 1}
WIDE: Mapping[str, Any] = {"query_latent_dim": 1536, "latent_dim": 512, "plain_dim": 128, "rope_dim": 64}
MANY: Mapping[str, Any] = {"num_experts": 256, "num_chosen": 8, "num_shared": 1, "num_nodes": 8, "num_chosen_nodes": 4}
YARN: Mapping[str, Any] = {"rope_type": "yarn", "rope_factor": 40.0, "rope_context": 4096, "rope_mscale": 1.0}
V3: Mapping[str, Any] = {"vocab_size": 129280, "context_length": 163840, "num_dense_layers": 3, "expert_dim": 2048}
"""What the sizes below consist of."""


@dataclass(frozen=True, kw_only=True)
class DeepSeekV3Config(LlamaConfig):
    """The sizes and switches of a DeepSeek-V3: Llama's, and these. `head_dim` is the width of a head's values.

    Attributes:
        query_latent_dim: width of what queries are made from; None to make them from the stream itself.
        latent_dim: width of what keys and values are made from.
        plain_dim: the part of a query's and key's width that is not turned.
        rope_dim: the part that is; an even number.
        num_dense_layers: how many of the first blocks have a plain MLP.
        num_experts: in each of the others.
        num_chosen: how many of them each token uses.
        num_shared: how many more every token uses.
        num_nodes: groups that the experts are divided into.
        num_chosen_nodes: from how many of them a token may choose.
        expert_dim: hidden width of an expert.
        normalise_shares: whether the weights of the chosen are made to add up to one.
        routed_scale: what these weights are multiplied by then.
        rope_mscale: how strongly scores are sharpened, to make up for slower rotations.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    query_latent_dim: Count | None
    latent_dim: Count
    plain_dim: Count
    rope_dim: EvenCount
    num_experts: Count
    num_chosen: Count
    num_shared: Count
    num_nodes: Count
    num_chosen_nodes: Count
    expert_dim: Count
    num_dense_layers: Whole = 1
    norm_eps: Positive = 1e-6
    normalise_shares: bool = True
    routed_scale: float = 2.5
    mlp_bias: Literal[False] = False
    rope_type: Literal["default", "yarn"] = "default"
    rope_mscale: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_kv_heads != self.num_heads:
            raise ValueError("num_kv_heads must equal num_heads: every head makes its own keys from the latent")
        if self.rope_type == "yarn" and not self.rope_mscale > 0:
            raise ValueError(f"rope_mscale must be above 0 where rope_type is yarn, not {self.rope_mscale!r}")
        self.divides("num_experts", "num_nodes")
        members = self.num_experts // self.num_nodes
        if members < 2 or self.num_chosen_nodes > self.num_nodes or self.num_chosen > self.num_chosen_nodes * members:
            raise ValueError(
                f"num_chosen {self.num_chosen} experts cannot be chosen from num_chosen_nodes {self.num_chosen_nodes} "
                f"of num_nodes {self.num_nodes} groups of {members}, each of two or more"
            )

    @property
    def sharpening(self) -> float:
        """What scores are multiplied by, more or less by choice."""
        return sharpen_like_yarn(self.rope_factor, self.rope_mscale) if self.rope_type == "yarn" else 1.0

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis that the configuration fixes."""
        queries = {} if self.query_latent_dim is None else {"query_latent": self.query_latent_dim}
        return {
            **super().axes,
            **queries,
            "latent": self.latent_dim,
            "plain_dim": self.plain_dim,
            "rope_dim": self.rope_dim,
            "query_dim": self.plain_dim + self.rope_dim,
            "key_value_dim": self.plain_dim + self.head_dim,
            "kept": self.latent_dim + self.rope_dim,
            "pair": self.rope_dim // 2,
            "experts": self.num_experts,
            "chosen": self.num_chosen,
            "nodes": self.num_nodes,
            "expert_mlp": self.expert_dim,
            "shared_mlp": self.expert_dim * self.num_shared,
        }

    deepseek_v3_tiny = size("for first steps", 158_112, 2, 4, 4, 16, 64, 160, **TINY, **NARROW, **FEW)
    # Without the part that predicts two tokens. The reference does not count 14,848 of them, the experts' balance.
    deepseek_v3 = size(
        "deepseek-ai/DeepSeek-V3", 671_026_419_200, 61, 128, 128, 128, 7168, 18432, **V3, **WIDE, **MANY, **YARN
    )


class LatentAttention(nn.Module):
    """Attention whose keys and values are made from one latent vector a position, which is all that the cache holds.

    There are two ways to compute the same. Expanded: make every head's keys and values, then attend as usual; right
    where many positions ask at once. Absorbed: bring each query into the space of the latent instead, compare it with
    the latents themselves, and make a value of their mean; right where one position asks and thousands are looked at.

    Source: arXiv:2405.04434, section 2.1.
    """

    def __init__(self, config: Any, layer: int) -> None:
        super().__init__()
        self.config = config
        embed, heads, bias = config.embedding_dim, config.num_heads, config.attention_bias
        queries = heads * (config.plain_dim + config.rope_dim)
        if config.query_latent_dim is None:
            self.query = Linear(embed, queries, bias=False)
        else:
            self.query_down = Linear(embed, config.query_latent_dim, bias=bias)
            self.query_norm = RMSNorm(config.query_latent_dim, LATENT_EPS)
            self.query_up = Linear(config.query_latent_dim, queries, bias=False)
        self.down = Linear(embed, config.latent_dim + config.rope_dim, bias=bias)
        self.latent_norm = RMSNorm(config.latent_dim, LATENT_EPS)
        self.up = Linear(config.latent_dim, heads * (config.plain_dim + config.head_dim), bias=False)
        self.output = Linear(heads * config.head_dim, embed, bias=bias)
        self.weights_dropout = nn.Dropout(config.dropout)
        self.scale = (config.plain_dim + config.rope_dim) ** -0.5 * config.sharpening

    @checked
    def forward(
        self,
        x: Float[Tensor, "batch seq embed"],
        turned: Float[Tensor, "part seq component pair"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq embed"]:
        """Let each position gather from itself and the positions before it. Arguments as for Llama's attention."""
        plain_queries, turned_queries = self.ask(x, turned)
        latent, turned_key = self.remember(x, turned)
        if cache is not None:
            latent, turned_key = cache.append(latent, turned_key)
        attend = self.absorbed if latent.shape[1] > x.shape[1] else self.expanded
        mixed: Float[Tensor, "batch heads seq head_dim"] = attend(
            plain_queries, turned_queries, latent, turned_key, blocked
        )
        return self.output(rearrange(mixed, "batch heads seq head_dim -> batch seq (heads head_dim)"))

    @checked
    def ask(
        self, x: Float[Tensor, "batch seq embed"], turned: Float[Tensor, "part seq component pair"]
    ) -> tuple[Float[Tensor, "batch heads seq plain_dim"], Float[Tensor, "batch heads seq rope_dim"]]:
        """Each head's query: the part that is not turned, and the part that is."""
        if self.config.query_latent_dim is None:
            fused = self.query(x)
        else:
            fused = self.query_up(self.query_norm(self.query_down(x)))
        queries = rearrange(
            fused, "batch seq (heads query_dim) -> batch heads seq query_dim", heads=self.config.num_heads
        )
        plain, rope = self.config.plain_dim, self.config.rope_dim
        return queries[..., :plain], _rotate_neighbours(queries[..., plain : plain + rope], turned)

    @checked
    def remember(
        self, x: Float[Tensor, "batch seq embed"], turned: Float[Tensor, "part seq component pair"]
    ) -> tuple[Float[Tensor, "batch seq latent"], Float[Tensor, "batch seq rope_dim"]]:
        """What the cache keeps of each position: the latent, and the one key that says where it stands."""
        both = self.down(x)
        latent = self.latent_norm(both[..., : self.config.latent_dim])
        return latent, _rotate_neighbours(both[..., self.config.latent_dim :], turned)

    @checked
    def expanded(
        self,
        plain_queries: Float[Tensor, "batch heads seq plain_dim"],
        turned_queries: Float[Tensor, "batch heads seq rope_dim"],
        latent: Float[Tensor, "batch seq_k latent"],
        turned_key: Float[Tensor, "batch seq_k rope_dim"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        """Make every head's keys and values, then attend."""
        heads, plain = self.config.num_heads, self.config.plain_dim
        made = rearrange(
            self.up(latent), "batch seq_k (heads key_value_dim) -> batch heads seq_k key_value_dim", heads=heads
        )
        shared = repeat(turned_key, "batch seq_k rope_dim -> batch heads seq_k rope_dim", heads=heads)
        keys = torch.cat([made[..., :plain], shared], dim=-1)
        queries = torch.cat([plain_queries, turned_queries], dim=-1)
        scores = einsum(
            queries, keys, "batch heads seq_q query_dim, batch heads seq_k query_dim -> batch heads seq_q seq_k"
        )
        weights = self.share(scores * self.scale, blocked).to(made.dtype)
        return einsum(
            weights,
            made[..., plain:],
            "batch heads seq_q seq_k, batch heads seq_k head_dim -> batch heads seq_q head_dim",
        )

    @checked
    def absorbed(
        self,
        plain_queries: Float[Tensor, "batch heads seq plain_dim"],
        turned_queries: Float[Tensor, "batch heads seq rope_dim"],
        latent: Float[Tensor, "batch seq_k latent"],
        turned_key: Float[Tensor, "batch seq_k rope_dim"],
        blocked: Bool[Tensor, "#batch 1 seq seq_k"],
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        """The same without keys and values: their matrices are applied to queries and results instead."""
        heads, plain = self.config.num_heads, self.config.plain_dim
        matrices = rearrange(self.up.weight, "(heads key_value_dim) latent -> heads key_value_dim latent", heads=heads)
        inward = einsum(
            plain_queries,
            matrices[:, :plain],
            "batch heads seq_q plain_dim, heads plain_dim latent -> batch heads seq_q latent",
        )
        scores = einsum(inward, latent, "batch heads seq_q latent, batch seq_k latent -> batch heads seq_q seq_k")
        scores = scores + einsum(
            turned_queries, turned_key, "batch heads seq_q rope_dim, batch seq_k rope_dim -> batch heads seq_q seq_k"
        )
        weights = self.share(scores * self.scale, blocked).to(latent.dtype)
        mean = einsum(weights, latent, "batch heads seq_q seq_k, batch seq_k latent -> batch heads seq_q latent")
        return einsum(
            mean,
            matrices[:, plain:],
            "batch heads seq_q latent, heads head_dim latent -> batch heads seq_q head_dim",
        )

    @checked
    def share(
        self, scores: Float[Tensor, "batch heads seq seq_k"], blocked: Bool[Tensor, "#batch 1 seq seq_k"]
    ) -> Float[Tensor, "batch heads seq seq_k"]:
        """Share out one unit of attention among the positions that may be seen; in float32 at least."""
        scores = torch.where(blocked, torch.finfo(scores.dtype).min, scores)
        weights: Float[Tensor, "batch heads seq seq_k"] = F.softmax(
            scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1
        )
        return self.weights_dropout(weights)


@checked
def _rotate_neighbours(
    x: Float[Tensor, "... seq rope_dim"], turned: Float[Tensor, "part seq component pair"]
) -> Float[Tensor, "... seq rope_dim"]:
    """Turn pairs of neighbours, as these checkpoints have them, and leave them as halves: no one else looks inside."""
    return rotate(rearrange(x, "... seq (pair component) -> ... seq (component pair)", component=2), turned)


class BalancedExperts(MixtureOfExperts):
    """Many small experts, of which a router picks a few by group, beside one that every token uses.

    Source: DeepSeek-V3, section 2.1.2.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(dataclasses.replace(config, mlp_dim=config.expert_dim))
        self.balance = nn.Parameter(torch.zeros(config.num_experts), requires_grad=False)
        self.shared = MLP(dataclasses.replace(config, mlp_dim=config.expert_dim * config.num_shared))

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """What the chosen experts make of each token, and what the shared ones do."""
        return super().forward(x) + self.shared(x)

    @checked
    def choose(
        self, tokens: Float[Tensor, "tokens embed"]
    ) -> tuple[Float[Tensor, "tokens chosen"], Int[Tensor, "tokens chosen"]]:
        """For each token, which experts, and the weight of each; in float32 at least.

        Every expert is judged by itself (sigmoid, not softmax). `balance` decides who is chosen, and has no part in the
        weights: it is raised by training for experts that get too little to do.
        """
        wide = torch.promote_types(tokens.dtype, torch.float32)
        fit: Float[Tensor, "tokens experts"] = F.linear(tokens.to(wide), self.router.weight.to(wide)).sigmoid()
        claims = rearrange(
            fit + self.balance.to(wide), "tokens (nodes members) -> tokens nodes members", nodes=self.config.num_nodes
        )
        strength = reduce(claims.topk(2, dim=-1).values, "tokens nodes best -> tokens nodes", "sum")
        nodes = strength.topk(self.config.num_chosen_nodes, dim=-1).indices
        allowed = torch.zeros_like(strength, dtype=torch.bool).scatter(-1, nodes, True)
        claims = torch.where(rearrange(allowed, "tokens nodes -> tokens nodes 1"), claims, -torch.inf)
        claims = rearrange(claims, "tokens nodes members -> tokens (nodes members)")
        chosen = claims.topk(self.config.num_chosen, dim=-1).indices
        weights = fit.gather(-1, chosen)
        if self.config.normalise_shares:
            weights = weights / (reduce(weights, "tokens chosen -> tokens 1", "sum") + 1e-20)
        return weights * self.config.routed_scale, chosen


class DeepSeekV3Block(Block):
    """Llama's block with latent attention and, after the first few, experts."""

    attention_class: ClassVar[type[Any]] = LatentAttention

    def make_mlp(self, config: Any, layer: int) -> nn.Module:
        """A plain MLP in the first layers, where routing would have little to go by, and experts in the others."""
        return BalancedExperts(config) if layer >= config.num_dense_layers else MLP(config)


class DeepSeekV3(Llama):
    """Llama with latent attention and balanced experts.

    >>> model = DeepSeekV3(DeepSeekV3Config.deepseek_v3_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = DeepSeekV3Block


ROPE_CONTEXT = "rope_parameters.original_max_position_embeddings"

DeepSeekV3.format = Llama.format.extended(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    DeepSeekV3Config,
    without=("head_dim", "mlp_bias", "layers.{layer}.self_attn", "rope_parameters.mscale"),
    defaults={
        "vocab_size": 129280,
        "max_position_embeddings": 4096,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "num_hidden_layers": 61,
        "num_attention_heads": 128,
        ROPE_CONTEXT: 4096,
    },
    fields=(
        Field("q_lora_rank", "query_latent_dim", None),
        Field("kv_lora_rank", "latent_dim", 512),
        Field("qk_nope_head_dim", "plain_dim", 128),
        Field("qk_rope_head_dim", "rope_dim", 64),
        Field("v_head_dim", "head_dim", 128),
        Field("first_k_dense_replace", "num_dense_layers", 3),
        Field("n_routed_experts", "num_experts", 256),
        Field("num_experts_per_tok", "num_chosen", 8),
        Field("n_shared_experts", "num_shared", 1),
        Field("n_group", "num_nodes", 8),
        Field("topk_group", "num_chosen_nodes", 4),
        Field("moe_intermediate_size", "expert_dim", 2048),
        Field("norm_topk_prob", "normalise_shares", True),
        Field("routed_scaling_factor", "routed_scale", 2.5),
        Field("rope_parameters.mscale", "rope_mscale", 0.0, ("rope_type", "yarn")),
        Field("rope_parameters.mscale_all_dim", "rope_mscale", 0.0, ("rope_type", "yarn")),
    ),
    refused_fields={
        "rope_interleave": (True, "released checkpoints turn pairs of neighbours"),
        "scoring_func": ("sigmoid", "released checkpoints judge experts one by one"),
        "topk_method": ("noaux_tc", "released checkpoints choose with a bias for balance"),
        "moe_layer_freq": (1, "released checkpoints have experts in every block after the first ones"),
    },
    ignored_fields={
        "head_dim": "another name of qk_rope_head_dim in the reference",
        "qk_head_dim": "the sum of qk_nope_head_dim and qk_rope_head_dim",
        "num_nextn_predict_layers": "the part that predicts two tokens, which the reference leaves out too",
        "ep_size": "how experts are spread over machines",
        "output_router_logits": "what the reference's forward returns",
        "seq_aux": "a loss of training, added by its loop",
        "aux_loss_alpha": "a loss of training, added by its loop",
    },
    weights=(
        *each_layer(
            "layers.{layer}.self_attn",
            "blocks.{layer}.attention",
            Weight("q_proj.weight", "query.weight", "(heads query_dim) embed"),
            *linear("q_a_proj", "query_down", "query_latent embed"),
            Weight("q_a_layernorm.weight", "query_norm.weight", "query_latent"),
            Weight("q_b_proj.weight", "query_up.weight", "(heads query_dim) query_latent"),
            *linear("kv_a_proj_with_mqa", "down", "kept embed"),
            Weight("kv_a_layernorm.weight", "latent_norm.weight", "latent"),
            Weight("kv_b_proj.weight", "up.weight", "(heads key_value_dim) latent"),
            *linear("o_proj", "output", "embed (heads head_dim)"),
        ),
        *each_layer(
            "layers.{layer}.mlp",
            "blocks.{layer}.mlp",
            Weight("gate.weight", "router.weight", "experts embed"),
            Weight("gate.e_score_correction_bias", "balance", "experts"),
            Weight("experts.{expert}.gate_proj.weight", "gate", "experts expert_mlp embed"),
            Weight("experts.{expert}.up_proj.weight", "up", "experts expert_mlp embed"),
            Weight("experts.{expert}.down_proj.weight", "down", "experts embed expert_mlp"),
            Weight("shared_experts.gate_proj.weight", "shared.gate.weight", "shared_mlp embed"),
            Weight("shared_experts.up_proj.weight", "shared.up.weight", "shared_mlp embed"),
            Weight("shared_experts.down_proj.weight", "shared.down.weight", "embed shared_mlp"),
        ),
    ),
    from_disk=True,
)
"""How DeepSeek-V3's checkpoints name and lay out what is above."""
