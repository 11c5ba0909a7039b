"""Mixtral: Mistral with eight MLPs in each block, of which every token uses the two that a router picks for it.

So the model knows as much as its size says and costs as much as the part that is used.

Source: Jiang et al. 2024, "Mixtral of Experts", arXiv:2401.04088; sparse experts since Shazeer et al. 2017,
arXiv:1701.06538.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.checkpoints.tables import Field, Weight, each_layer
from allformers.models.gpt2.gpt2 import ACTIVATIONS
from allformers.models.llama.llama import TINY, Block, size
from allformers.models.mistral.mistral import Mistral, MistralConfig
from allformers.nn.config import Count
from allformers.nn.linear import Linear
from allformers.nn.shapes import checked

EIGHT: Mapping[str, Any] = {"num_experts": 8, "num_chosen": 2, "rope_theta": 1e6}
SMALL: Mapping[str, Any] = {**EIGHT, "vocab_size": 32000, "context_length": 32768}
LARGE: Mapping[str, Any] = {**EIGHT, "vocab_size": 32768, "context_length": 65536}


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MistralConfig):
    """The sizes and switches of a Mixtral: Mistral's, and the experts.

    Attributes:
        num_experts: MLPs in each block.
        num_chosen: how many of them each token uses.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    num_experts: Count
    num_chosen: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_chosen > self.num_experts:
            raise ValueError(f"num_chosen {self.num_chosen} is more than there are experts, {self.num_experts}")

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The size of every axis that the configuration fixes."""
        return {**super().axes, "experts": self.num_experts, "chosen": self.num_chosen}

    mixtral_tiny = size("for first steps", 205_632, 2, 4, 2, 16, 64, 96, **TINY, num_experts=4, num_chosen=2)
    mixtral_8x7b = size("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704, 32, 32, 8, 128, 4096, 14336, **SMALL)
    mixtral_8x22b = size("mistralai/Mixtral-8x22B-v0.1", 140_630_071_296, 56, 48, 8, 128, 6144, 16384, **LARGE)


class MixtureOfExperts(nn.Module):
    """Several MLPs and a router: each token goes through the few that fit it best, and their results are weighted."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        experts, embed, mlp = config.num_experts, config.embedding_dim, config.mlp_dim
        self.router = Linear(embed, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, mlp, embed))
        self.up = nn.Parameter(torch.empty(experts, mlp, embed))
        self.down = nn.Parameter(torch.empty(experts, embed, mlp))
        self.activation = ACTIVATIONS[config.activation]
        for weight in (self.gate, self.up, self.down):
            nn.init.normal_(weight, std=0.02)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Let each token's experts think about it, and add up what they make of it."""
        tokens = rearrange(x, "batch seq embed -> (batch seq) embed")
        weights, chosen = self.choose(tokens)
        # A compiler must know beforehand what there will be to do, and so not who is chosen by how many.
        fetches = torch.compiler.is_compiling() and chosen.numel() <= self.config.num_experts
        made = self.fetch(tokens, chosen) if fetches else self.send(tokens, chosen)
        shares = made * rearrange(weights, "tokens chosen -> tokens chosen 1")
        summed = reduce(shares.to(x.dtype), "tokens chosen embed -> tokens embed", "sum")
        return rearrange(summed, "(batch seq) embed -> batch seq embed", batch=x.shape[0])

    @checked
    def choose(
        self, tokens: Float[Tensor, "tokens embed"]
    ) -> tuple[Float[Tensor, "tokens chosen"], Int[Tensor, "tokens chosen"]]:
        """For each token, which experts, and the weight of each; in float32 at least.

        The weights are the router's probabilities, made to add up to one again among those chosen.
        """
        scores: Float[Tensor, "tokens experts"] = self.router(tokens)
        probabilities = F.softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1)
        best = probabilities.topk(self.config.num_chosen, dim=-1)
        return best.values / reduce(best.values, "tokens chosen -> tokens 1", "sum"), best.indices

    @checked
    def send(
        self, tokens: Float[Tensor, "tokens embed"], chosen: Int[Tensor, "tokens chosen"]
    ) -> Float[Tensor, "tokens chosen embed"]:
        """Send tokens to experts: sorted by expert, so that each sees those that chose it as one matrix."""
        assigned = rearrange(chosen, "tokens chosen -> (tokens chosen)")
        order = assigned.argsort(stable=True)
        token = order // chosen.shape[1]
        made, start = [], 0
        for expert, count in enumerate(_counts(assigned, self.config.num_experts)):
            made.append(self.think(tokens[token[start : start + count]], expert))
            start += count
        unsorted = torch.cat(made)[order.argsort()]
        return rearrange(unsorted, "(tokens chosen) embed -> tokens chosen embed", chosen=chosen.shape[1])

    @checked
    def think(self, some: Float[Tensor, "some embed"], expert: int) -> Float[Tensor, "some embed"]:
        """One expert's MLP, on the tokens that were sent to it."""
        opened = self.activation(F.linear(some, self.gate[expert]))
        return F.linear(opened * F.linear(some, self.up[expert]), self.down[expert])

    @checked
    def fetch(
        self, tokens: Float[Tensor, "tokens embed"], chosen: Int[Tensor, "tokens chosen"]
    ) -> Float[Tensor, "tokens chosen embed"]:
        """The same the other way round: each token fetches the matrices of its experts, whichever they are."""
        gate, up, down = self.gate[chosen], self.up[chosen], self.down[chosen]
        opened = self.activation(einsum(tokens, gate, "tokens embed, tokens chosen mlp embed -> tokens chosen mlp"))
        active = opened * einsum(tokens, up, "tokens embed, tokens chosen mlp embed -> tokens chosen mlp")
        return einsum(active, down, "tokens chosen mlp, tokens chosen embed mlp -> tokens chosen embed")


def _counts(assigned: Tensor, experts: int) -> list[int]:
    """How many tokens each expert gets; on the meta device, where no one knows, as many as each other."""
    if assigned.is_meta:
        share, rest = divmod(len(assigned), experts)
        return [share + (expert < rest) for expert in range(experts)]
    return torch.bincount(assigned, minlength=experts).tolist()


class MixtralBlock(Block):
    """Llama's block with experts in the MLP's place."""

    mlp_class: ClassVar[type[Any]] = MixtureOfExperts


class Mixtral(Mistral):
    """Mistral with experts.

    >>> model = Mixtral(MixtralConfig.mixtral_tiny())
    >>> model(torch.tensor([[72, 101, 108, 108, 111]])).shape
    torch.Size([1, 5, 256])
    """

    block_class: ClassVar[type[Any]] = MixtralBlock


Mixtral.format = Mistral.format.extended(
    "mixtral",
    "MixtralForCausalLM",
    MixtralConfig,
    fields=(Field("num_local_experts", "num_experts", 8), Field("num_experts_per_tok", "num_chosen", 2)),
    ignored_fields={
        "output_router_logits": "what the reference's forward returns",
        "router_aux_loss_coef": "a loss of training, added by its loop",
        "router_jitter_noise": "noise in training",
    },
    weights=each_layer(
        "layers.{layer}.block_sparse_moe",
        "blocks.{layer}.mlp",
        Weight("gate.weight", "router.weight", "experts embed"),
        Weight("experts.{expert}.w1.weight", "gate", "experts mlp embed"),
        Weight("experts.{expert}.w3.weight", "up", "experts mlp embed"),
        Weight("experts.{expert}.w2.weight", "down", "experts embed mlp"),
    ),
    from_disk=True,
)
"""How Mixtral's checkpoints name and lay out what is above: each expert's matrices by themselves."""
