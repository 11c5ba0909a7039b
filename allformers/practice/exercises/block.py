"""The block: attention and MLP, each of which only ever adds to the residual stream.

A transformer is a stack of identical blocks. Through all of them runs the residual stream, one vector for each
position. A block reads it twice: attention gathers from other positions, then the MLP (multi-layer perceptron) works on
each position alone. Neither overwrites anything: what they make is added, by a residual connection.

    x_mid  = x     + attention(norm of x)
    result = x_mid + mlp(another norm of x_mid)

Each norm stands in front of what it feeds and outside the stream ("pre-norm"). So there is a way from the first block
to the last on which nothing happens but additions. If attention and MLP give zero, the block changes nothing:

    >>> import torch
    >>> config = GPT2Config(vocab_size=5, context_length=4, embedding_dim=6, num_layers=1, num_heads=2, mlp_dim=8)
    >>> block = Block(config)
    >>> for layer in (block.attention.output, block.mlp.down):
    ...     _ = torch.nn.init.zeros_(layer.weight), torch.nn.init.zeros_(layer.bias)
    >>> x, mask = torch.randn(1, 3, 6), torch.ones(1, 1, 3, 3, dtype=torch.bool)
    >>> torch.equal(block(x, mask), x)
    True

The parts are made for you in `__init__`: attention, the MLP and the norms are those that you wrote.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allformers.models.gpt2 import gpt2
from allformers.models.gpt2.gpt2 import GPT2Config
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.attention import CausalSelfAttention
from allformers.practice.exercises.layer_norm import LayerNorm
from allformers.practice.exercises.mlp import MLP


class Block(nn.Module):
    """One layer: positions talk, then each thinks, and both add to the stream."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = LayerNorm(config.embedding_dim, config.norm_eps)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = LayerNorm(config.embedding_dim, config.norm_eps)
        self.mlp = MLP(config.embedding_dim, config.mlp_dim)

    @checked
    def forward(
        self, x: Float[Tensor, "batch seq embed"], mask: Bool[Tensor, "#batch 1 seq seq_k"]
    ) -> Float[Tensor, "batch seq embed"]:
        """Add to the residual stream what attention makes of it, and then what the MLP makes of that.

        Args:
            x: the residual stream.
            mask: True where a query may attend to a key; attention takes it after `x`.
        """
        x_mid: Float[Tensor, "batch seq embed"] = x + self.attention(self.attention_norm(x), mask)
        return x_mid + self.mlp(self.mlp_norm(x_mid))


def cases() -> Iterator[Case]:
    """Several of everything, and a single position."""
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=3, mlp_dim=20)
    yield Case(torch.randn(2, 5, 12), _causal(5), made_with=(config,))
    yield Case(torch.randn(3, 1, 12), _causal(1), made_with=(config,))


@checked
def _causal(seq: int) -> Bool[Tensor, "1 1 seq seq_k"]:
    return rearrange(torch.ones(seq, seq, dtype=torch.bool).tril(), "seq seq_k -> 1 1 seq seq_k")


def _made(block_class: Callable[[GPT2Config], nn.Module], *silent: str) -> nn.Module:
    """A block in which some layers give zero."""
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=3, mlp_dim=20)
    block = block_class(config).eval()
    for name in silent:
        for parameter in block.get_submodule(name).parameters():
            nn.init.zeros_(parameter)
    return block


def a_block_that_adds_nothing_changes_nothing(block_class: Callable[[GPT2Config], nn.Module]) -> None:
    """With attention and MLP silenced the stream passes as it is: no norm and no factor stands on its way."""
    x = torch.randn(2, 5, 12)
    change = (_made(block_class, "attention.output", "mlp.down")(x, _causal(5)) - x).abs()
    most, place = largest(change, "batch seq embed")
    if most > 1e-6:
        raise Fault(f"attention and MLP give zero, but the stream has changed by {most:.4g} at {place}")


def the_mlp_reads_what_attention_has_added(block_class: Callable[[GPT2Config], nn.Module]) -> None:
    """The MLP works on what was gathered: another token at position 0 reaches what it does at position 4."""
    block, x = _made(block_class), torch.randn(1, 5, 12)
    read: list[Tensor] = []
    block.get_submodule("mlp").register_forward_pre_hook(lambda module, given: read.append(given[0]))
    other = x.clone()
    other[:, 0] = torch.randn(12)
    block(x, _causal(5))
    block(other, _causal(5))
    if len(read) != 2:
        raise Fault(f"the MLP was called {len(read)} times in two passes")
    if largest((read[1] - read[0])[:, 4].abs(), "batch embed")[0] < 1e-6:
        raise Fault("another vector at seq 0 changed nothing in what the MLP reads at seq 4")


exercise = Exercise(
    __name__,
    solution=(Block,),
    cases=cases,
    reference=gpt2.Block,
    properties=(a_block_that_adds_nothing_changes_nothing, the_mlp_reads_what_attention_has_added),
    hints=paragraphs(
        """
        Two lines, one for each sub-layer. Each says: the stream, plus what the sub-layer makes of the normalised
        stream.

        The first is `x_mid = x + self.attention(self.attention_norm(x), mask)`. What the MLP reads is `x_mid`, not `x`:
        it works on what was gathered.

        `return x_mid + self.mlp(self.mlp_norm(x_mid))`.
        """
    ),
    page="gpt2.html#Block",
    part_of="allformers.models.gpt2.gpt2.Block",
    prerequisites=("layer-norm", "attention", "mlp"),
)
