"""What every experiment gives: a question, numbers, a figure, and a sentence that they support."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from allformers.inputs.tokenizers import ByteTokenizer
from allformers.nn.shapes import checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure


PROMPT = "The for statement is used to iterate"


@dataclass(frozen=True)
class Experiment:
    """What came of an experiment.

    Attributes:
        question: what it answers.
        numbers: what was measured, by name.
        conclusion: what they say.
        figure: what they look like.
    """

    question: str
    numbers: Mapping[str, Any]
    conclusion: str
    figure: "Figure"


@checked
def encode(text: str) -> Int[Tensor, "batch seq"]:
    """A text as a batch of one sequence of bytes."""
    return rearrange(torch.tensor(ByteTokenizer().encode(text)), "seq -> 1 seq")


def question_of(experiment: Callable[..., Experiment]) -> str:
    """The first line of an experiment's docstring."""
    return (experiment.__doc__ or "").splitlines()[0]
