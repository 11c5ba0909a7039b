"""Hunt, the cache: a model that is right about every text, except its own.

A colleague has made GPT-2's code a little shorter, and all tests are green: on any text the logits are what they were,
to the bit. But whatever it is asked to write, it gets stuck after a word. The code below is the package's own, with one
mistake in it. Find it, and mend it. To see it at work:

    import allformers, torch
    from hunt_cache import GPT2

    trained = allformers.load("bundled").eval()
    model = GPT2(trained.config).eval()
    model.load_state_dict(trained.state_dict())

    text = torch.tensor([list(b"The for statement is used to iterate over the elements of a sequence")])
    prompt = torch.tensor([list(b"A class is")])
    for one in (trained, model):
        loss = torch.nn.functional.cross_entropy(one(text)[0, :-1], text[0, 1:])
        written = bytes(one.generate(prompt, max_new_tokens=24, temperature=0)[0].tolist())
        print(f"{loss:.2f}", written)
    print(torch.equal(model(text), trained(text)))

It prints:

    0.83 b'A class is the exception is not an'
    0.83 b'A class is the the the the the the'
    True

`compare_models` finds nothing, of course. But `generate` does not read a text as these lines do. It reads the prompt,
keeps the keys and the values of every layer in the KV cache, and then reads one token at a time, as here the last of a
text:

    cache = model.make_cache()
    model(text[:, :-1], cache)
    model(text[:, -1:], cache)

So there are two ways to read a text, all at once and piece by piece, and the last token has to come out the same. Ask
the code where it does not; from `allformers.inspection` (`inside.html` on the site says more):

- `capture(model, "embed", "blocks.*", "logits")` keeps what the embedding, each block and the unembedding give. Look at
  the last position of both ways, in the order in which the names came.
- `capture(model, "blocks.0.attention.*")` keeps every tensor that the code of block 0's attention names, with a
  cache as without; `.sizes` says how many positions each has.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from allformers.models.gpt2.gpt2 import GPT2, MLP, Block, CausalSelfAttention, GPT2Config
from allformers.practice.exercise import Bug, Case, Exercise, Fault, largest, paragraphs

CONFIG = GPT2Config(vocab_size=11, context_length=9, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=20)


def cases() -> Iterator[Case]:
    """A whole text, new positions behind others, and rows of two lengths, padded to one."""
    yield Case(torch.randint(11, (2, 6)), made_with=(CONFIG,))
    yield Case(torch.randint(11, (2, 3)), _held(4, None), made_with=(CONFIG,))
    yield Case(torch.randint(11, (2, 1)), _held(5, torch.tensor([0, 2])), made_with=(CONFIG,))


def _held(seq: int, left_padding: Tensor | None) -> Any:
    """A cache that has positions already."""
    model = GPT2(CONFIG).eval()
    cache = model.make_cache(left_padding=left_padding)
    with torch.no_grad():
        model(torch.randint(11, (2, seq)), cache)
    return cache


def read_in_pieces_a_text_gives_the_same_predictions(
    attention_class: object, mlp_class: object, block_class: object, model_class: Callable[..., Any]
) -> None:
    """A cache saves work and changes no result, one token at a time or several, wherever the text is cut."""
    model, token_ids = _made(model_class), torch.randint(11, (2, 6))
    whole = model(token_ids)
    for pieces in ((1, 1, 1, 1, 1, 1), (3, 2, 1)):
        cache, logits = model.make_cache(), []
        for seq in pieces:
            logits.append(model(token_ids[:, cache.length : cache.length + seq], cache))
        difference = (torch.cat(logits, dim=1) - whole).abs()
        most, place = largest(difference, "batch seq vocab")
        if not most <= 1e-4:
            first = next(seq for seq in range(6) if bool((difference[:, seq] > 1e-4).any()))
            raise Fault(
                f"read in pieces of {', '.join(map(str, pieces))} tokens, the logits are other ones from seq {first} "
                f"on; most of all at {place}, by {most:.4g}"
            )


def a_padded_row_is_read_as_it_is_by_itself(
    attention_class: object, mlp_class: object, block_class: object, model_class: Callable[..., Any]
) -> None:
    """In a batch a shorter row is padded on the left; its own positions are counted from its own first token."""
    model, token_ids = _made(model_class), torch.randint(11, (2, 6))
    alone = model(token_ids[1:, 2:])
    cache = model.make_cache(left_padding=torch.tensor([0, 2]))
    logits = torch.cat([model(token_ids[:, :5], cache), model(token_ids[:, 5:], cache)], dim=1)
    most, place = largest((logits[1, 2:] - alone[0]).abs(), "seq vocab")
    if not most <= 1e-4:
        raise Fault(
            "a row was read by itself, then behind 2 positions of padding beside a longer one: its logits differ by "
            f"{most:.4g} at {place}, counted from its own first token"
        )


def _made(model_class: Callable[[GPT2Config], nn.Module]) -> Any:
    """A model whose positions matter: as they are drawn for training they are too small to be seen."""
    model = model_class(CONFIG).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model


exercise = Exercise(
    __name__,
    solution=(CausalSelfAttention, MLP, Block, GPT2),
    cases=cases,
    properties=(read_in_pieces_a_text_gives_the_same_predictions, a_padded_row_is_read_as_it_is_by_itself),
    bug=Bug("self.positions(token_ids, cache).clamp", "self.positions(token_ids).clamp"),
    hints=paragraphs(
        """
        Cut the last token off: `with capture(model, "embed", "blocks.*", "logits") as whole: model(text)`. Then
        `cache = model.make_cache()`, `model(text[:, :-1], cache)`, and `with capture(model, "embed", "blocks.*",
        "logits") as last: model(text[:, -1:], cache)`. Now print for each name in `last` how far
        `last[name].values[:, -1]` and `whole[name].values[:, -1]` are apart. Which is the first that differs?

        The first of all does, what `GPT2.embed` gives, before any block has used its cache. An embedding is the sum of
        what a token is and of where it stands, and the token is the same. So where does the model think that it stands?
        Compare `last["embed"].values[:, -1]` with `model.token_embedding(text[:, -1]) +
        model.position_embedding.weight[place]` for one place after another.

        It believes that every new token stands at position 0: positions are counted from the first of the new tokens,
        and not from the first of the text. `self.positions(token_ids, cache)`, a method that `Decoder` adds, counts on
        from what the cache holds, and leaves padding out. Without the cache it cannot.
        """
    ),
    page="gpt2.html#GPT2.embed",
    part_of="allformers.models.gpt2.gpt2.GPT2.embed",
    prerequisites=("kv-cache",),
)
