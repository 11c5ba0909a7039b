"""Greedy decoding: a loop turns a model that scores tokens into one that writes.

A language model does one thing: at every position of a text it scores each token of its vocabulary as the next one.
Writing is a loop around it. Let the model read the text; look at its scores at the last position; take the token with
the highest score; put it behind the text; begin again. From then on the model reads what it wrote itself: it is
autoregressive. To take the highest score each time is called greedy: the same prompt always gets the same text.

`model` is any function from token ids to logits, your GPT-2 for instance. Here is one that has learned nothing but to
count up to 9:

    >>> import torch
    >>> def count(token_ids):
    ...     return torch.nn.functional.one_hot((token_ids + 1) % 10, 10).float()
    >>> generate(count, torch.tensor([[3, 4], [8, 9]]), max_new_tokens=3, context_length=4)
    tensor([[3, 4, 5, 6, 7],
            [8, 9, 0, 1, 2]])

The prompts of a batch have one length, and each goes on by itself. The result is the prompt with the new tokens behind
it.

No model reads more than `context_length` tokens at once; GPT-2 has no vectors for further positions. A text grows
beyond that, and then the model is given its last `context_length` tokens.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.nn.shapes import checked
from allformers.practice.exercise import Case, Exercise, Fault, paragraphs


@checked
def generate(
    model: Callable[[Tensor], Tensor], token_ids: Int[Tensor, "batch seq"], max_new_tokens: int, context_length: int
) -> Int[Tensor, "batch total"]:
    """Continue each prompt with the likeliest token, again and again.

    Args:
        model: scores every token as the next one: token ids `batch seq` in, logits `batch seq vocab` out.
        token_ids: the prompts.
        max_new_tokens: how many tokens to write.
        context_length: how many tokens the model can read at once.
    """
    text = token_ids
    for _ in range(max_new_tokens):
        logits = model(text[:, -context_length:])
        likeliest = logits[:, -1].argmax(dim=-1)
        text = torch.cat([text, rearrange(likeliest, "batch -> batch 1")], dim=1)
    return text


def cases() -> Iterator[Case]:
    """Within the context and beyond it, from a single token, and no token at all to write."""
    yield Case(_gpt2(), torch.randint(11, (2, 3)), 4, 9)
    yield Case(_gpt2(), torch.randint(11, (3, 1)), 13, 9)
    yield Case(_gpt2(), torch.randint(11, (1, 12)), 5, 9)
    yield Case(_gpt2(), torch.randint(11, (2, 5)), 0, 9)


def _gpt2() -> GPT2:
    config = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=20)
    model = GPT2(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.8)
    return model


def _reference(model: GPT2, token_ids: Tensor, max_new_tokens: int, context_length: int) -> Tensor:
    """The package's own loop, which has a KV cache."""
    return model.generate(token_ids, max_new_tokens=max_new_tokens, temperature=0)


@checked
def _count(token_ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
    """A model that knows which number comes next, and nothing else."""
    return F.one_hot((token_ids + 1) % 10, 10).float()


def a_model_that_counts_goes_on_counting(generate: Callable[..., Tensor]) -> None:
    """What is put behind the text is what the model scores highest at the last position, read anew for each token."""
    prompt = torch.tensor([[3, 4], [8, 9]])
    for row, wanted in zip(generate(_count, prompt, 3, 8).tolist(), ([3, 4, 5, 6, 7], [8, 9, 0, 1, 2]), strict=True):
        if row != wanted:
            told = f"a model that counts, given {_said(wanted[:2])}, wrote {_said(row)}"
            raise Fault(told, f"Counting goes on: {_said(wanted)}.")


def the_model_reads_as_much_as_it_can(generate: Callable[..., Tensor]) -> str:
    """Each token is chosen after one look at the whole text so far or, beyond the context, at its end."""
    read: list[list[int]] = []

    def watched(token_ids: Tensor) -> Tensor:
        read.append(token_ids[0].tolist())
        return _count(token_ids)

    text = generate(watched, torch.tensor([[3, 4]]), 4, 3)[0].tolist()
    for place, seen in enumerate(read[:4]):
        so_far = text[: 2 + place]
        wanted = so_far[-3:]
        if seen != wanted:
            raise Fault(
                f"with room for 3 tokens, the model was given {_said(seen)} when the text was {_said(so_far)}",
                f"It reads {_said(wanted)}: all of the text that it has room for, and of a longer one its end.",
            )
    if len(read) != 4:
        raise Fault(f"for 4 new tokens the model was asked {len(read)} times")
    return f"with room for 3 tokens, it read: {'; '.join(map(_said, read))}"


def each_row_goes_on_by_itself(generate: Callable[..., Tensor]) -> None:
    """A prompt gets the same text alone as in a batch."""
    model, prompts = _gpt2(), torch.randint(11, (3, 4))
    together, alone = generate(model, prompts, 6, 9)[1].tolist(), generate(model, prompts[1:2], 6, 9)[0].tolist()
    if together != alone:
        raise Fault(f"in a batch of 3, row 1 became {_said(together)}; alone it becomes {_said(alone)}")


def _said(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


exercise = Exercise(
    __name__,
    solution=(generate,),
    cases=cases,
    reference=_reference,
    properties=(
        a_model_that_counts_goes_on_counting,
        the_model_reads_as_much_as_it_can,
        each_row_goes_on_by_itself,
    ),
    hints=paragraphs(
        """
        A loop, `for _ in range(max_new_tokens):`, and one variable, the text so far, which begins as the prompt. Each
        round asks the model once and makes the text longer by one token.

        The model scores all positions, and only the last is asked for: `logits[:, -1]` has the axes `batch vocab`.
        `argmax(dim=-1)` gives one token a row. To stand behind the text it needs an axis of its own: `rearrange(...,
        "batch -> batch 1")`.

        `logits = model(text[:, -context_length:])`, then `likeliest = logits[:, -1].argmax(dim=-1)`, then `text =
        torch.cat([text, rearrange(likeliest, "batch -> batch 1")], dim=1)`.
        """
    ),
    page="writing.html#decode.for",
    part_of="allformers.generation.generate.decode",
    prerequisites=("gpt2",),
)
