"""Mixtral: Mistral with eight MLPs in each block, of which every token uses the two that a router picks for it.

So the model knows as much as its size says and costs as much as the part that is used.

Source: Jiang et al. 2024, "Mixtral of Experts", arXiv:2401.04088; sparse experts since Shazeer et al. 2017,
arXiv:1701.06538.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.checkpoints import Field, Weight
from allformers.linear import Linear
from allformers.models.gpt2.gpt2 import ACTIVATIONS
from allformers.models.llama.llama import WEIGHTS, Block
from allformers.models.mistral.mistral import Mistral, MistralConfig
from allformers.shapes import checked


@dataclass(frozen=True, kw_only=True)
class MixtralConfig(MistralConfig):
    """The sizes and switches of a Mixtral: Mistral's, and the experts.

    Attributes:
        num_experts: MLPs in each block.
        num_chosen: how many of them each token uses.

    Raises:
        ValueError: a value is out of range; the message says which, and what would do.
    """

    num_experts: int
    num_chosen: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_count("num_experts")
        self._check_count("num_chosen")
        if self.num_chosen > self.num_experts:
            raise ValueError(f"num_chosen {self.num_chosen} is more than there are experts, {self.num_experts}")

    @property
    def axes(self) -> dict[str, int]:
        """The size of every axis that the configuration fixes."""
        return {**super().axes, "experts": self.num_experts, "chosen": self.num_chosen}

    @classmethod
    def presets(cls) -> dict[str, Callable[[], Self]]:
        """Published sizes and a small one, by name."""
        return {make.__name__: make for make in (cls.mixtral_tiny, cls.mixtral_8x7b, cls.mixtral_8x22b)}

    @classmethod
    def mixtral_tiny(cls) -> Self:
        """A model for tests and first steps: four experts, two for each token."""
        sizes = {"vocab_size": 256, "context_length": 128, "num_experts": 4, "num_chosen": 2}
        return cls._make(2, 4, 2, 16, 64, 96, **sizes)

    @classmethod
    def mixtral_8x7b(cls) -> Self:
        """`mistralai/Mixtral-8x7B-v0.1`: 46,702,792,704 parameters."""
        sizes = {"context_length": 32768, "rope_theta": 1000000.0, "num_experts": 8, "num_chosen": 2}
        return cls._make(32, 32, 8, 128, 4096, 14336, **sizes)

    @classmethod
    def mixtral_8x22b(cls) -> Self:
        """`mistralai/Mixtral-8x22B-v0.1`: 140,630,071,296 parameters."""
        sizes = {"context_length": 65536, "rope_theta": 1000000.0, "num_experts": 8, "num_chosen": 2}
        return cls._make(56, 48, 8, 128, 6144, 16384, vocab_size=32768, **sizes)


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
        """Send each token to its experts and add up what they make of it."""
        tokens = rearrange(x, "batch seq embed -> (batch seq) embed")
        weights, chosen = self.choose(tokens)
        # Sorted by expert, so that each expert sees its tokens as one matrix.
        assigned = rearrange(chosen, "tokens chosen -> (tokens chosen)")
        order = assigned.argsort(stable=True)
        token = order // chosen.shape[1]
        made, start = [], 0
        for expert, count in enumerate(_counts(assigned, self.config.num_experts)):
            made.append(self.think(tokens[token[start : start + count]], expert))
            start += count
        shares = rearrange(rearrange(weights, "tokens chosen -> (tokens chosen)")[order], "some -> some 1")
        summed = torch.zeros_like(tokens).index_add(0, token, (torch.cat(made) * shares).to(tokens.dtype))
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
    def think(self, some: Float[Tensor, "some embed"], expert: int) -> Float[Tensor, "some embed"]:
        """One expert's MLP, on the tokens that were sent to it."""
        opened = self.activation(F.linear(some, self.gate[expert]))
        return F.linear(opened * F.linear(some, self.up[expert]), self.down[expert])


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


Mixtral.format = dataclasses.replace(
    Mistral.format,
    model_type="mixtral",
    architecture="MixtralForCausalLM",
    config_class=MixtralConfig,
    fields=(
        *Mistral.format.fields,
        Field("num_local_experts", "num_experts", 8),
        Field("num_experts_per_tok", "num_chosen", 2),
    ),
    ignored_fields={
        **Mistral.format.ignored_fields,
        "output_router_logits": "what the reference's forward returns",
        "router_aux_loss_coef": "a loss of training, added by its loop",
        "router_jitter_noise": "noise in training",
    },
    weights=(
        *WEIGHTS,
        Weight("layers.{layer}.block_sparse_moe.gate.weight", "blocks.{layer}.mlp.router.weight", "experts embed"),
        Weight(
            "layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
            "blocks.{layer}.mlp.gate",
            "experts mlp embed",
        ),
        Weight(
            "layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
            "blocks.{layer}.mlp.up",
            "experts mlp embed",
        ),
        Weight(
            "layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
            "blocks.{layer}.mlp.down",
            "experts embed mlp",
        ),
    ),
    from_disk=True,
)
"""How Mixtral's checkpoints name and lay out what is above: each expert's matrices by themselves."""
