"""RoPE: rotate queries and keys by their position, and only distances count.

GPT-2 adds a vector for each position to the residual stream. Llama adds nothing. It has RoPE (rotary position
embedding), which says where a token stands by rotating its queries and its keys: the numbers of a head are taken in
pairs, each pair is a point in the plane, and the point is rotated by an angle that grows with the position. A dot
product depends on the angle between two vectors. If each is rotated by an angle in proportion to its position, what is
left in the score is how far apart the two stand.

Three functions do it:

1. `default_inv_freq`: the angle, in radians, by which each pair rotates from one position to the next. A head has
   `head_dim / 2` pairs, and pair i rotates by `theta ** (-2 * i / head_dim)`: the first by 1, the last by nearly
   `1 / theta`. Fast pairs tell neighbours apart, slow ones tell far from near.
2. `rope_cos_sin`: the angle of each pair at each position is position times `inv_freq`; its cosine and its sine are the
   result. They are computed once and serve all layers.
3. `apply_rope`: a pair (a, b) becomes (a cos - b sin, b cos + a sin).

Pair i is number i of the first half of a head and number i of its second half; neighbours are no pair.

    >>> import torch
    >>> inv_freq = default_inv_freq(8, 10000.0)
    >>> inv_freq
    tensor([1.0000, 0.1000, 0.0100, 0.0010])
    >>> cos, sin = rope_cos_sin(torch.tensor([0, 1]), inv_freq)
    >>> cos
    tensor([[1.0000, 1.0000, 1.0000, 1.0000],
            [0.5403, 0.9950, 0.9999, 1.0000]])
    >>> x = torch.tensor([[[[1.0, 2.0, 0.0, 0.0]]]])
    >>> apply_rope(x, torch.tensor([[0.8660, 1.0]]), torch.tensor([[0.5, 0.0]]))
    tensor([[[[0.8660, 2.0000, 0.5000, 0.0000]]]])

The head has the pairs (1, 0) and (2, 0). The first is rotated by 30 degrees, whose cosine is 0.866 and whose sine is
0.5, and becomes (0.866, 0.5); the second stays where it is.

Queries may have another axis in front of `seq` than keys, so `apply_rope` takes any: in an annotation and in a pattern
of einops, `...` stands for all axes that are not named. You may assume that `head_dim` is even.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import einsum, rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from allformers.nn import rope
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs


@checked
def default_inv_freq(head_dim: int, theta: float) -> Float[Tensor, "pair"]:
    """The angle by which each pair rotates per position: from 1 down to nearly 1 / theta."""
    exponents = torch.arange(0, head_dim, 2) / head_dim
    return 1.0 / theta**exponents


@checked
def rope_cos_sin(
    positions: Int[Tensor, "seq"], inv_freq: Float[Tensor, "pair"]
) -> tuple[Float[Tensor, "seq pair"], Float[Tensor, "seq pair"]]:
    """Cosine and sine of the angle by which each pair is rotated at each position.

    Args:
        positions: where in the text, from 0.
        inv_freq: the angle by which each pair rotates per position.
    """
    angles = einsum(positions.to(inv_freq.dtype), inv_freq, "seq, pair -> seq pair")
    return angles.cos(), angles.sin()


@checked
def apply_rope(
    x: Float[Tensor, "... seq head_dim"], cos: Float[Tensor, "seq pair"], sin: Float[Tensor, "seq pair"]
) -> Float[Tensor, "... seq head_dim"]:
    """Rotate each pair (a, b) to (a cos - b sin, b cos + a sin). A pair is (x[i], x[i + head_dim / 2]).

    Args:
        x: queries or keys.
        cos: the cosine for each position and pair.
        sin: likewise the sine.
    """
    a, b = rearrange(x, "... seq (component pair) -> component ... seq pair", component=2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def cases() -> Iterator[Case]:
    """Several pairs and a single one, one position and many, heads in groups and no heads at all."""
    yield Case(torch.randn(2, 3, 5, 8), *_cos_sin(3 * torch.randn(5, 4)))
    yield Case(torch.randn(1, 1, 1, 6), *_cos_sin(torch.randn(1, 3)))
    yield Case(torch.randn(3, 2, 7, 2), *_cos_sin(torch.randn(7, 1)))
    yield Case(torch.randn(2, 2, 3, 4, 6), *_cos_sin(torch.randn(4, 3)))
    yield Case(torch.randn(5, 4), *_cos_sin(torch.randn(5, 2)))


def _cos_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    return angles.cos(), angles.sin()


Function = Callable[..., Any]


def frequencies_fall_from_1_to_nearly_1_over_theta(inv_freq: Function, cos_sin: Function, apply: Function) -> None:
    """Each pair is slower than the one before, by the same factor: pair i rotates by `theta ** (-2 * i / head_dim)`."""
    for head_dim, theta, wanted in ((8, 10000.0, [1.0, 0.1, 0.01, 0.001]), (6, 8.0, [1.0, 0.5, 0.25]), (2, 9.0, [1.0])):
        found = inv_freq(head_dim, theta).tolist()
        if len(found) != len(wanted):
            raise Fault(f"a head of width {head_dim} got {len(found)} pairs", f"It has {len(wanted)}.")
        if any(abs(one - right) > 1e-5 for one, right in zip(found, wanted, strict=True)):
            told = f"with `head_dim` {head_dim} and `theta` {theta:g}, `inv_freq` is {_said(found)}"
            raise Fault(told, f"Pair i rotates by `theta ** (-2 * i / head_dim)`: {_said(wanted)}.")


def an_angle_is_position_times_inv_freq(inv_freq: Function, cos_sin: Function, apply: Function) -> None:
    """At position 0 the angle is 0, and at position 10 it is ten times as large as at position 1."""
    both = cos_sin(torch.tensor([0, 1, 10]), torch.tensor([1.0, 0.5]))
    angles = torch.tensor([[0.0, 0.0], [1.0, 0.5], [10.0, 5.0]])
    for name, found, wanted in zip(("cosine", "sine"), both, (angles.cos(), angles.sin()), strict=True):
        for place, row, right, angle in zip((0, 1, 10), found, wanted, angles.tolist(), strict=True):
            if not torch.allclose(row, right, atol=1e-5):
                told = f"with `inv_freq` 1 and 0.5, the {name} at position {place} is {_said(row.tolist())}"
                raise Fault(told, f"The angles are {_said(angle)}, and so it is {_said(right.tolist())}.")


def a_rotation_keeps_the_length(inv_freq: Function, cos_sin: Function, apply: Function) -> None:
    """A rotation changes where a vector points, and never how long it is."""
    x = torch.randn(2, 3, 5, 8)
    result = apply(x, *_cos_sin(torch.randn(5, 4)))
    before = reduce(x * x, "batch heads seq head_dim -> batch heads seq", "sum").sqrt()
    after = reduce(result * result, "batch heads seq head_dim -> batch heads seq", "sum").sqrt()
    most, place = largest((after - before).abs(), "batch heads seq")
    if most > 1e-4:
        raise Fault(f"the length of the vector at {place} has changed by {most:.4g}")


def a_quarter_turn_makes_0_and_1_of_1_and_0(inv_freq: Function, cos_sin: Function, apply: Function) -> None:
    """A pair is number i of the first half and number i of the second, and rotates from the first to the second."""
    x = torch.tensor([[[[1.0, 2.0, 0.0, 0.0]]]])
    result = apply(x, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))[0, 0, 0]
    if largest((result - torch.tensor([0.0, 2.0, 1.0, 0.0])).abs(), "head_dim")[0] > 1e-5:
        told = " ".join(f"{number:.3g}" for number in (result.double().round(decimals=4) + 0.0).tolist())
        raise Fault(
            f"1 2 0 0, with its first pair rotated by a quarter, became {told}",
            "The pairs are (1, 0) and (2, 0); (1, 0) becomes (0, 1), and so it is 0 2 1 0.",
        )


def only_the_distance_counts(inv_freq: Function, cos_sin: Function, apply: Function) -> str:
    """A query and a key that are 2 positions apart have the same dot product wherever in the text they stand."""
    query, key = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(at: int, other: int) -> float:
        frequencies = inv_freq(8, 100.0)
        one = apply(query, *cos_sin(torch.tensor([at]), frequencies))
        two = apply(key, *cos_sin(torch.tensor([other]), frequencies))
        return float(einsum(one, two, "batch heads seq head_dim, batch heads seq_k head_dim ->"))

    near, far = score(3, 1), score(40, 38)
    if abs(near - far) > 1e-3:
        raise Fault(f"at positions 3 and 1 the dot product is {near:.4g}, at 40 and 38 it is {far:.4g}")
    if abs(near - score(9, 1)) < 1e-3:
        raise Fault(f"at positions 3 and 1 the dot product is {near:.4g}, and at 9 and 1 the same")
    return f"positions 3 and 1 give {near:.3f}, 40 and 38 give {far:.3f}, 9 and 1 give {score(9, 1):.3f}"


def _said(numbers: list[float]) -> str:
    return " ".join(f"{number:.4g}" for number in numbers)


exercise = Exercise(
    __name__,
    solution=(default_inv_freq, rope_cos_sin, apply_rope),
    cases=cases,
    reference=rope.apply_rope,
    properties=(
        frequencies_fall_from_1_to_nearly_1_over_theta,
        an_angle_is_position_times_inv_freq,
        a_rotation_keeps_the_length,
        a_quarter_turn_makes_0_and_1_of_1_and_0,
        only_the_distance_counts,
    ),
    hints=paragraphs(
        """
        For `default_inv_freq`: `torch.arange(0, head_dim, 2)` counts 0, 2, 4 ...: that is `2 * i` for every pair. For
        `rope_cos_sin`: each position is multiplied with each frequency, `einsum(..., "seq, pair -> seq pair")`;
        positions are integers, so give them the dtype of the frequencies: `positions.to(inv_freq.dtype)`.

        For `apply_rope`: one pattern takes the two halves apart, `a, b = rearrange(x, "... seq (component pair) ->
        component ... seq pair", component=2)`. `component` is slow in the bracket, so it counts the halves. `cos` and
        `sin` have the axes `seq pair` and go with both.

        The new halves are `[a * cos - b * sin, b * cos + a * sin]`. `rearrange` takes a list, too, and counts what is
        in it by the first axis: `"component ... seq pair -> ... seq (component pair)"`.
        """
    ),
    page="llama.html#apply_rope",
    part_of="allformers.nn.rope.apply_rope",
    prerequisites=("split-heads", "attention"),
)
