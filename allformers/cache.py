"""What a decoder remembers of the positions that it has seen, so that each new token costs one position and not all.

Earlier tokens never see later ones, so their keys and values do not change as the text grows: they are computed once
and kept. The caller owns the cache and passes it to the model; each layer appends to its part; the model advances the
length once, at the end of a forward pass that went through.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from allformers.shapes import checked


class Cache:
    """The memory of one batch of sequences: a `LayerCache` for each layer, and how many positions they hold.

    Args:
        num_layers: layers of the model.
        capacity: positions to make room for. All of it is allocated at the first use, so that appending never copies.
        padding: for sequences of different lengths, padded on the left to one length: how many of each row's first
            positions are padding. Those are hidden from attention, and each row's own positions start after them.
        windows: for layers that look back only so far: for each layer, how many positions a token sees, its own
            included, or None for all. Such a layer holds no more than the next token will look at.

    Attributes:
        length: positions held so far, padding included.
    """

    @checked
    def __init__(
        self,
        num_layers: int,
        capacity: int,
        padding: Int[Tensor, "batch"] | None = None,
        windows: Sequence[int | None] | None = None,
    ) -> None:
        if num_layers < 1 or capacity < 1:
            raise ValueError(f"a cache needs at least one layer and one position, not {num_layers} and {capacity}")
        self.capacity = capacity
        self.length = 0
        self.padding = padding
        self.layers: list[LayerCache] = [
            LayerCache(self) if window is None or window > capacity else WindowCache(self, window)
            for window in windows or [None] * num_layers
        ]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, over all layers; 0 before the first use."""
        return sum(buffer.nbytes for layer in self.layers for buffer in layer.buffers)

    def dropped(self, window: int | None) -> int:
        """How many of the first positions a layer with this window no longer has."""
        return 0 if window is None or window > self.capacity else max(0, self.length - (window - 1))

    def advance(self, seq: int) -> None:
        """Count `seq` more positions as held. The model calls this once per forward pass, after its last layer."""
        self.length += seq

    @checked
    def clear(self, padding: Int[Tensor, "batch"] | None = None) -> None:
        """Forget all positions but keep the memory, to read another text of the same batch size."""
        self.length = 0
        self.padding = padding

    @checked
    def positions(self, token_ids: Int[Tensor, "batch seq"]) -> Int[Tensor, "#batch seq"]:
        """The position of each new token in its own sequence: counted on from what is held, not counting padding."""
        seq = torch.arange(self.length, self.length + token_ids.shape[1], device=token_ids.device)
        positions = rearrange(seq, "seq -> 1 seq")
        if self.padding is None:
            return positions
        return (positions - rearrange(self.padding, "batch -> batch 1")).clamp(min=0)

    @checked
    def block_padding(
        self, blocked: Bool[Tensor, "1 1 seq_q seq_k"]
    ) -> Bool[Tensor, "1 1 seq_q seq_k"] | Bool[Tensor, "batch 1 seq_q seq_k"]:
        """Extend a mask (True where a query must not see a key) by the keys that are padding."""
        if self.padding is None:
            return blocked
        seq_k = torch.arange(blocked.shape[-1], device=blocked.device)
        is_padding = rearrange(seq_k, "seq_k -> 1 seq_k") < rearrange(self.padding, "batch -> batch 1")
        return blocked | rearrange(is_padding, "batch seq_k -> batch 1 1 seq_k")


class LayerCache:
    """One layer's part of a `Cache`: any tensors whose last axes are `seq` and a width (keys and values, say)."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.buffers: tuple[Tensor, ...] = ()

    @checked
    def append(self, *new: Shaped[Tensor, "... seq _"]) -> tuple[Shaped[Tensor, "... seq_k _"], ...]:
        """Write new positions behind those held, and return views of everything up to and including them.

        The same tensors, in the same order, every time. Until the model calls `Cache.advance` the positions count as
        not held, so a forward pass that fails half-way leaves the cache as it was.

        Raises:
            ValueError: the positions do not fit the cache's capacity.
        """
        start, stop = self.cache.length, self._check_room(new[0].shape[-2])
        if not self.buffers:
            self.buffers = tuple(
                tensor.new_empty((*tensor.shape[:-2], self.cache.capacity, tensor.shape[-1])) for tensor in new
            )
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., start:stop, :] = tensor
        return tuple(buffer[..., :stop, :] for buffer in self.buffers)

    def _check_room(self, seq: int) -> int:
        """How many positions there will be with `seq` more."""
        stop = self.cache.length + seq
        if stop > self.cache.capacity:
            raise ValueError(
                f"a cache for {self.cache.capacity} positions cannot hold {stop}: make it with a larger capacity"
            )
        return stop


class WindowCache(LayerCache):
    """One layer's part of a `Cache`, for a layer that looks back only so far: what has dropped out is forgotten.

    It keeps `window - 1` positions, all that the next token sees beside itself, however long the text grows.
    """

    def __init__(self, cache: Cache, window: int) -> None:
        super().__init__(cache)
        self.window = window
        self.ends: dict[int, tuple[Tensor, ...]] = {}
        """What is held, by the length of the text that it is the end of: before the latest pass, and after it."""

    @checked
    def append(self, *new: Shaped[Tensor, "... seq _"]) -> tuple[Shaped[Tensor, "... seq_k _"], ...]:
        """Put new positions behind those held, return all of them, and keep the last for later.

        As in any layer, a pass that fails half-way leaves what was held.

        Raises:
            ValueError: the positions do not fit the cache's capacity.
        """
        start, stop = self.cache.length, self._check_room(new[0].shape[-2])
        held = self.ends[start] if start else tuple(tensor[..., :0, :] for tensor in new)
        whole = tuple(torch.cat([old, tensor], dim=-2) for old, tensor in zip(held, new, strict=True))
        kept = tuple(tensor[..., max(0, tensor.shape[-2] - (self.window - 1)) :, :] for tensor in whole)
        # Of much more, a copy, so that the rest can go; one position too many costs less than copying the others.
        self.buffers = kept if whole[0].shape[-2] <= self.window else tuple(tensor.clone() for tensor in kept)
        self.ends = {start: held, stop: self.buffers}
        return whole
