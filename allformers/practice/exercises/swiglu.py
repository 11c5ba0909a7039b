"""SwiGLU: an MLP with a gate that decides, number by number, what passes.

GPT-2's MLP widens a position's vector, applies GELU to every number, and narrows it again. One number has to say two
things at once there: what was found, and whether it matters. Llama has two layers that widen instead of one. `up` says
what was found. `gate` says how much of it passes: its result goes through SiLU, and multiplies that of `up`, number by
number. `down` narrows the product.

SiLU is x times its own sigmoid, `x * torch.sigmoid(x)`: nearly 0 where x is far below 0, nearly x where it is far
above. So the gate is closed where `gate` is far below 0, and above it opens wider and wider. A gated linear unit with
this function, which is also called Swish, is a SwiGLU.

    >>> import torch
    >>> mlp = SwiGLU(embedding_dim=64, mlp_dim=160)
    >>> mlp.gate.weight.shape, mlp.up.weight.shape, mlp.down.weight.shape
    (torch.Size([160, 64]), torch.Size([160, 64]), torch.Size([64, 160]))
    >>> for layer, value in ((mlp.gate, 2.0), (mlp.up, 3.0), (mlp.down, 1.0)):
    ...     _ = torch.nn.init.constant_(layer.weight, value / layer.in_features)
    >>> round(mlp(torch.ones(1, 1, 64))[0, 0, 0].item(), 3)
    5.285

There every number of `gate` is 2 and every number of `up` is 3. SiLU makes 1.7616 of 2, and what passes is 3 times
that. Each position is by itself, and no layer has a bias.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allformers.models.llama import llama
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)): an MLP in which a gate decides what passes."""

    def __init__(self, embedding_dim: int, mlp_dim: int) -> None:
        super().__init__()
        self.axes = {"embed": embedding_dim, "mlp": mlp_dim}
        self.gate = nn.Linear(embedding_dim, mlp_dim, bias=False)
        self.up = nn.Linear(embedding_dim, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, embedding_dim, bias=False)

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Transform each position by itself."""
        gate: Float[Tensor, "batch seq mlp"] = self.gate(x)
        silu: Float[Tensor, "batch seq mlp"] = gate * torch.sigmoid(gate)
        activated: Float[Tensor, "batch seq mlp"] = silu * self.up(x)
        return self.down(activated)


def cases() -> Iterator[Case]:
    """Wider inside and narrower, several positions and one, small numbers and large ones."""
    yield Case(torch.randn(2, 5, 12), made_with=(12, 20))
    yield Case(5 * torch.randn(3, 1, 7), made_with=(7, 3))
    yield Case(torch.randn(1, 4, 6), made_with=(6, 17))


Made = Callable[[int, int], nn.Module]


def _with_gate(mlp_class: Made, gate: float) -> tuple[Tensor, Tensor]:
    """What comes out where every number of `gate` is the same, and what would if all that was found passed."""
    mlp, x = mlp_class(12, 20), torch.rand(1, 3, 12) + 0.5
    x[..., 0] = 1.0
    with torch.no_grad():
        mlp.get_parameter("gate.weight").zero_()
        mlp.get_parameter("gate.weight")[:, 0] = gate
        return mlp(x), mlp.get_submodule("down")(mlp.get_submodule("up")(x))


def a_closed_gate_lets_nothing_pass(mlp_class: Made) -> None:
    """Where `gate` is far below 0, SiLU makes 0 of it, and 0 times whatever was found is 0."""
    result, _ = _with_gate(mlp_class, -50.0)
    most, place = largest(result.abs(), "batch seq embed")
    if most > 1e-4:
        raise Fault(f"with -50 everywhere in `gate`, {most:.4g} came out at {place}")


def an_open_gate_lets_all_pass_as_often_as_it_says(mlp_class: Made) -> None:
    """Where `gate` is far above 0, SiLU leaves it as it is: at 30, what was found passes 30 times."""
    result, all_of_it = _with_gate(mlp_class, 30.0)
    most, place = largest((result - 30 * all_of_it).abs(), "batch seq embed")
    if most > 1e-3:
        raise Fault(f"with 30 everywhere in `gate`, what came out is not 30 times what was found: {place}, {most:.4g}")


def each_position_is_by_itself(mlp_class: Made) -> None:
    """What stands at one position makes no difference to another: only attention carries anything along."""
    mlp, x = mlp_class(12, 20), torch.randn(2, 5, 12)
    other = x.clone()
    other[1, 2] += 2.0
    change = (mlp(other) - mlp(x)).abs()
    change[1, 2] = 0
    most, place = largest(change, "batch seq embed")
    if most > 1e-6:
        raise Fault(f"another vector at batch 1, seq 2 changed the result at {place} by {most:.4g}")


exercise = Exercise(
    __name__,
    solution=(SwiGLU,),
    cases=cases,
    reference=llama.MLP,
    properties=(
        a_closed_gate_lets_nothing_pass,
        an_open_gate_lets_all_pass_as_often_as_it_says,
        each_position_is_by_itself,
    ),
    hints=paragraphs(
        """
        Three steps: what the gate says, what passes of what was found, and `down`. `gate` and `up` both read `x`.

        SiLU belongs to the gate alone: with `gate = self.gate(x)`, it is `silu = gate * torch.sigmoid(gate)`. What `up`
        has found goes through no activation function; it is multiplied, by `*`, since both have the axes `batch seq
        mlp`.

        `return self.down(silu * self.up(x))`.
        """
    ),
    page="llama.html#MLP",
    part_of="allformers.models.llama.llama.MLP",
)
