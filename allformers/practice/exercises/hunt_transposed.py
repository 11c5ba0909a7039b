"""Hunt, the square matrix: a shape that fits both ways proves nothing.

A colleague has tidied up GPT-2's code. Since then the trained weights load as before, every shape fits, no error is
raised, and the model speaks in tongues. The code below is the package's own, with one mistake in it. Find it, and mend
it. To see it at work:

    import allformers, torch
    from hunt_transposed import GPT2

    trained = allformers.load("bundled").eval()
    model = GPT2(trained.config).eval()
    model.load_state_dict(trained.state_dict())

    text = torch.tensor([list(b"The for statement is used to iterate over the elements of a sequence")])
    prompt = torch.tensor([list(b"A class is")])
    for one in (trained, model):
        loss = torch.nn.functional.cross_entropy(one(text)[0, :-1], text[0, 1:])
        written = bytes(one.generate(prompt, max_new_tokens=24, temperature=0)[0].tolist())
        print(f"{loss:.2f}", written)

It prints:

    0.83 b'A class is the exception is not an'
    3.47 b'A class isex                      '

Do not read the code from top to bottom; ask it. From `allformers.inspection` (`inside.html` on the site says more):

- `compare_models(model, trained, text[0])` runs both on a text. `.first_difference` is the first place where they
  differ, and a place is a whole block.
- `capture(model, "blocks.0.attention.*")` keeps every tensor that the code of block 0's attention names. Do the
  same with the trained model, and go through both in the order in which they came.
- `activation_names(model)` lists everything that can be captured. A module's result is called as the module.

Two runs, side by side:

    from allformers.inspection import capture

    with capture(model, "blocks.*.x") as ours, capture(trained, "blocks.*.x") as theirs:
        model(text)
        trained(text)
    for name in ours:
        print(name, float((ours[name].values.double() - theirs[name].values.double()).abs().max()))
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from allformers.models.gpt2.gpt2 import GPT2, MLP, Block, CausalSelfAttention, GPT2Config
from allformers.practice.exercise import Bug, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.hunt_mask import cases

CONFIG = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=20)


def _result(model_class: Callable[[GPT2Config], nn.Module], weight: Tensor, bias: Tensor) -> Tensor:
    """What block 0's attention gives, with another output matrix and bias."""
    attention: Any = model_class(CONFIG).eval().get_submodule("blocks.0.attention")
    with torch.no_grad():
        attention.output.weight.copy_(weight)
        attention.output.bias.copy_(bias)
        return attention(torch.randn(2, 5, 12), torch.ones(1, 1, 5, 5, dtype=torch.bool))


def a_row_of_the_output_matrix_makes_one_number_of_the_result(
    attention_class: object, mlp_class: object, block_class: object, model_class: Callable[[GPT2Config], nn.Module]
) -> None:
    """A linear layer's weight has the axes `(outputs, inputs)`: row 2 weighs what goes into number 2 of the result."""
    weight = torch.zeros(12, 12)
    weight[2, 7] = 1
    result = _result(model_class, weight, torch.zeros(12))
    found = [embed for embed in range(12) if bool(result[..., embed].any())]
    if found != [2]:
        raise Fault(
            "the output matrix of block 0's attention was 0 but for row 2, column 7; the result was not 0 at embed "
            f"{', '.join(map(str, found)) or '(nowhere)'}"
        )


def without_its_matrix_the_projection_gives_its_bias(
    attention_class: object, mlp_class: object, block_class: object, model_class: Callable[[GPT2Config], nn.Module]
) -> None:
    """A linear layer adds its bias to what its matrix makes; where the matrix is 0 the bias is left."""
    result = _result(model_class, torch.zeros(12, 12), torch.full((12,), 0.5))
    most, place = largest((result - 0.5).abs(), "batch seq embed")
    if most > 1e-6:
        raise Fault(
            "the output matrix of block 0's attention was 0 and its bias 0.5; the result was not 0.5, most of all at "
            f"{place}, by {most:.4g}"
        )


exercise = Exercise(
    __name__,
    solution=(CausalSelfAttention, MLP, Block, GPT2),
    cases=cases,
    properties=(
        a_row_of_the_output_matrix_makes_one_number_of_the_result,
        without_its_matrix_the_projection_gives_its_bias,
    ),
    bug=Bug("self.output(merged)", "merged @ self.output.weight + self.output.bias"),
    hints=paragraphs(
        """
        The two models part in `blocks.0`. Look closer, with `capture(model, "blocks.0.attention.*",
        "blocks.0.attention")` and the same of the trained model in the last lines of the task. The mistake stands
        between the last name that agrees and the first that does not.

        `merged` agrees to the bit, and `blocks.0.attention`, which is what the method returns, is quite another. So
        heads are mixed and joined as they should be, and what is done then is wrong. Only two things are done: project
        and drop out. Dropout does nothing here, since the model is in `eval()`.

        `x @ weight` sums over the rows of the weight; a linear layer's weight has its outputs there, and its inputs in
        the columns. Had the matrix not been square, an error would have said so. The layer itself knows which way its
        weight lies: `self.output(merged)`.
        """
    ),
    page="gpt2.html#CausalSelfAttention.forward.mixed",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention.forward",
    prerequisites=("attention",),
)
