"""Mixtral: Mistral with a mixture of experts (MoE): eight MLPs in each block, of which a router picks two per token.

So the model has the parameters of all experts and computes with those of two.

New since Mistral: the router and the experts.

Sources: Jiang et al. 2024, "Mixtral of Experts", arXiv:2401.04088; sparse experts since Shazeer et al. 2017,
arXiv:1701.06538.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.models.llama.llama import Block
from allformers.models.mistral.mistral import Mistral, MistralConfig
from allformers.nn.activations import ACTIVATIONS
from allformers.nn.config import Count, PositiveFloat, PositiveInt
from allformers.nn.shapes import checked


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MistralConfig):
    """The defaults are Mixtral 8x7B. `mlp_dim` is the width of one expert."""

    sliding_window: PositiveInt | None = None
    rope_theta: PositiveFloat = 1e6
    num_experts: Count = 8  # num_local_experts: in each block
    num_experts_per_token: Count = 2  # num_experts_per_tok: those that the router picks

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts_per_token > self.num_experts:
            raise ValueError(
                f"num_experts_per_token {self.num_experts_per_token} is more than num_experts {self.num_experts}"
            )

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """205,632 parameters, for first steps: bytes as tokens."""
        return super().tiny(**{"mlp_dim": 96, "num_experts": 4, "sliding_window": None} | changes)

    @classmethod
    def mixtral_8x7b(cls, **changes: Any) -> Self:
        """46,702,792,704 parameters: the defaults."""
        return cls(**changes)

    @classmethod
    def mixtral_8x22b(cls, **changes: Any) -> Self:
        """140,630,071,296 parameters."""
        sizes: dict[str, Any] = {
            "vocab_size": 32768,
            "context_length": 65536,
            "embedding_dim": 6144,
            "num_layers": 56,
            "num_heads": 48,
            "mlp_dim": 16384,
        }
        return cls(**sizes | changes)

    @cached_property
    def axes(self) -> dict[str, int]:
        """The sizes that the shape checks hold every tensor to."""
        experts = {"experts": self.num_experts, "top_k": self.num_experts_per_token, "expert_mlp": self.mlp_dim}
        return {**super().axes, **experts}


class MixtureOfExperts(nn.Module):
    """A router and several SwiGLU MLPs: each token goes through its top-k experts, whose outputs are weighted."""

    def __init__(
        self, embedding_dim: int, expert_mlp_dim: int, num_experts: int, top_k: int, *, activation: str = "silu"
    ) -> None:
        super().__init__()
        self.axes = {"embed": embedding_dim, "expert_mlp": expert_mlp_dim, "experts": num_experts, "top_k": top_k}
        self.num_experts, self.top_k = num_experts, top_k
        self.router = nn.Linear(embedding_dim, num_experts, bias=False)
        self.gate = nn.Parameter(torch.empty(num_experts, expert_mlp_dim, embedding_dim))
        self.up = nn.Parameter(torch.empty(num_experts, expert_mlp_dim, embedding_dim))
        self.down = nn.Parameter(torch.empty(num_experts, embedding_dim, expert_mlp_dim))
        self.activation = ACTIVATIONS[activation]
        for weight in (self.gate, self.up, self.down):
            nn.init.normal_(weight, std=0.02)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Route each token to its top-k experts, and sum their outputs, weighted by the router."""
        tokens = rearrange(x, "batch seq embed -> (batch seq) embed")
        weights, expert_ids = self.route(tokens)
        expert_outputs = self.dispatch(tokens, expert_ids)
        weighted = expert_outputs * rearrange(weights, "tokens top_k -> tokens top_k 1")
        combined = reduce(weighted.to(x.dtype), "tokens top_k embed -> tokens embed", "sum")
        batch, seq, _ = x.shape
        return rearrange(combined, "(batch seq) embed -> batch seq embed", batch=batch, seq=seq)

    @checked
    def route(
        self, tokens: Float[Tensor, "tokens embed"]
    ) -> tuple[Float[Tensor, "tokens top_k"], Int[Tensor, "tokens top_k"]]:
        """The weights (float32 or wider) and the indices of each token's experts.

        The weights are the router's top k probabilities, normalised to sum to one.
        """
        router_logits: Float[Tensor, "tokens experts"] = self.router(tokens)
        compute_dtype = torch.promote_types(router_logits.dtype, torch.float32)
        probabilities = F.softmax(router_logits.to(compute_dtype), dim=-1)
        best = probabilities.topk(self.top_k, dim=-1)
        return best.values / reduce(best.values, "tokens top_k -> tokens 1", "sum"), best.indices

    @checked
    def dispatch(
        self, tokens: Float[Tensor, "tokens embed"], expert_ids: Int[Tensor, "tokens top_k"]
    ) -> Float[Tensor, "tokens top_k embed"]:
        """Sort the tokens by expert, so that each expert runs once on one matrix; return the outputs per token."""
        flat_ids = rearrange(expert_ids, "tokens top_k -> (tokens top_k)")
        permutation = flat_ids.argsort(stable=True)
        # Entry i of the flat list belongs to token i // top_k.
        token_index = permutation // self.top_k
        tokens_per_expert: list[int] = torch.bincount(flat_ids, minlength=self.num_experts).tolist()
        outputs: list[Tensor] = []
        start = 0
        for expert, count in enumerate(tokens_per_expert):
            outputs.append(self.expert(tokens[token_index[start : start + count]], expert))
            start += count
        # The argsort of a permutation is its inverse: it puts the outputs back into the flat list's order.
        unsorted = torch.cat(outputs)[permutation.argsort()]
        return rearrange(unsorted, "(tokens top_k) embed -> tokens top_k embed", top_k=self.top_k)

    @checked
    def expert(self, routed: Float[Tensor, "routed embed"], expert: int) -> Float[Tensor, "routed embed"]:
        """One expert's SwiGLU, on the tokens that were routed to it."""
        gate = self.activation(F.linear(routed, self.gate[expert]))
        return F.linear(gate * F.linear(routed, self.up[expert]), self.down[expert])

    @checked
    def gather(
        self, tokens: Float[Tensor, "tokens embed"], expert_ids: Int[Tensor, "tokens top_k"]
    ) -> Float[Tensor, "tokens top_k embed"]:
        """The same as `dispatch`, by gathering the weights of each token's experts instead of an expert's tokens.

        No size depends on the text here. It pays for a few tokens only: each gets its own copy of the weights.
        """
        gate_weight, up_weight, down_weight = self.gate[expert_ids], self.up[expert_ids], self.down[expert_ids]
        gate = einsum(tokens, gate_weight, "tokens embed, tokens top_k expert_mlp embed -> tokens top_k expert_mlp")
        up = einsum(tokens, up_weight, "tokens embed, tokens top_k expert_mlp embed -> tokens top_k expert_mlp")
        activated = self.activation(gate) * up
        return einsum(
            activated, down_weight, "tokens top_k expert_mlp, tokens top_k embed expert_mlp -> tokens top_k embed"
        )


class MixtralBlock(Block):
    """Llama's block with experts in place of the MLP."""

    config: MixtralConfig

    def make_mlp(self, layer: int) -> nn.Module:
        """Experts, in every layer."""
        config = self.config
        return MixtureOfExperts(
            config.embedding_dim,
            expert_mlp_dim=config.mlp_dim,
            num_experts=config.num_experts,
            top_k=config.num_experts_per_token,
            activation=config.activation,
        )


class Mixtral(Mistral):
    """Mistral with experts.

    >>> Mixtral(MixtralConfig.tiny())(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: type[nn.Module] = MixtralBlock
