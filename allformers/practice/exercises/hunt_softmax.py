"""Hunt, the softmax: a model that reads well and writes nonsense.

Since a colleague's last change GPT-2 reads a text that is there nearly as well as before, but what it writes is not
even made of words. No error is raised, every shape fits, and the weights load. The code below is the package's own,
with one mistake in it. Find it, and mend it. To see it at work:

    import allformers, torch
    from hunt_softmax import GPT2

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
    1.12 b'A class isttttcccccccccccCCCCCCCCC'

Do not read the code from top to bottom; ask it. From `allformers.inspection` (`inside.html` on the site says more):

- `compare_texts(model, texts)` runs one model on two texts, each a tensor with the axis `seq`, as in
  `torch.tensor(list(b"A class is red"))`. Of its second result, `[0].divergence_position` says where the texts part,
  and `[0].divergence` how far apart the predictions are at each position. Take two texts that differ in their last
  word: what has to be 0, and is it?
- `capture(model, "blocks.0.attention.*")` keeps every tensor that the code of block 0's attention names. Which of
  them has to be the same for both texts, up to where they part, and is not?
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from allformers.models.gpt2.gpt2 import GPT2, MLP, Block, CausalSelfAttention, GPT2Config
from allformers.practice.exercise import Bug, Exercise, Fault, largest, paragraphs
from allformers.practice.exercises.hunt_mask import cases, no_prediction_has_seen_its_answer

CONFIG = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=1, num_heads=3, mlp_dim=20)


def what_a_query_gives_to_all_keys_adds_up_to_one(
    attention_class: object, mlp_class: object, block_class: object, model_class: Callable[[GPT2Config], nn.Module]
) -> None:
    """What a position gets is a mean of values: its weights are shares of 1 among the keys that it attends to."""
    attention: Any = model_class(CONFIG).eval().get_submodule("blocks.0.attention")
    with torch.no_grad():  # every value 1, and the output as it is mixed: the weights' sums remain
        attention.query_key_value.weight.normal_()
        attention.query_key_value.weight[24:] = 0
        attention.query_key_value.bias[24:] = 1
        attention.output.weight.copy_(torch.eye(12))
        attention.output.bias.zero_()
        mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
        sums = attention(torch.randn(2, 5, 12), mask)[..., ::4]  # one number of each head
    most, place = largest((sums - 1).abs(), "batch seq heads")
    if not most <= 1e-5:
        found = float(sums.take((sums - 1).abs().argmax()))
        raise Fault(f"with every value 1, what is mixed at {place} is {found:.4g}: that is what its weights add up to")


def a_later_token_never_changes_an_earlier_prediction(
    attention_class: object, mlp_class: object, block_class: object, model_class: Callable[[GPT2Config], nn.Module]
) -> None:
    """No position gets anything from a later one, nor does it share a sum with it."""
    no_prediction_has_seen_its_answer(model_class)


exercise = Exercise(
    __name__,
    solution=(CausalSelfAttention, MLP, Block, GPT2),
    cases=cases,
    properties=(what_a_query_gives_to_all_keys_adds_up_to_one, a_later_token_never_changes_an_earlier_prediction),
    bug=Bug("F.softmax(scores, dim=-1)", "F.softmax(scores, dim=-2)"),
    hints=paragraphs(
        """
        Two texts: `texts = [torch.tensor(list(b"A class is red")), torch.tensor(list(b"A class is new"))]`, and
        `_, (compared,) = compare_texts(model, texts)`. They part at position 11, but the predictions are apart from
        position 0 on: each has seen something of what comes later. Yet the mask is as it should be: capture
        `blocks.0.attention.mask` and look. So through what else does the future come in?

        Capture `blocks.0.attention.*` for both texts, run on `rearrange(texts[0], "seq -> 1 seq")` and on the other
        likewise, and compare by name what was seen at the first 11 positions. The scores agree; `weights` do not,
        though they are made of the scores alone. In each row of `weights` stands what one query gives to all keys. What
        do they add up to along `seq_k`, and what along `seq`?

        The columns add up to 1, and should not: each key shares itself out among the queries, later ones too. Softmax
        has to go along the axis of the keys. Scores have the axes `batch heads seq seq_k`, so that is the last:
        `dim=-1`.
        """
    ),
    page="gpt2.html#CausalSelfAttention.forward.weights",
    part_of="allformers.models.gpt2.gpt2.CausalSelfAttention.forward",
    prerequisites=("softmax", "attention"),
)
