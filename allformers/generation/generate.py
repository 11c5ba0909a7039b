"""Autoregressive generation: read the prompt once, then one token at a time, each fed back in.

Prefill, decode step, loop. The prompt goes through the model in one pass, which fills the KV cache; then each step
passes only the newest token, and the cache supplies the rest. Once the text is longer than the model's context the
window slides: the oldest token drops out, every position shifts by one, and so the whole window is read anew at each
step.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.nn.cache import Cache
from allformers.nn.config import LARGEST_INT
from allformers.nn.shapes import ShapeError, checked, unchecked

if TYPE_CHECKING:
    import allformers.generation.decoder

ModuleT = TypeVar("ModuleT", bound=nn.Module)

Prompts = Sequence[Sequence[int] | Int[Tensor, "_"]]
"""Prompts of different lengths: one list (or one-dimensional tensor) of token ids each."""


@checked
def decode(
    model: "allformers.generation.decoder.Decoder",
    token_ids: Int[Tensor, "batch seq"],
    left_padding: Int[Tensor, "batch"] | None,
    max_new_tokens: int,
    sample: Callable[[Tensor], Tensor],
    stop: Int[Tensor, "stops"],
    prefill_chunk_size: int | None,
) -> Iterator[Int[Tensor, "batch"]]:
    """Prefill, decode step, loop: yield the next token of every row, as soon as it is known.

    Args:
        model: a decoder.
        token_ids: the prompts, the shorter ones padded on the left.
        left_padding: the number of padding tokens in each row; None for none.
        max_new_tokens: the number of tokens to generate, at most.
        sample: chooses each row's token by its logits.
        stop: the tokens that end a row.
        prefill_chunk_size: the number of a prompt's tokens to read at once; None reads all at once.
    """
    context = model.config.context_length
    token_ids, left_padding = truncate_left(token_ids, left_padding, context)
    cache = model.make_cache(min(context, token_ids.shape[1] + max_new_tokens), left_padding)
    new_tokens = token_ids
    last_tokens: Tensor | None = None
    in_eval = in_eval_mode(model)
    for count in range(max_new_tokens):
        if in_eval.training:  # since the last step
            in_eval = in_eval_mode(model)
        # The first pass has shown that all shapes fit; later ones differ from it in one axis only.
        with torch.inference_mode(), unchecked() if count else contextlib.nullcontext():
            next_tokens = sample(next_token_logits(in_eval, new_tokens, cache, prefill_chunk_size))
            if last_tokens is not None and stop.numel():
                next_tokens = torch.where(torch.isin(last_tokens, stop), last_tokens, next_tokens)
            last_tokens = next_tokens
            column = rearrange(next_tokens, "batch -> batch 1")
            token_ids, left_padding = truncate_left(torch.cat([token_ids, column], dim=1), left_padding, context)
            if cache.length < context:
                new_tokens = column
            else:
                cache.clear(left_padding)
                new_tokens = token_ids
        yield next_tokens.clone()  # outside of inference mode, so that a model can be trained on it
        if stop.numel() and bool(torch.isin(next_tokens, stop).all()):
            return


@checked
def next_token_logits(
    model: "allformers.generation.decoder.Decoder",
    token_ids: Int[Tensor, "batch seq"],
    cache: Cache,
    prefill_chunk_size: int | None = None,
) -> Float[Tensor, "batch vocab"]:
    """Prefill: read tokens in chunks of `prefill_chunk_size`, and return the logits after the last."""
    seq = token_ids.shape[1]
    chunk = prefill_chunk_size or seq
    *starts, last = range(0, seq, chunk)
    for start in starts:
        model.residual_stream(token_ids[:, start : start + chunk], cache)
    return model.decode_step(token_ids[:, last:], cache)


def in_eval_mode(model: ModuleT) -> ModuleT:
    """The model itself where nothing of it is in training mode, and else a copy in evaluation mode, without dropout.

    The copy is shallow: its parts have the same parameters and buffers. The model itself stays as it is, so another
    thread may go on training it.
    """
    return _eval_copy(model) if any(module.training for module in model.modules()) else model


def _eval_copy(module: ModuleT) -> ModuleT:
    copy = object.__new__(type(module))
    parts = {name: None if part is None else _eval_copy(part) for name, part in module._modules.items()}
    vars(copy).update(vars(module), _modules=parts, training=False, eval_copy_of=module)
    for compiled in ("decode_step", "_compiled_call_impl"):  # which would run the module that it was made for
        vars(copy).pop(compiled, None)
    return copy


def original_module(module: nn.Module) -> nn.Module:
    """The module that `in_eval_mode` has copied, or else the module itself."""
    original: nn.Module = vars(module).get("eval_copy_of", module)
    return original


@checked
def as_tensor(prompt: Sequence[int] | Int[Tensor, "seq"]) -> Int[Tensor, "seq"]:
    """A prompt as a tensor of token ids, on the CPU.

    Raises:
        ShapeError: something in it is not a whole number.
        ValueError: a number is larger than any vocabulary.
    """
    if isinstance(prompt, Tensor):
        return prompt.cpu().long()
    for place, token in enumerate(prompt):
        if not isinstance(token, int) or isinstance(token, bool):
            raise ShapeError(f"a token id is a whole number, but number {place} of them is {token!r}")
        if abs(token) > LARGEST_INT:
            raise ValueError(f"token id {token} is not in the vocabulary of any model")
    return torch.tensor(prompt, dtype=torch.long)


@checked
def pad_left(
    prompts: Int[Tensor, "batch seq"] | Prompts,
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch"] | None]:
    """Join prompts in one tensor, the shorter ones padded on the left; also the padding of each row, or None."""
    rows = [as_tensor(prompt) for prompt in prompts]
    if not rows or not all(row.numel() for row in rows):
        raise ValueError("there is nothing to continue: give at least one prompt, and each at least one token")
    longest = max(row.numel() for row in rows)
    left_padding = torch.tensor([longest - row.numel() for row in rows])
    padded = [torch.cat([row.new_zeros(longest - row.numel()), row]) for row in rows]
    return rearrange(padded, "batch seq -> batch seq"), left_padding if left_padding.any() else None


@checked
def truncate_left(
    token_ids: Int[Tensor, "batch seq"], left_padding: Int[Tensor, "batch"] | None, context: int
) -> tuple[Int[Tensor, "batch window"], Int[Tensor, "batch"] | None]:
    """Keep the last `context` positions of a text; the padding of each row shrinks by those that are dropped."""
    num_dropped = max(0, token_ids.shape[1] - context)
    if left_padding is not None and num_dropped:
        left_padding = (left_padding - num_dropped).clamp(min=0)
    return token_ids[:, num_dropped:], left_padding
