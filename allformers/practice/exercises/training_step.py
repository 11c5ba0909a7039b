"""A training step: read, be surprised, and become a little less so.

A model learns by one step, repeated:

1. **forward**: cut the passages into inputs and targets, and let the model read the inputs;
2. **loss**: how surprised it was by the targets;
3. **backward**: `loss.backward()` works out, for every weight, in which direction the loss would grow, and how fast. It
   *adds* that to the weight's `.grad`;
4. **step**: the optimizer moves every weight a little the other way;
5. **clear**: the gradients go, or the next step would take these along.

The result is the loss of step 2, as it was before the weights moved, and without the history that backward needed: a
number to look at, and nothing else.

    >>> import torch
    >>> model = nn.Embedding(3, 3)
    >>> _ = nn.init.zeros_(model.weight)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> training_step(model, optimizer, torch.tensor([[0, 1, 0, 1]]))
    tensor(1.0986)
    >>> training_step(model, optimizer, torch.tensor([[0, 1, 0, 1]]))
    tensor(0.7674)

The smallest model that there is: for each token that it reads, a row of logits for the next. It begins with the
logarithm of 3. After one step it is less surprised by the same text.

Inputs, targets and the loss are yours from before. Any model that takes token ids and gives logits will do, your GPT-2
as well.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, paragraphs
from allformers.practice.exercises.loss import inputs_and_targets, next_token_loss


@checked
def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, passages: Int[Tensor, "batch text"]
) -> Float[Tensor, ""]:
    """Take one step: forward, loss, backward, the optimizer's step; and clear the gradients.

    Args:
        model: takes token ids and gives logits.
        optimizer: knows the model's weights, and how far to move them.
        passages: each has one token more than the model reads.
    """
    inputs, targets = inputs_and_targets(passages)
    logits: Float[Tensor, "batch seq vocab"] = model(inputs)
    loss = next_token_loss(logits, targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def cases() -> Iterator[Case]:
    """Several passages, one, the shortest that there can be; each with a new model."""
    for batch, text in ((3, 6), (1, 9), (2, 2)):
        model = _model()
        yield Case(model, _sgd(model), torch.randint(11, (batch, text)))


def _model() -> GPT2:
    return GPT2(
        GPT2Config(
            vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=3, mlp_dim=20, dropout=0.0
        )
    )


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5)


def _after_one_step(model: nn.Module, passages: Tensor) -> dict[str, Tensor]:
    """What each weight should be after a step from here: moved against its own gradient."""
    model = copy.deepcopy(model)
    model.zero_grad()
    inputs, targets = inputs_and_targets(passages)
    next_token_loss(model(inputs), targets).backward()
    _sgd(model).step()
    return {name: weight.detach() for name, weight in model.named_parameters()}


def _furthest(model: nn.Module, expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference between weights and what they should be, and in which it is."""
    return max(
        (float((weight - expected[name]).abs().max().detach()), name) for name, weight in model.named_parameters()
    )


def every_weight_moves_against_its_gradient(training_step: Callable[..., Tensor]) -> None:
    """With plain gradient descent (SGD) and a rate of 0.5, a weight becomes itself less half its gradient."""
    model, passages = _model(), torch.randint(11, (3, 6))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    expected = _after_one_step(model, passages)
    training_step(model, _sgd(model), passages)
    if not _furthest(model, before)[0]:
        raise Fault("after a step all weights are what they were")
    most, name = _furthest(model, expected)
    if most > 1e-5:
        raise Fault(f"after a step `{name}` is not where its gradient sends it: {most:.4g} apart")


def a_step_takes_nothing_along_from_the_last(training_step: Callable[..., Tensor]) -> None:
    """The second step follows the second step's gradients: backward adds to what is there, so what is there must go."""
    model, passages = _model(), torch.randint(11, (2, 3, 6))
    optimizer = _sgd(model)
    training_step(model, optimizer, passages[0])
    expected = _after_one_step(model, passages[1])
    training_step(model, optimizer, passages[1])
    most, name = _furthest(model, expected)
    if most > 1e-5:
        raise Fault(f"after a second step `{name}` is not where the gradient of that step sends it: {most:.4g} apart")


def the_loss_that_is_given_back_is_a_number_and_nothing_else(training_step: Callable[..., Tensor]) -> None:
    """Whoever keeps the losses of a run would else keep what belongs to them: `detach` cuts it off."""
    model = _model()
    if training_step(model, _sgd(model), torch.randint(11, (3, 6))).requires_grad:
        raise Fault("the loss that is given back still has its history: it requires a gradient")


def the_loss_falls(training_step: Callable[..., Tensor]) -> str:
    """A model that is shown the same passages 40 times knows them by heart."""
    model, passages = _model(), torch.randint(11, (3, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    losses = [float(training_step(model, optimizer, passages)) for _ in range(40)]
    told = f"in 40 steps on the same three passages the loss went from {losses[0]:.2f} to {losses[-1]:.2f}"
    if not losses[-1] < 0.6:
        raise Fault(told)
    return told


exercise = Exercise(
    __name__,
    solution=(training_step,),
    cases=cases,
    properties=(
        every_weight_moves_against_its_gradient,
        a_step_takes_nothing_along_from_the_last,
        the_loss_that_is_given_back_is_a_number_and_nothing_else,
        the_loss_falls,
    ),
    hints=paragraphs(
        """
        Each of the five parts of a step is one line, two for the first. Nothing but their order can go wrong, and that
        none may be missing.

        `inputs, targets = inputs_and_targets(passages)`, then `loss = next_token_loss(model(inputs), targets)`. The
        optimizer moves weights by what is in their `.grad`, so `loss.backward()` has to come before `optimizer.step()`.

        After the loss: `loss.backward()`, `optimizer.step()`, `optimizer.zero_grad()`, `return loss.detach()`. Cleared
        between backward and step, the gradients would be gone before anybody has used them.
        """
    ),
    page="training.html#Trainer.train_step.micro_batch_size",
    part_of="allformers.training.loop.Trainer.train_step",
    prerequisites=("gpt2", "loss"),
)
