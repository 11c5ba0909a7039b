"""Hunt, the scale: attention that puts too much weight on one position.

Since a colleague's last change GPT-2 still writes words, in a bad dream's order: it has become worse, not broken. No
error is raised, every shape fits, and the weights load. The code below is the package's own, with one mistake in it.
Find it, and mend it. To see it at work:

    import allformers, torch
    from hunt_scale import GPT2

    trained = allformers.load("bundled").eval()
    model = GPT2(trained.config).eval()
    model.load_state_dict(trained.state_dict())

    text = torch.tensor([list(b"The for statement is used to iterate over the elements of a sequence")])
    prompt = torch.tensor([list(b"A class is")])
    for one in (trained, model):
        loss = torch.nn.functional.cross_entropy(one(text)[0, :-1], text[0, 1:])
        written = bytes(one.generate(prompt, max_new_tokens=40, temperature=0)[0].tolist())
        print(f"{loss:.2f}", written)

It prints:

    0.83 b'A class is the exception is not an exception in th'
    1.35 b'A class is and there is are defined functions.abc.'

Do not read the code from top to bottom; ask it. From `allformers.inspection` (`inside.html` on the site says more):

- `compare_models(model, trained, text[0])` runs both on a text. `.first_difference` is the first place where they
  differ, and a place is a whole block.
- `capture(model, "blocks.0.attention.*")` keeps every tensor that the code of block 0's attention names. Do the
  same with the trained model. Of the first that differs, look at the quotient of both and not at the difference.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from allformers.models.gpt2.gpt2 import GPT2, MLP, Block, CausalSelfAttention, GPT2Config
from allformers.practice.exercise import Bug, Exercise, Fault, paragraphs
from allformers.practice.exercises.hunt_gelu import agrees_with_the_trained_model
from allformers.practice.exercises.hunt_mask import cases

CONFIG = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=20)


def _score(model_class: Callable[[GPT2Config], nn.Module], config: GPT2Config, layer: int) -> float:
    """A layer's score for a query and a key that are both all ones, less its score for a key of zeros."""
    attention: Any = model_class(config).eval().double().get_submodule(f"blocks.{layer}.attention")
    x = torch.zeros(1, 2, 12, dtype=torch.float64)
    x[0, 1, 0] = 1
    with torch.no_grad():  # queries are 1; keys and values repeat the first number of their position
        attention.query_key_value.weight.zero_()
        attention.query_key_value.weight[12:, 0] = 1
        attention.query_key_value.bias.zero_()
        attention.query_key_value.bias[:12] = 1
        attention.output.weight.copy_(torch.eye(12))
        attention.output.bias.zero_()
        weight = attention(x, torch.ones(1, 1, 2, 2, dtype=torch.bool))[0, 0, 0]
    return float(torch.logit(weight))


def dot_products_are_divided_by_the_root_of_head_dim(
    attention_class: object, mlp_class: object, block_class: object, model_class: Callable[[GPT2Config], nn.Module]
) -> None:
    """A dot product adds up `head_dim` products, so it spreads by its root more than each; divided by it, no more."""
    for num_heads in (12, 3, 1):
        head_dim = 12 // num_heads
        for layer in (0, 1):
            found = _score(model_class, dataclasses.replace(CONFIG, num_heads=num_heads), layer)
            if not abs(found - math.sqrt(head_dim)) < 1e-4:
                raise Fault(
                    f"in layer {layer} and heads of head_dim {head_dim}, a query and a key have the dot product "
                    f"{head_dim}; its score is {found:.4g}, expected {math.sqrt(head_dim):.4g}"
                )


def trained_weights_compute_what_they_were_trained_to(
    attention_class: object, mlp_class: object, block_class: object, model_class: Callable[[GPT2Config], nn.Module]
) -> None:
    """With the bundled weights nothing differs from the trained model by more than rounding."""
    agrees_with_the_trained_model(model_class)


exercise = Exercise(
    __name__,
    solution=(CausalSelfAttention, MLP, Block, GPT2),
    cases=cases,
    properties=(
        dot_products_are_divided_by_the_root_of_head_dim,
        trained_weights_compute_what_they_were_trained_to,
    ),
    bug=Bug("queries = queries * (1 / math", "scaled = queries * (1 / math"),
    hints=paragraphs(
        """
        The two models part in `blocks.0`. With `with capture(model, "blocks.0.attention.*") as ours: model(text)`, and
        `theirs` from the trained model likewise, print for each name in `ours` how far `ours[name].values.double()` and
        `theirs[name].values.double()` are apart. Which is the first that differs?

        What attention is given agrees, `x` and `mask`; `queries` do not. Their quotient,
        `ours["blocks.0.attention.queries"].values / theirs["blocks.0.attention.queries"].values`, is the same number
        everywhere: 5.657. Squared it is 32, and `model.config.axes` has an axis of that size.

        The queries are `head_dim ** 0.5` times too large, and so the scores are: they are not scaled. `scaled` is
        computed, and rightly. And then? A variable that nothing reads is worth a look, and `ruff check` finds it as
        well.
        """
    ),
    page="gpt2.html#CausalSelfAttention.forward.queries",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention.forward",
    prerequisites=("attention",),
)
