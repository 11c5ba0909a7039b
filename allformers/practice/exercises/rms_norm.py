"""RMSNorm: bring a vector to a known size, and leave its direction alone.

What is added to the residual stream makes it larger from layer to layer. The next layer should not have to care, so a
norm brings each position's vector to a known size first. LayerNorm subtracts the mean, divides by the spread, scales
and shifts. What helps in training is the size, and so Llama keeps no more than that: divide by the root of the mean
square, then scale each number by a learned `weight`.

    x / sqrt(mean of x squared + eps) * weight

The mean goes over `embed`, for each position by itself. `eps` stands inside the root, and keeps a vector of zeros from
being divided by zero.

    >>> import torch
    >>> RMSNorm(4, eps=1e-5)(torch.tensor([[[1.0, 1.0, 1.0, 1.0], [0.0, 6.0, 0.0, 8.0]]])).detach()
    tensor([[[1.0000, 1.0000, 1.0000, 1.0000],
             [0.0000, 1.2000, 0.0000, 1.6000]]])

The first vector has the right size already; a layer norm would have made zeros of it. The squares of the second have a
mean of 25, so it is divided by 5.

Models run in half precision, and the largest number in float16 is 65,504: the square of 300 is infinity there. So the
norm is computed in float32, and its result is given back in the dtype that came.
"""

from collections.abc import Callable, Iterator

import torch
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor, nn

from allformers.models.llama import llama
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


class RMSNorm(nn.Module):
    """Divide a vector by its root mean square, then scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    @checked
    def forward(self, x: Float[Tensor, "batch seq embed"]) -> Float[Tensor, "batch seq embed"]:
        """Normalise each position's vector; computed in float32, in the dtype of `x` again at the end."""
        x32 = x.float()
        mean_square = reduce(x32 * x32, "batch seq embed -> batch seq 1", "mean")
        normalised = x32 * torch.rsqrt(mean_square + self.eps)
        return self.weight * normalised.to(x.dtype)


def cases() -> Iterator[Case]:
    """Vectors of any size and with any mean, a single number, and an `eps` that shows."""
    yield Case(torch.randn(2, 5, 12) + 1, made_with=(12, 1e-5))
    yield Case(100 * torch.randn(1, 3, 7), made_with=(7, 1e-5))
    yield Case(torch.randn(3, 1, 1), made_with=(1, 0.5))
    yield Case(torch.randn(2, 4, 10), made_with=(10, 0.5))


Made = Callable[[int, float], nn.Module]


def the_result_has_a_known_size(norm_class: Made) -> None:
    """As long as all weights are 1, the mean square of each position's vector is 1, however large it was."""
    x = torch.randn(3, 5, 12) * rearrange(torch.tensor([0.1, 1.0, 10.0, 100.0, 1000.0]), "seq -> seq 1")
    sizes = reduce(norm_class(12, 1e-6)(x) ** 2, "batch seq embed -> batch seq", "mean").sqrt()
    most, place = largest((sizes - 1).abs(), "batch seq")
    if most > 1e-3:
        raise Fault(f"the root mean square at {place} is {_furthest(sizes):.4g}, expected 1")


def each_position_is_by_itself(norm_class: Made) -> None:
    """A position's vector is divided by its own size: what stands at another one makes no difference."""
    norm, x = norm_class(12, 1e-5), torch.randn(2, 5, 12)
    other = x.clone()
    other[1, 2] *= 10
    change = (norm(other) - norm(x)).abs()
    change[1, 2] = 0
    most, place = largest(change, "batch seq embed")
    if most > 1e-5:
        raise Fault(f"a larger vector at batch 1, seq 2 changed the result at {place} by {most:.4g}")


def the_direction_stays(norm_class: Made) -> None:
    """All numbers of a vector are divided by the same, and nothing is subtracted: a vector of fives becomes ones."""
    result = norm_class(6, 1e-5)(torch.full((1, 1, 6), 5.0))
    most, _ = largest((result - 1).abs(), "batch seq embed")
    if most > 1e-3:
        raise Fault(f"a vector of fives became {_said(result)}")


def a_vector_of_zeros_stays_one(norm_class: Made) -> None:
    """Zero has no size to divide by; `eps`, inside the root, sees to it that zeros come out."""
    result = norm_class(6, 1e-5)(torch.zeros(1, 1, 6))
    if not bool((result == 0).all()):
        raise Fault(f"a vector of zeros became {_said(result)}")


def eps_is_added_before_the_root_is_taken(norm_class: Made) -> None:
    """Added to the mean of the squares: with `eps` 3, a vector of ones is divided by the root of 1 + 3, which is 2."""
    result = norm_class(6, 3.0)(torch.ones(1, 1, 6))
    if largest((result - 0.5).abs(), "batch seq embed")[0] > 1e-4:
        raise Fault(f"with `eps` 3, a vector of ones became {_said(result)}")


def large_numbers_in_half_precision_do_not_overflow(norm_class: Made) -> None:
    """Squares are taken in float32, where they fit; what is given back is float16, as what came."""
    result = norm_class(6, 1e-5).half()(torch.full((1, 1, 6), 300.0, dtype=torch.float16))
    if result.dtype is not torch.float16:
        raise Fault(f"a float16 vector came back as {str(result.dtype).removeprefix('torch.')}")
    if largest((result.float() - 1).abs(), "batch seq embed")[0] > 1e-2:
        raise Fault(
            f"a float16 vector of 300s became {_said(result)}", "Its squares fit in float32, and it becomes ones."
        )


def _said(result: Tensor) -> str:
    return " ".join(f"{number:.4g}" for number in result[0, 0].tolist())


def _furthest(sizes: Tensor) -> float:
    return float(sizes.detach()[(sizes - 1).abs() == (sizes - 1).abs().max()][0])


exercise = Exercise(
    __name__,
    solution=(RMSNorm,),
    cases=cases,
    reference=llama.RMSNorm,
    properties=(
        the_result_has_a_known_size,
        each_position_is_by_itself,
        the_direction_stays,
        a_vector_of_zeros_stays_one,
        eps_is_added_before_the_root_is_taken,
        large_numbers_in_half_precision_do_not_overflow,
    ),
    hints=paragraphs(
        """
        One `reduce` takes the mean of the squares, and can leave an axis of size 1 where `embed` was, so that the
        result goes with `x` again. `x.float()` makes float32 of what comes.

        `mean_square = reduce(x32 * x32, "batch seq embed -> batch seq 1", "mean")`, where `x32` is `x.float()`. Add
        `self.eps` before you take the root; `torch.rsqrt` is one divided by the root.

        `normalised = x32 * torch.rsqrt(mean_square + self.eps)`, and then `self.weight * normalised.to(x.dtype)`.
        """
    ),
    page="llama.html#RMSNorm",
    part_of="allformers.models.llama.llama.RMSNorm",
)
