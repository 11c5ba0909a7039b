"""GELU: the non-linearity between two matrices, in the form that GPT-2 was trained with.

Two linear layers in a row are no more than one. To be more, they need a non-linearity between them, an activation
function. ReLU is the simplest: what is below zero becomes zero. GELU (Gaussian error linear unit) does nearly the same,
and without a corner: it multiplies each number by the probability that a normally distributed one is smaller. A large
number is kept, one far below zero vanishes, and in between there is a smooth passage, which dips a little below zero.

That probability was slow to compute, so its authors gave an approximation, and GPT-2 was trained with it:

    gelu(x) = 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))

    >>> import torch
    >>> x = torch.tensor([[[-10.0, -1.0, 0.0, 1.0, 10.0]]])
    >>> gelu(x)
    tensor([[[-0.0000, -0.1588,  0.0000,  0.8412, 10.0000]]])

Exactly computed, the second number would be -0.1587. The difference is small, but a model that has learned with one of
the two gives other results with the other.

Each number is by itself. Write the formula; `torch.tanh` and `math` are what you need.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, paragraphs


@checked
def gelu(x: Float[Tensor, "batch seq mlp"]) -> Float[Tensor, "batch seq mlp"]:
    """Keep what is large, let vanish what is far below zero, and pass smoothly from one to the other."""
    cubic = x + 0.044715 * x**3
    share = 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))
    return x * share


def cases() -> Iterator[Case]:
    """Numbers of the usual size, a single one, and some far from zero."""
    yield Case(torch.randn(2, 3, 8))
    yield Case(torch.randn(1, 1, 1))
    yield Case(4 * torch.randn(3, 2, 5))


def far_above_zero_nothing_changes(gelu: Callable[..., Tensor]) -> None:
    """Where the probability is 1, the number is kept: 10 stays 10."""
    found = float(_of(gelu, 10.0)[0])
    if abs(found - 10) > 1e-4:
        raise Fault(f"gelu(10) is {found:.4g}")


def far_below_zero_nothing_is_left(gelu: Callable[..., Tensor]) -> None:
    """Where the probability is 0, nothing is kept: -10 becomes 0."""
    found = float(_of(gelu, -10.0)[0])
    if abs(found) > 1e-4:
        raise Fault(f"gelu(-10) is {found:.4g}")


def what_one_side_keeps_the_other_lacks(gelu: Callable[..., Tensor]) -> None:
    """The shares of x and -x add up to 1, so gelu(x) - gelu(-x) is x again, for every x."""
    for x in (0.5, 1.0, 2.0):
        above, below = _of(gelu, x, -x).tolist()
        if abs(above - below - x) > 1e-4:
            raise Fault(f"gelu({x}) is {above:.4g} and gelu({-x}) is {below:.4g}: one minus the other is not {x}")


def it_dips_below_zero(gelu: Callable[..., Tensor]) -> str:
    """Just below zero a little is kept, so the result is negative there, and its lowest value is about -0.17."""
    x = torch.linspace(-4, 0, 401).tolist()
    lowest, place = min((value, where) for value, where in zip(_of(gelu, *x).tolist(), x, strict=True))
    if abs(lowest + 0.17) > 0.005:
        raise Fault(f"the lowest value is {lowest:.4g}, at {place:.2f}")
    return f"the lowest value is {lowest:.4f}, at {place:.2f}"


def it_is_the_form_with_tanh(gelu: Callable[..., Tensor]) -> None:
    """At 2.7 the exact function is 2.69064, the one with tanh 2.69103; GPT-2 was trained with the second."""
    found, exact = float(_of(gelu, 2.7)[0]), float(F.gelu(torch.tensor(2.7)))
    if abs(found - exact) < 1e-5:
        raise Fault(f"gelu(2.7) is {found:.6g}: this is the exact function")


def _of(gelu: Callable[..., Tensor], *numbers: float) -> Tensor:
    return gelu(torch.tensor([[numbers]]))[0, 0]


exercise = Exercise(
    __name__,
    solution=(gelu,),
    cases=cases,
    reference=partial(F.gelu, approximate="tanh"),
    properties=(
        far_above_zero_nothing_changes,
        far_below_zero_nothing_is_left,
        what_one_side_keeps_the_other_lacks,
        it_dips_below_zero,
        it_is_the_form_with_tanh,
    ),
    hints=paragraphs(
        """
        Build it from the inside: first what stands in the innermost brackets, then what tanh is taken of, then the
        share of x that is kept.

        The share is `0.5 * (1 + torch.tanh(...))`: tanh lies between -1 and 1, so this lies between 0 and 1. Only x is
        cubed, not its factor: `x + 0.044715 * x**3`.

        The root is taken of the whole fraction, and multiplies both terms in the brackets: `math.sqrt(2 / math.pi) * (x
        + 0.044715 * x**3)`. The result is x times its share.
        """
    ),
    page="gpt2.html#MLP",
    part_of="allformers.models.gpt2.gpt2.MLP",
)
