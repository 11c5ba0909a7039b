"""Writing with a decoder: read the prompt once, then one token at a time, each fed back in.

Prefill, step, loop. The prompt goes through the model in one pass, which fills the cache; then each step passes only
the newest token, and the cache supplies the rest. Once the text is longer than the model's context the window slides:
the oldest token drops out, every position shifts by one, and so the whole window is read anew at each step.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.nn.cache import Cache
from allformers.nn.shapes import checked, unchecked

Prompts = Sequence[Sequence[int] | Int[Tensor, "_"]]
"""Prompts of different lengths: one list (or one-dimensional tensor) of token ids each."""


@checked
def write(
    model: Any,
    text: Int[Tensor, "batch seq"],
    padding: Int[Tensor, "batch"] | None,
    max_new_tokens: int,
    pick: Callable[[Tensor], Tensor],
    stop: Int[Tensor, "stops"],
    prefill: int | None,
) -> Iterator[Int[Tensor, "batch"]]:
    """Prefill, step, loop: the next token of every row, as soon as it is known.

    Args:
        model: a decoder.
        text: the prompts, the shorter ones filled up on the left.
        padding: how much of each row is filling; None for none.
        max_new_tokens: how many tokens to write, at most.
        pick: chooses each row's token by its logits.
        stop: the tokens that end a row.
        prefill: how many tokens of a prompt to read at once; None reads all at once.
    """
    context = model.config.context_length
    text, padding = window(text, padding, context)
    cache = model.make_cache(min(context, text.shape[1] + max_new_tokens), padding)
    unread = text
    last: Tensor | None = None
    for count in range(max_new_tokens):
        # The first pass has shown that all shapes fit; later ones differ from it in one axis only.
        with torch.inference_mode(), evaluating(model), unchecked() if count else contextlib.nullcontext():
            token = pick(next_logits(model, unread, cache, prefill))
            if last is not None and stop.numel():
                token = torch.where(torch.isin(last, stop), last, token)
            last = token
            column = rearrange(token, "batch -> batch 1")
            text, padding = window(torch.cat([text, column], dim=1), padding, context)
            if cache.length < context:
                unread = column
            else:
                cache.clear(padding)
                unread = text
        yield token
        if stop.numel() and bool(torch.isin(token, stop).all()):
            return


@checked
def next_logits(
    model: Any, token_ids: Int[Tensor, "batch seq"], cache: Cache, prefill: int | None = None
) -> Float[Tensor, "batch vocab"]:
    """Read tokens, so many at once, and score what may follow the last of them."""
    seq = token_ids.shape[1]
    piece = prefill or seq
    *starts, last = range(0, seq, piece)
    for start in starts:
        model.read(token_ids[:, start : start + piece], cache)
    return model.step(token_ids[:, last:], cache)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside a `with` block, and afterwards back to however each part was."""
    if not model.training:
        yield
        return
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@checked
def as_tensor(prompt: Sequence[int] | Int[Tensor, "seq"]) -> Int[Tensor, "seq"]:
    """A prompt as a tensor of token ids, on the processor."""
    return prompt.cpu().long() if isinstance(prompt, Tensor) else torch.tensor(prompt, dtype=torch.long)


@checked
def pad(prompts: Int[Tensor, "batch seq"] | Prompts) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch"] | None]:
    """Prompts as one tensor, the shorter ones filled up on the left, and how much of each row is filling."""
    rows = [as_tensor(prompt) for prompt in prompts]
    if not rows or not all(row.numel() for row in rows):
        raise ValueError("there is nothing to continue: give at least one prompt, and each at least one token")
    longest = max(row.numel() for row in rows)
    padding = torch.tensor([longest - row.numel() for row in rows])
    filled = [torch.cat([row.new_zeros(longest - row.numel()), row]) for row in rows]
    return rearrange(filled, "batch seq -> batch seq"), padding if padding.any() else None


@checked
def window(
    text: Int[Tensor, "batch seq"], padding: Int[Tensor, "batch"] | None, context: int
) -> tuple[Int[Tensor, "batch window"], Int[Tensor, "batch"] | None]:
    """The last `context` positions of a text, and what padding is left in them."""
    dropped = max(0, text.shape[1] - context)
    if padding is not None and dropped:
        padding = (padding - dropped).clamp(min=0)
    return text[:, dropped:], padding
