"""Rotary positions: turn queries and keys, and only distances count.

GPT-2 adds a vector for each position to the stream. Llama adds nothing. It says where a token stands by turning its
queries and its keys: the numbers of a head are taken in pairs, each pair is a point in the plane, and the point is
turned by an angle that grows with the position. A dot product depends on the angle between two vectors. If both are
turned as far as they are along in the text, what is left in the score is how far apart they stand.

Three functions do it:

1. `frequencies`: how far each pair turns from one position to the next, in radians. A head has `head_dim / 2` pairs,
   and pair i turns by `theta ** (-2 * i / head_dim)`: the first by 1, the last by nearly `1 / theta`. Fast ones tell
   neighbours apart, slow ones far from near.
2. `angles`: position times frequency, for each position and each pair.
3. `rotate`: turn. A point (a, b) turned by an angle becomes (a cos - b sin, b cos + a sin).

Pair i is number i of the first half of a head and number i of its second half; neighbours are no pair.

    >>> import torch
    >>> frequencies(8, 10000.0)
    tensor([1.0000, 0.1000, 0.0100, 0.0010])
    >>> x = torch.tensor([[[[1.0, 2.0, 0.0, 0.0]]]])
    >>> rotate(x, torch.tensor([[0.5236, 0.0]]))
    tensor([[[[0.8660, 2.0000, 0.5000, 0.0000]]]])

The head has the pairs (1, 0) and (2, 0). The first is turned by 0.5236, which is 30 degrees, and becomes (0.866, 0.5);
the second stays where it is.

You may assume that `head_dim` is even.
"""

import math
from collections.abc import Callable, Iterator

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from allformers.nn import rope
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


@checked
def frequencies(head_dim: int, theta: float) -> Float[Tensor, "pair"]:
    """How far each pair turns from one position to the next: from 1 down to nearly 1 / theta."""
    exponents = torch.arange(0, head_dim, 2) / head_dim
    return 1.0 / theta**exponents


@checked
def angles(positions: Int[Tensor, "seq"], speeds: Float[Tensor, "pair"]) -> Float[Tensor, "seq pair"]:
    """By how much each pair is turned at each position.

    Args:
        positions: where in the text, from 0.
        speeds: what `frequencies` gives.
    """
    return einsum(positions.to(speeds.dtype), speeds, "seq, pair -> seq pair")


@checked
def rotate(
    x: Float[Tensor, "batch heads seq head_dim"], turned: Float[Tensor, "seq pair"]
) -> Float[Tensor, "batch heads seq head_dim"]:
    """Turn each pair by its angle.

    Args:
        x: queries or keys.
        turned: what `angles` gives.
    """
    cosine, sine = turned.cos(), turned.sin()
    first, second = rearrange(x, "batch heads seq (component pair) -> component batch heads seq pair", component=2)
    both = [first * cosine - second * sine, second * cosine + first * sine]
    return rearrange(both, "component batch heads seq pair -> batch heads seq (component pair)")


def cases() -> Iterator[Case]:
    """Several pairs and a single one, one position and many."""
    yield Case(torch.randn(2, 3, 5, 8), 3 * torch.randn(5, 4))
    yield Case(torch.randn(1, 1, 1, 6), torch.randn(1, 3))
    yield Case(torch.randn(3, 2, 7, 2), torch.randn(7, 1))


Function = Callable[..., Tensor]


def speeds_fall_from_1_to_nearly_1_over_theta(frequencies: Function, angles: Function, rotate: Function) -> None:
    """Each pair is slower than the one before, by the same factor: pair i turns by `theta ** (-2 * i / head_dim)`."""
    for head_dim, theta, wanted in ((8, 10000.0, [1.0, 0.1, 0.01, 0.001]), (6, 8.0, [1.0, 0.5, 0.25]), (2, 9.0, [1.0])):
        speeds = frequencies(head_dim, theta).tolist()
        if len(speeds) != len(wanted):
            raise Fault(f"a head of width {head_dim} got {len(speeds)} pairs", f"It has {len(wanted)}.")
        if any(abs(speed - right) > 1e-5 for speed, right in zip(speeds, wanted, strict=True)):
            told = f"with `head_dim` {head_dim} and `theta` {theta:g} the speeds are {_said(speeds)}"
            raise Fault(told, f"Pair i turns by `theta ** (-2 * i / head_dim)`: {_said(wanted)}.")


def an_angle_is_position_times_speed(frequencies: Function, angles: Function, rotate: Function) -> None:
    """At position 0 nothing is turned, and at position 10 each pair ten times as far as at position 1."""
    turned = angles(torch.tensor([0, 1, 10]), torch.tensor([1.0, 0.5]))
    for place, row, wanted in zip((0, 1, 10), turned.tolist(), ([0.0, 0.0], [1.0, 0.5], [10.0, 5.0]), strict=True):
        if any(abs(angle - right) > 1e-5 for angle, right in zip(row, wanted, strict=True)):
            told = f"with the speeds 1 and 0.5, position {place} is turned by {_said(row)}"
            raise Fault(told, f"An angle is position times speed: {_said(wanted)}.")


def turning_keeps_the_length(frequencies: Function, angles: Function, rotate: Function) -> None:
    """A rotation changes where a vector points, and never how long it is."""
    x = torch.randn(2, 3, 5, 8)
    result = rotate(x, torch.randn(5, 4))
    before = reduce(x * x, "batch heads seq head_dim -> batch heads seq", "sum").sqrt()
    after = reduce(result * result, "batch heads seq head_dim -> batch heads seq", "sum").sqrt()
    most, place = largest((after - before).abs(), "batch heads seq")
    if most > 1e-4:
        raise Fault(f"the length of the vector at {place} has changed by {most:.4g}")


def a_quarter_turn_makes_0_and_1_of_1_and_0(frequencies: Function, angles: Function, rotate: Function) -> None:
    """A pair is a number of the first half and its fellow in the second, and turns from the first to the second."""
    x = torch.tensor([[[[1.0, 2.0, 0.0, 0.0]]]])
    result = rotate(x, torch.tensor([[math.pi / 2, 0.0]]))[0, 0, 0]
    if largest((result - torch.tensor([0.0, 2.0, 1.0, 0.0])).abs(), "head_dim")[0] > 1e-5:
        told = " ".join(f"{number:.3g}" for number in (result.double().round(decimals=4) + 0.0).tolist())
        raise Fault(
            f"1 2 0 0, with its first pair turned by a quarter, became {told}",
            "The pairs are (1, 0) and (2, 0); (1, 0) becomes (0, 1), and so it is 0 2 1 0.",
        )


def only_the_distance_counts(frequencies: Function, angles: Function, rotate: Function) -> str:
    """A query and a key that are 2 positions apart have the same dot product wherever in the text they stand."""
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at: int, other: int) -> float:
        speeds = frequencies(8, 100.0)
        one = rotate(query, angles(torch.tensor([at]), speeds))
        two = rotate(key, angles(torch.tensor([other]), speeds))
        return float(einsum(one, two, "batch heads seq head_dim, batch heads seq_k head_dim ->"))

    near, far = score(3, 1), score(40, 38)
    if abs(near - far) > 1e-3:
        raise Fault(f"at positions 3 and 1 the dot product is {near:.4g}, at 40 and 38 it is {far:.4g}")
    if abs(near - score(9, 1)) < 1e-3:
        raise Fault(f"at positions 3 and 1 the dot product is {near:.4g}, and at 9 and 1 the same")
    return f"positions 3 and 1 give {near:.3f}, 40 and 38 give {far:.3f}, 9 and 1 give {score(9, 1):.3f}"


def reference(x: Tensor, turned: Tensor) -> Tensor:
    """The package's own, which takes cosines and sines once for all layers."""
    return rope.rotate(x, rope.turns(turned))


def _said(numbers: list[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


exercise = Exercise(
    __name__,
    solution=(frequencies, angles, rotate),
    cases=cases,
    reference=reference,
    properties=(
        speeds_fall_from_1_to_nearly_1_over_theta,
        an_angle_is_position_times_speed,
        turning_keeps_the_length,
        a_quarter_turn_makes_0_and_1_of_1_and_0,
        only_the_distance_counts,
    ),
    hints=paragraphs(
        """
        For `frequencies`: `torch.arange(0, head_dim, 2)` counts 0, 2, 4 ...: that is `2 * i` for every pair. For
        `angles`: each position is multiplied with each speed, `einsum(..., "seq, pair -> seq pair")`; positions are
        integers, so make them what the speeds are: `positions.to(speeds.dtype)`.

        For `rotate`: one pattern takes the two halves apart, `first, second = rearrange(x, "batch heads seq (component
        pair) -> component batch heads seq pair", component=2)`. `component` is slow in the bracket, so it counts the
        halves. `turned.cos()` has the axes `seq pair` and goes with both.

        The new halves are `[first * cosine - second * sine, second * cosine + first * sine]`. `rearrange` takes a list,
        too, and counts what is in it by the first axis: `"component batch heads seq pair -> batch heads seq (component
        pair)"`.
        """
    ),
    page="llama.html#rotate",
    part_of="allformers.nn.rope.rotate",
    after=("split-heads", "attention"),
)
