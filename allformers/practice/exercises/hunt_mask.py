"""Hunt, the mask: a model that knows too much.

A colleague has changed something in GPT-2, and since then training goes wonderfully: the loss falls far below what any
model of this size has ever reached on this text. But what it writes is worthless. Nothing raises an error, every shape
fits, and the weights load.

The code below is the package's own, with one mistake in it. Find it, and mend it. To see it at work:

    import allformers, torch
    from hunt_mask import GPT2

    trained = allformers.load("bundled").eval()
    model = GPT2(trained.config).eval()
    model.load_state_dict(trained.state_dict())

Do not read the code from top to bottom; ask it. Three tools help (`inside.html` on the site says more of them):

- `compare_models(model, trained, token_ids).first_difference` names the first place at which two models differ on a
  text.
- `capture(model, "blocks.0.attention.weights")` keeps what each position attends to. Which entries of a causal model's
  weights have to be 0, and are they?
- Change one token of a text, and look at which positions the logits change. In a language model, which must not?

    from allformers.inspection import capture, compare_models

    token_ids = torch.tensor([list(b"The for statement")])
    with capture(model, "blocks.0.attention.weights") as activations:
        model(token_ids)
    print(activations["blocks.0.attention.weights"].values[0, 0, :4, :6])
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.practice.exercise import Bug, Case, Exercise, Fault, largest, paragraphs


def cases() -> Iterator[Case]:
    """Several sequences and one, a single token and a whole context."""
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=20)
    yield Case(torch.randint(11, (2, 6)), made_with=(config,))
    yield Case(torch.randint(11, (3, 1)), made_with=(config,))
    yield Case(torch.randint(11, (1, 9)), made_with=(config,))


def no_prediction_has_seen_its_answer(model_class: Callable[[GPT2Config], nn.Module]) -> None:
    """What is predicted at a position does not depend on any token after it, the next one least of all."""
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=20)
    model, token_ids = model_class(config).eval(), torch.randint(11, (1, 8))
    for changed in range(1, 8):
        other = token_ids.clone()
        other[0, changed] = (other[0, changed] + 1) % 11
        most, place = largest((model(other) - model(token_ids)).abs()[:, :changed], "batch seq vocab")
        if most > 1e-6:
            raise Fault(f"another token at seq {changed} changed the logits at {place}")


def every_position_attends_to_itself(model_class: Callable[[GPT2Config], nn.Module]) -> None:
    """A position's own token is the last that was read; without it there is nothing to predict from."""
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=3, mlp_dim=20)
    model, masks = model_class(config).eval(), []
    attention = model.get_submodule("blocks.0.attention")
    attention.register_forward_hook(lambda module, given, result: masks.append(given[1]))
    model(torch.randint(11, (1, 5)))
    for place in range(5):
        if not bool(masks[0][0, 0, place, place]):
            raise Fault(f"position {place} does not attend to itself")


exercise = Exercise(
    __name__,
    solution=(GPT2,),
    cases=cases,
    properties=(every_position_attends_to_itself, no_prediction_has_seen_its_answer),
    bug=Bug(".tril()", ".tril(1)"),
    hints=paragraphs(
        """
        Look at the weights of block 0: one row for each query, one column for each key. In row 0 a causal model has one
        number that is not 0. How many has this one?

        Every position attends to one position further than it may: the token that it should predict. So what is wrong
        is where the mask is made, and not where it is used. It is made once, in `__init__`, as `lower_triangle`, and
        `mask` cuts a piece from it.

        `tril(diagonal)` keeps what lies on and below that diagonal. On diagonal 0, which it takes if none is given, a
        position meets itself; on diagonal 1 it meets the next one.
        """
    ),
    page="gpt2.html#GPT2.mask",
    part_of="allformers.models.gpt2.gpt2.GPT2.mask",
    prerequisites=("causal-mask",),
)
