"""A course on the learner's own machine: write each part of a transformer, and have it checked.

On the command line `allformers practice`; in a notebook:

    >>> from allformers.practice import check
    >>> def gelu(x):
    ...     return x.relu()
    >>> check(gelu).passed
    False

A function or a class is called as in its exercise, or else its exercise is named: `check("attention", MyAttention)`.
"""

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from allformers.practice.report import Report

_Model = TypeVar("_Model", bound="nn.Module")


def check(*given: Any) -> "Report":
    """Check a function or class that is alive, as in a notebook. The report shows itself; `.passed` says how it ended.

    Args:
        given: the function or class, after the exercise's name if it is not called as in its exercise.

    Raises:
        ValueError: it is not clear which exercise is meant.
    """
    from allformers.practice.live import check_live

    return check_live(*given)


def transplant(model: "_Model", part: "type[nn.Module]") -> "_Model":
    """Put a class of one's own into a model, in place of the class that is called the same there; the weights stay.

    Made for hunts: `transplant(allformers.load("bundled"), CausalSelfAttention)` is the bundled model in which every
    block has the attention that is suspected.

    Raises:
        ValueError: the model has no part of that name.
    """
    places = [module for module in model.modules() if type(module).__name__ == part.__name__]
    if not places:
        names = ", ".join(sorted({type(module).__name__ for module in model.modules()}))
        raise ValueError(f"the model has no {part.__name__}; its parts are: {names}")
    for module in places:
        module.__class__ = part
    return model
