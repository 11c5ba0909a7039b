"""The MLP: each position thinks about what it has gathered, alone.

After attention has brought something to a position, a small network works on it: a linear layer, `up`, widens the
vector from `embed` to `mlp` numbers, an activation function is applied to each of them, and a second linear layer,
`down`, narrows the result to `embed` again. It is called an MLP (multi-layer perceptron), and the same one runs at
every position. Two thirds of a block's weights are here.

Without the activation the two layers would be one. With it, each of the `mlp` numbers is a question about the vector:
does it point this way? For every yes, the second layer writes something into the result.

    >>> import torch
    >>> mlp = MLP(embedding_dim=2, mlp_dim=3)
    >>> with torch.no_grad():
    ...     for parameter in mlp.parameters():
    ...         _ = parameter.fill_(1.0)
    >>> mlp(torch.tensor([[[1.0, 8.0], [-20.0, 1.0]]])).detach()
    tensor([[[31., 31.],
             [ 1.,  1.]]])

All weights are 1 here. At the first position each of the three numbers becomes 1 + 8 + 1 = 10, which GELU keeps; they
and a bias add up to 31. At the second position GELU makes zeros of them, and the bias is left.

The block adds the result to the residual stream; that is not done here. The layers are made for you in `__init__`, and
the activation function is your GELU.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allformers.models.gpt2 import gpt2
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.gelu import gelu


class MLP(nn.Module):
    """Two linear layers with a GELU between them, the same at each position."""

    def __init__(self, embedding_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.axes = {"embed": embedding_dim, "mlp": mlp_dim}
        self.up = nn.Linear(embedding_dim, mlp_dim)
        self.down = nn.Linear(mlp_dim, embedding_dim)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Transform each position by itself."""
        activated: Float[Tensor, "batch seq mlp"] = gelu(self.up(x))
        return self.down(activated)


def cases() -> Iterator[Case]:
    """Several of everything, a single position, an MLP that is narrower than the stream."""
    yield Case(torch.randn(2, 5, 12), made_with=(12, 20))
    yield Case(torch.randn(3, 1, 12), made_with=(12, 20))
    yield Case(torch.randn(1, 7, 10), made_with=(10, 7))


Made = Callable[[int, int], nn.Module]


def positions_do_not_mix(mlp_class: Made) -> None:
    """The MLP works at each position alone: another vector at seq 2 changes the result at seq 2, and nowhere else."""
    mlp, x = mlp_class(12, 20), torch.randn(1, 5, 12)
    other = x.clone()
    other[:, 2] += 3.0
    change = (mlp(other) - mlp(x)).abs()[0]
    change[2] = 0
    most, place = largest(change, "seq embed")
    if most > 1e-6:
        raise Fault(f"another vector at seq 2 changed the result at {place} by {most:.4g}")


def it_is_not_linear(mlp_class: Made) -> None:
    """Of a linear function the middle between two results is the result of the middle; of an MLP it is not."""
    mlp, x = mlp_class(12, 20), 3 * torch.randn(1, 5, 12)
    apart = (mlp(x) + mlp(-x)) / 2 - mlp(torch.zeros(1, 5, 12))
    if largest(apart.abs(), "batch seq embed")[0] < 1e-5:
        raise Fault("between x and -x it is a straight line: two layers with nothing between them are one")


def the_result_is_what_down_gives(mlp_class: Made) -> None:
    """The result is whatever `down` makes it, below zero too: 5 less in its bias is 5 less in the result."""
    mlp, x = mlp_class(12, 20), torch.randn(1, 5, 12)
    before = mlp(x)
    with torch.no_grad():
        mlp.get_parameter("down.bias").sub_(5.0)
    most, place = largest((mlp(x) - before + 5).abs(), "batch seq embed")
    if most > 1e-4:
        raise Fault(f"the bias of `down` became 5 less, and the result at {place} is {most:.4g} away from 5 less")


def it_leaves_adding_to_the_block(mlp_class: Made) -> None:
    """If the layers give zero, so does the MLP: the residual stream is not in its result."""
    mlp = mlp_class(12, 20)
    for parameter in mlp.parameters():
        nn.init.zeros_(parameter)
    most, place = largest(mlp(torch.randn(1, 5, 12)).abs(), "batch seq embed")
    if most > 1e-6:
        raise Fault(f"all weights are 0, and the result at {place} is {most:.4g} away from 0")


exercise = Exercise(
    __name__,
    solution=(MLP,),
    cases=cases,
    reference=partial(gpt2.MLP, dropout=0.0),
    properties=(
        positions_do_not_mix,
        it_leaves_adding_to_the_block,
        it_is_not_linear,
        the_result_is_what_down_gives,
    ),
    hints=paragraphs(
        """
        Three steps, one after the other: `self.up`, your `gelu`, `self.down`.

        A linear layer works on the last axis and leaves all others alone, so nothing has to be rearranged.

        `activated = gelu(self.up(x))`, then `return self.down(activated)`.
        """
    ),
    page="gpt2.html#MLP",
    part_of="allformers.models.gpt2.gpt2.MLP",
    prerequisites=("gelu",),
)
