"""The loss: how surprised a model is by the token that came next.

A text asks a question at every position: after these tokens, which comes? And it holds the answer, one position further
on. So a passage of n + 1 tokens is n questions with n answers: without its last token it is what the model reads, the
inputs; without its first it is what the model should have said, the targets.

    >>> import torch
    >>> inputs, targets = inputs_and_targets(torch.tensor([[72, 101, 108, 108, 111]]))
    >>> inputs, targets
    (tensor([[ 72, 101, 108, 108]]), tensor([[101, 108, 108, 111]]))

Every token of the vocabulary has been given a score, a logit; softmax makes probabilities of them. The loss at a
position is minus the logarithm of the probability that the target was given: nothing if that was certain, much if it
was thought unlikely. The loss of a batch is the mean over all positions of all sequences. A model that knows nothing
gives every token the same logit, and scores the logarithm of the vocabulary's size:

    >>> next_token_loss(torch.zeros(1, 4, 256), targets)
    tensor(5.5452)

`F.cross_entropy` does the logarithm and the mean, and is yours to use: it takes logits, not probabilities. It wants one
question in each row, though, and knows nothing of `batch` and `seq`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int
from torch import Tensor

from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, largest, paragraphs
from allformers.training import loop


@checked
def inputs_and_targets(
    passages: Int[Tensor, "batch text"],
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Cut passages into what the model reads, and what comes next at each of its positions."""
    return passages[:, :-1], passages[:, 1:]


@checked
def next_token_loss(logits: Float[Tensor, "batch seq vocab"], targets: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """The mean surprise, in nats, at the tokens that came: minus the log of the probability each was given."""
    return F.cross_entropy(
        rearrange(logits, "batch seq vocab -> (batch seq) vocab"), rearrange(targets, "batch seq -> (batch seq)")
    )


def cases() -> Iterator[Case]:
    """Targets cut from passages, as many tokens as positions, a single question, a model that is sure of itself."""
    yield Case(torch.randn(2, 5, 7), torch.randint(7, (2, 6))[:, 1:])
    yield Case(torch.randn(3, 4, 4), torch.randint(4, (3, 4)))
    yield Case(torch.randn(1, 1, 11), torch.randint(11, (1, 1)))
    yield Case(30 * torch.randn(2, 3, 5), torch.randint(5, (2, 3)))


Made = Callable[..., Any]


def the_answer_is_one_position_further_on(inputs_and_targets: Made, next_token_loss: Made) -> None:
    """Of the passage 1, 2, 3, 4, 5 the model reads 1, 2, 3, 4, and should say 2, 3, 4, 5."""
    parts = inputs_and_targets(torch.tensor([[1, 2, 3, 4, 5]]))
    for name, part, expected in zip(("inputs", "targets"), parts, ([1, 2, 3, 4], [2, 3, 4, 5]), strict=True):
        if part[0].tolist() != expected:
            raise Fault(f"of the passage 1, 2, 3, 4, 5 the {name} are {', '.join(map(str, part[0].tolist()))}")


def a_model_that_knows_nothing_scores_the_log_of_the_vocabulary(inputs_and_targets: Made, next_token_loss: Made) -> str:
    """Where all 11 tokens have the same logit, each has the probability 1/11, and the loss is ln(11), 2.398."""
    loss = float(next_token_loss(torch.zeros(2, 5, 11), torch.randint(11, (2, 5))))
    if abs(loss - 2.3979) > 1e-3:
        raise Fault(f"with equal logits for 11 tokens, in 2 sequences of 5, the loss is {loss:.4g}")
    return f"equal logits for 11 tokens: a loss of {loss:.4g}"


def to_be_right_for_certain_costs_nothing(inputs_and_targets: Made, next_token_loss: Made) -> None:
    """With a logit of 100 for the target and 0 for the others, the target has all of the probability: the loss is 0."""
    targets = torch.randint(7, (2, 5))
    loss = float(next_token_loss(100 * F.one_hot(targets, 7).float(), targets))
    if abs(loss) > 1e-4:
        raise Fault(f"the target's logit is 100 everywhere, all others are 0, and the loss is {loss:.4g}")


def every_position_counts_the_same(inputs_and_targets: Made, next_token_loss: Made) -> None:
    """A mean over all questions: each of 10 has a tenth of the loss."""
    logits = torch.zeros(2, 5, 7, requires_grad=True)
    (gradient,) = torch.autograd.grad(next_token_loss(logits, torch.randint(7, (2, 5))), logits)
    shares = reduce(gradient.abs(), "batch seq vocab -> batch seq", "sum")
    most, place = largest((shares / shares.sum() - 1 / 10).abs(), "batch seq")
    if not most < 1e-4:
        raise Fault(f"of 2 sequences of 5 positions, {place} does not have the tenth of the loss that it should have")


exercise = Exercise(
    __name__,
    solution=(inputs_and_targets, next_token_loss),
    cases=cases,
    reference=loop.next_token_loss,
    properties=(
        the_answer_is_one_position_further_on,
        a_model_that_knows_nothing_scores_the_log_of_the_vocabulary,
        to_be_right_for_certain_costs_nothing,
        every_position_counts_the_same,
    ),
    hints=paragraphs(
        """
        Both results of the first function are slices along `text`: one leaves out the end, the other the beginning. For
        the second function, make one axis of `batch` and `seq`: a position of any sequence is a question like any
        other.

        `passages[:, :-1]` and `passages[:, 1:]`. `F.cross_entropy(rows, answers)` wants logits with the axes `(batch
        seq) vocab`, and targets with the one axis `(batch seq)`. Do not take the softmax before: it does that itself.

        `F.cross_entropy(rearrange(logits, "batch seq vocab -> (batch seq) vocab"), rearrange(targets, "batch seq ->
        (batch seq)"))`.
        """
    ),
    page="training.html#next_token_loss",
    part_of="allformers.training.loop.next_token_loss",
    prerequisites=("gpt2",),
)
