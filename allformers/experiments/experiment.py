"""The result of an experiment: a question, numbers, a figure, and a conclusion that they support."""

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
    """The result of an experiment.

    Attributes:
        question: the question that it answers.
        numbers: the measurements, by name.
        conclusion: a sentence or more that the numbers support.
        figure: a drawing of the numbers.
    """

    question: str
    numbers: Mapping[str, Any]
    conclusion: str
    figure: "Figure"


@checked
def encode(text: str) -> Int[Tensor, "batch seq"]:
    """Encode a text as a batch of one sequence of bytes."""
    return rearrange(torch.tensor(ByteTokenizer().encode(text)), "seq -> 1 seq")


def question_of(experiment: Callable[..., Experiment]) -> str:
    """Return the first line of an experiment's docstring."""
    return (experiment.__doc__ or "").splitlines()[0]
