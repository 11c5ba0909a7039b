"""`Decoder`, the base class of models that predict the next token: it adds caches and generation to `Pretrained`."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from allformers.checkpoints.pretrained import Pretrained
from allformers.generation.generate import Prompts, as_tensor, decode, pad_left
from allformers.generation.sampling import sample, validate
from allformers.nn.cache import Cache
from allformers.nn.shapes import check_token_ids, checked


class Decoder(Pretrained):
    """Base class of autoregressive models: `generate`, `generate_batch`, `stream`, `make_cache`.

    A model has a `config` with `vocab_size`, `context_length` and `num_layers`, and two methods: `residual_stream`,
    from token ids to the residual stream (hidden states) after the last block, and `unembed` (the LM head), from there
    to logits.
    """

    config: Any

    def residual_stream(self, token_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """The residual stream (hidden states) after the last block; each model defines it."""
        raise NotImplementedError

    def unembed(self, x: Tensor) -> Tensor:
        """From the residual stream to logits, by the LM head; each model defines it."""
        raise NotImplementedError

    def windows(self) -> list[int | None]:
        """For each layer, the number of positions that a token attends to, its own included; None for all."""
        return [None] * int(self.config.num_layers)

    @checked
    def make_cache(self, capacity: int | None = None, left_padding: Int[Tensor, "batch"] | None = None) -> Cache:
        """A new, empty cache for this model.

        Args:
            capacity: positions to make room for; the whole context if None.
            left_padding: for prompts padded on the left to one length, the padding of each row.
        """
        capacity = self.config.context_length if capacity is None else capacity
        return Cache(self.config.num_layers, capacity, left_padding, self.windows())

    @checked
    def positions(self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None) -> Int[Tensor, "#batch seq"]:
        """The position of each token in its own sequence; negative for padding.

        Raises:
            ValueError: the cache was made for another model, or for another number of rows.
        """
        seq, device = token_ids.shape[1], token_ids.device
        if cache is not None:
            cache.check_fits(len(token_ids), self.windows())
            return cache.positions(seq, device)
        return rearrange(torch.arange(seq, device=device), "seq -> 1 seq")

    @checked
    def key_positions(
        self, token_ids: Int[Tensor, "batch seq"], cache: Cache | None = None, window: int | None = None
    ) -> Int[Tensor, "#batch seq_k"]:
        """The position of each key that these tokens may meet in a layer with this window."""
        if cache is None:
            return self.positions(token_ids)
        return cache.key_positions(token_ids.shape[1], token_ids.device, window)

    def check_length(self, token_ids: Tensor, cache: Cache | None = None) -> None:
        """Refuse a text longer than the context, where the model has no embedding for the positions beyond.

        Raises:
            ValueError: with both lengths.
        """
        length = token_ids.shape[1] + (0 if cache is None else cache.length)
        if length > self.config.context_length:
            raise ValueError(
                f"{length} tokens are too many: this model's context_length is {self.config.context_length}. Shorten "
                "the text, or use `generate`, whose window slides"
            )

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
        prefill_chunk_size: int | None = None,
    ) -> Int[Tensor, "batch total"]:
        """Continue a batch of prompts of one length; return the prompts, followed by the new tokens.

        Args:
            token_ids: the prompts. Of a prompt longer than the context the model reads only the end.
            max_new_tokens: the number of tokens to generate, at most.
            temperature: 0 takes the likeliest token each time; see `allformers.generation.sampling` for the rest.
            top_k: choose among that many tokens only.
            top_p: nucleus sampling: choose among the likeliest tokens that hold that much probability.
            seed: row r draws with the seed `seed + r`, whatever its neighbours are; None draws from PyTorch's global
                generator.
            stop_tokens: a row ends with the first of these that it writes; it then repeats that token until all rows
                have ended.
            prefill_chunk_size: the number of a prompt's tokens to read at once; None reads all at once. The longer the
                chunk, the more memory attention's scores take, and the faster it goes. The text does not depend on it.

        Raises:
            ShapeError: the prompts are not a tensor of integers with two axes.
            ValueError: a setting is out of range, a prompt is empty, or a token is not in the vocabulary.
            LogitsError: the model gives NaN or infinity.
        """
        tokens = self.stream(
            token_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_tokens=stop_tokens,
            prefill_chunk_size=prefill_chunk_size,
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
        prefill_chunk_size: int | None = None,
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
            prefill_chunk_size=prefill_chunk_size,
        )
        generated: list[list[int]] = [[] for _ in prompts]
        for column in tokens:
            for row, token in zip(generated, column.tolist(), strict=True):
                if not row or row[-1] not in stop_tokens:
                    row.append(token)
        return [
            torch.cat([as_tensor(prompt), torch.tensor(row, dtype=torch.long)]).to(self._device)
            for prompt, row in zip(prompts, generated, strict=True)
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
        prefill_chunk_size: int | None = None,
    ) -> Iterator[Int[Tensor, "batch"]]:
        """Generate token by token: return an iterator over the next token of every row, as soon as it is known.

        Arguments and errors as for `generate`; prompts of different lengths as for `generate_batch`.
        """
        validate(temperature, top_k, top_p)
        if prefill_chunk_size is not None and (isinstance(prefill_chunk_size, bool) or prefill_chunk_size < 1):
            raise ValueError(f"prefill_chunk_size must be a whole number of at least 1, not {prefill_chunk_size}")
        if isinstance(max_new_tokens, bool) or max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be a whole number of at least 0, not {max_new_tokens}")
        stop = as_tensor(tuple(stop_tokens)).to(self._device)
        prompt, left_padding = pad_left(token_ids)
        if seed is not None and not -(2**63) <= seed <= 2**64 - len(prompt):
            raise ValueError(f"seed must be from -2**63 to {2**64 - len(prompt)}, not {seed}")
        check_token_ids(prompt, self.config.vocab_size)
        check_token_ids(stop.cpu(), self.config.vocab_size)
        generators = None
        if seed is not None and temperature > 0:
            generators = [torch.Generator(self._device).manual_seed(seed + row) for row in range(len(prompt))]

        def sample_rows(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, "batch"]:
            return sample(logits, temperature, top_k, top_p, generators)

        prompt = prompt.to(self._device)
        left_padding = None if left_padding is None else left_padding.to(self._device)
        return decode(self, prompt, left_padding, max_new_tokens, sample_rows, stop, prefill_chunk_size)

    @checked
    def decode_step(self, token_ids: Int[Tensor, "batch seq"], cache: Cache) -> Float[Tensor, "batch vocab"]:
        """The logits after the last of the newest tokens; the other positions need none."""
        x = self.residual_stream(token_ids, cache)
        return rearrange(self.unembed(x[:, -1:]), "batch 1 vocab -> batch vocab")

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device
