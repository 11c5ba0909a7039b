"""Writing with a decoder: read the prompt once, then one token at a time, each fed back in.

Prefill, step, loop. The prompt goes through the model in one pass, which fills the cache; then each step passes only
the newest token, and the cache supplies the rest. Once the text is longer than the model's context the window slides:
the oldest token drops out, every position shifts by one, and so the whole window is read anew at each step.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from allformers.cache import Cache
from allformers.sampling import sample, validate
from allformers.shapes import check_token_ids, checked, unchecked

Prompts = Sequence[Sequence[int] | Int[Tensor, "_"]]
"""Prompts of different lengths: one list (or one-dimensional tensor) of token ids each."""


class Generative(nn.Module):
    """What a decoder can do beyond one forward pass: `generate`, `generate_batch`, `stream`, `make_cache`.

    A subclass has a `config` with `context_length`, `vocab_size` and `num_layers`, and the methods `read` (token ids
    and a cache to the residual stream) and `unembed` (the residual stream to logits).
    """

    config: Any

    @checked
    def make_cache(self, capacity: int | None = None, padding: Int[Tensor, "batch"] | None = None) -> Cache:
        """A new, empty cache for this model, with room for `capacity` positions (its whole context if None)."""
        return Cache(self.config.num_layers, self.config.context_length if capacity is None else capacity, padding)

    def read(self, token_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Run the model up to its last block; a subclass says how."""
        raise NotImplementedError

    def unembed(self, x: Tensor) -> Tensor:
        """Turn the residual stream into logits; a subclass says how."""
        raise NotImplementedError

    @checked
    def generate(
        self,
        token_ids: Int[Tensor, "batch seq"],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_tokens: Iterable[int] = (),
        prefill: int | None = None,
    ) -> Int[Tensor, "batch total"]:
        """Continue a batch of prompts of one length; the prompt, followed by the new tokens.

        Args:
            token_ids: the prompts. Of a prompt longer than the context the model reads only the end.
            max_new_tokens: how many tokens to write, at most.
            temperature: 0 takes the likeliest token each time; see `allformers.sampling` for the rest.
            top_k: choose among that many tokens only.
            top_p: choose among the likeliest tokens that hold that much probability.
            seed: row r draws with the seed `seed + r`, whatever its neighbours are; None draws from PyTorch's global
                generator.
            stop_tokens: a row ends with the first of these that it writes; it then repeats that token until all rows
                have ended.
            prefill: how many tokens of a prompt to read at once. The longer the piece, the more memory the scores of
                attention take, and the faster it goes; None reads all at once. The text does not depend on it.

        Raises:
            ShapeError: the prompts are not a tensor of integers with two axes.
            ValueError: a setting is out of range, a prompt is empty, or a token is not in the vocabulary.
        """
        tokens = self.stream(
            token_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_tokens=stop_tokens,
            prefill=prefill,
        )
        columns = [rearrange(token, "batch -> batch 1") for token in tokens]
        return torch.cat([token_ids.to(self._device), *columns], dim=1)

    @checked
    def generate_batch(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_tokens: Iterable[int] = (),
        prefill: int | None = None,
    ) -> list[Int[Tensor, "_"]]:
        """Continue prompts of different lengths in one batch; each gets what it would get alone.

        Arguments and errors as for `generate`. Each result is its prompt followed by the new tokens, up to and
        including the first stop token.
        """
        stop_tokens = tuple(stop_tokens)
        tokens = self.stream(
            prompts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_tokens=stop_tokens,
            prefill=prefill,
        )
        written: list[list[int]] = [[] for _ in prompts]
        for column in tokens:
            for row, token in zip(written, column.tolist(), strict=True):
                if not row or row[-1] not in stop_tokens:
                    row.append(token)
        return [
            torch.cat([_as_tensor(prompt), torch.tensor(row, dtype=torch.long)]).to(self._device)
            for prompt, row in zip(prompts, written, strict=True)
        ]

    @checked
    def stream(
        self,
        token_ids: Int[Tensor, "batch seq"] | Prompts,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop_tokens: Iterable[int] = (),
        prefill: int | None = None,
    ) -> Iterator[Int[Tensor, "batch"]]:
        """Write token by token: an iterator over the next token of every row, as soon as it is known.

        Arguments and errors as for `generate`; prompts of different lengths as for `generate_batch`.
        """
        validate(temperature, top_k, top_p)
        if prefill is not None and prefill < 1:
            raise ValueError(f"prefill must be at least 1, not {prefill}")
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, not {max_new_tokens}")
        stop = torch.tensor(tuple(stop_tokens), dtype=torch.long, device=self._device)
        prompt, padding = _pad(token_ids)
        check_token_ids(prompt, self.config.vocab_size)
        check_token_ids(stop.cpu(), self.config.vocab_size)
        generators = None
        if seed is not None and temperature > 0:
            generators = [torch.Generator(self._device).manual_seed(seed + row) for row in range(len(prompt))]

        def pick(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
            return sample(logits, temperature, top_k, top_p, generators)

        prompt, padding = prompt.to(self._device), None if padding is None else padding.to(self._device)
        return self._write(prompt, padding, max_new_tokens, pick, stop, prefill)

    @checked
    def _write(
        self,
        text: Int[Tensor, "batch seq"],
        padding: Int[Tensor, "batch"] | None,
        max_new_tokens: int,
        pick: Callable[[Tensor], Tensor],
        stop: Int[Tensor, "stops"],
        prefill: int | None,
    ) -> Iterator[Int[Tensor, "batch"]]:
        """Prefill, step, loop."""
        context = self.config.context_length
        text, padding = _window(text, padding, context)
        cache = self.make_cache(min(context, text.shape[1] + max_new_tokens), padding)
        unread = text
        last: Tensor | None = None
        for count in range(max_new_tokens):
            # The first pass has shown that all shapes fit; later ones differ from it in one axis only.
            with torch.inference_mode(), evaluating(self), unchecked() if count else contextlib.nullcontext():
                token = pick(self._next_logits(unread, cache, prefill))
                if last is not None and stop.numel():
                    token = torch.where(torch.isin(last, stop), last, token)
                last = token
                column = rearrange(token, "batch -> batch 1")
                text, padding = _window(torch.cat([text, column], dim=1), padding, context)
                if cache.length < context:
                    unread = column
                else:
                    cache.clear(padding)
                    unread = text
            yield token
            if stop.numel() and bool(torch.isin(token, stop).all()):
                return

    @checked
    def _next_logits(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache, prefill: int | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """Read tokens, so many at once, and score what may follow the last of them."""
        seq = token_ids.shape[1]
        piece = prefill or seq
        *starts, last = range(0, seq, piece)
        for start in starts:
            self.read(token_ids[:, start : start + piece], cache)
        return self.step(token_ids[:, last:], cache)

    @checked
    def step(self, token_ids: Int[Tensor, "batch seq"], cache: Cache) -> Float[Tensor, "batch vocab"]:
        """Read the newest tokens, and score what may follow the last of them; the others need no logits."""
        x = self.read(token_ids, cache)
        return rearrange(self.unembed(x[:, -1:]), "batch 1 vocab -> batch vocab")

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device


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
def _as_tensor(prompt: Sequence[int] | Int[Tensor, "seq"]) -> Int[Tensor, "seq"]:
    return prompt.cpu().long() if isinstance(prompt, Tensor) else torch.tensor(prompt, dtype=torch.long)


@checked
def _pad(prompts: Int[Tensor, "batch seq"] | Prompts) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch"] | None]:
    """Prompts as one tensor, the shorter ones filled up on the left, and how much of each row is filling."""
    rows = [_as_tensor(prompt) for prompt in prompts]
    if not rows or not all(row.numel() for row in rows):
        raise ValueError("there is nothing to continue: give at least one prompt, and each at least one token")
    longest = max(row.numel() for row in rows)
    padding = torch.tensor([longest - row.numel() for row in rows])
    filled = [torch.cat([row.new_zeros(longest - row.numel()), row]) for row in rows]
    return rearrange(filled, "batch seq -> batch seq"), padding if padding.any() else None


@checked
def _window(
    text: Int[Tensor, "batch seq"], padding: Int[Tensor, "batch"] | None, context: int
) -> tuple[Int[Tensor, "batch window"], Int[Tensor, "batch"] | None]:
    """The last `context` positions of a text, and what padding is left in them."""
    dropped = max(0, text.shape[1] - context)
    if padding is not None and dropped:
        padding = (padding - dropped).clamp(min=0)
    return text[:, dropped:], padding
