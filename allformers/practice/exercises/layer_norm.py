"""Layer norm: every position's numbers are brought to a known size.

Every block adds to the residual stream, so its numbers grow with depth. What reads the stream wants numbers of a size
that it knows. Layer norm gives it that, for each position by itself:

1. subtract the mean of the position's numbers, so that their mean is 0;
2. divide by their standard deviation, the root of the mean of their squares, so that it is 1;
3. multiply by `weight` and add `bias`, learned numbers, one of each for every place of `embed`: what the model would
   rather have than 0 and 1.

Before it takes the root, it adds `eps`, a small number, to the mean of the squares: where all numbers of a position are
equal, that mean is 0, and nothing can be divided by it.

    >>> import torch
    >>> norm = LayerNorm(4)
    >>> norm(torch.tensor([[[2.0, 4.0, 6.0, 8.0], [200.0, 400.0, 600.0, 800.0]]])).detach()
    tensor([[[-1.3416, -0.4472,  0.4472,  1.3416],
             [-1.3416, -0.4472,  0.4472,  1.3416]]])

The second position's numbers are a hundred times as large, and come out the same.

`weight` and `bias` are made for you in `__init__`. einops' `reduce(x, pattern, "mean")` takes the mean over every axis
that stands on the left of its pattern and not on the right. PyTorch has all of this as `nn.LayerNorm`, which the
package's own `Block` uses, and yours is compared with; write it without.
"""

from collections.abc import Callable, Iterator

import torch
from einops import reduce
from jaxtyping import Float
from torch import Tensor, nn

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


class LayerNorm(nn.Module):
    """Bring each position's numbers to a mean of 0 and a spread of 1, then to a learned one."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Normalise each position by itself."""
        mean = reduce(x, "batch seq embed -> batch seq 1", "mean")
        centred: Float[Tensor, "batch seq embed"] = x - mean
        variance = reduce(centred**2, "batch seq embed -> batch seq 1", "mean")
        normalised: Float[Tensor, "batch seq embed"] = centred / (variance + self.eps).sqrt()
        return normalised * self.weight + self.bias


def cases() -> Iterator[Case]:
    """Several of everything, a single position, numbers that are large and far from zero, an `eps` that is felt."""
    yield Case(torch.randn(2, 5, 12), made_with=(12, 1e-5))
    yield Case(torch.randn(3, 1, 4), made_with=(4, 1e-5))
    yield Case(30 * torch.randn(1, 7, 10) + 5, made_with=(10, 1e-5))
    yield Case(torch.randn(4, 3, 4), made_with=(4, 0.1))


Made = Callable[[int], nn.Module]


def each_position_has_mean_0(norm_class: Made) -> None:
    """Before the learned numbers act, the mean over `embed` is 0, at every position."""
    means = reduce(norm_class(12)(3 * torch.randn(2, 5, 12) + 4), "batch seq embed -> batch seq", "mean")
    most, place = largest(means.abs(), "batch seq")
    if most > 1e-4:
        raise Fault(f"the numbers at {place} have a mean that is {most:.4g} from 0")


def each_position_has_spread_1(norm_class: Made) -> None:
    """The mean of the squares is 1: the squares are added up and divided by how many there are, not by one less."""
    x = norm_class(12)(3 * torch.randn(2, 5, 12))
    spread = reduce(x**2, "batch seq embed -> batch seq", "mean").sqrt()
    most, place = largest((spread - 1).abs(), "batch seq")
    if most > 1e-3:
        raise Fault(f"the numbers at {place} have a spread that is {most:.4g} from 1")


def how_large_the_stream_is_does_not_matter(norm_class: Made) -> None:
    """Numbers a hundred times as large, or 50 further up, give the same: that is what the norm is for."""
    norm, x = norm_class(12), torch.randn(2, 5, 12)
    for told, other in (("a hundred times as large", 100 * x), ("50 further up", x + 50)):
        most, place = largest((norm(other) - norm(x)).abs(), "batch seq embed")
        if most > 1e-3:
            raise Fault(f"with all numbers {told} the result differs by {most:.4g} at {place}")


def positions_do_not_mix(norm_class: Made) -> None:
    """Each position has its own mean and its own spread; what another holds makes no difference."""
    norm, x = norm_class(12), torch.randn(2, 5, 12)
    other = x.clone()
    other[1, 3] = 10 * torch.randn(12)
    change = (norm(other) - norm(x)).abs()
    change[1, 3] = 0
    most, place = largest(change, "batch seq embed")
    if most > 1e-6:
        raise Fault(f"other numbers at batch 1, seq 3 changed the result at {place} by {most:.4g}")


def equal_numbers_are_no_trouble(norm_class: Made) -> None:
    """Where all numbers are equal there is nothing to divide by but `eps`: the result is 0, then the bias."""
    found = norm_class(12)(torch.full((1, 1, 12), 3.0))
    if not bool((found.abs() < 1e-2).all()):
        raise Fault(f"of twelve 3s it makes {found[0, 0, 0]:.4g}")


exercise = Exercise(
    __name__,
    solution=(LayerNorm,),
    cases=cases,
    reference=nn.LayerNorm,
    properties=(
        positions_do_not_mix,
        each_position_has_mean_0,
        each_position_has_spread_1,
        equal_numbers_are_no_trouble,
        how_large_the_stream_is_does_not_matter,
    ),
    hints=paragraphs(
        """
        Two numbers are needed for each position, a mean and a variance. `reduce(x, "batch seq embed -> batch seq 1",
        "mean")` is the first; its axis of size 1 goes with any width, so it can be subtracted from `x` as it is.

        The variance is the mean of the squares of what is left after the mean has been subtracted: `reduce(centred**2,
        "batch seq embed -> batch seq 1", "mean")`. `torch.var` would divide by one less.

        `eps` stands under the root, and the learned numbers come last: `centred / (variance + self.eps).sqrt() *
        self.weight + self.bias`.
        """
    ),
    page="gpt2.html#Block",
    part_of="allformers.models.gpt2.gpt2.Block",
    prerequisites=("split-heads",),
)
