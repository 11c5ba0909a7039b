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

from allformers.nn.shapes import checked


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
        self.windows = {size: Window(self, size) for size in windows or () if size is not None and size <= capacity}
        self.layers: list[LayerCache] = [
            WindowCache(self, self.windows[size]) if size in self.windows else LayerCache(self)
            for size in windows or [None] * num_layers
        ]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, over all layers; 0 before the first use."""
        return sum(buffer.nbytes for layer in self.layers for buffer in layer.buffers)

    def dropped(self, window: int | None) -> int:
        """How many of the first positions a layer with this window no longer has."""
        return 0 if window is None or window > self.capacity else max(0, self.length - (window - 1))

    def make_room(self, seq: int) -> None:
        """See to it that `seq` more positions only have to be written.

        Every layer does so by itself; but a compiled pass can write into memory, and not move it.
        """
        for layer in self.layers:
            layer.make_room(seq)

    def advance(self, seq: int) -> None:
        """Count `seq` more positions as held. The model calls this once per forward pass, after its last layer."""
        self.length += seq

    @checked
    def clear(self, padding: Int[Tensor, "batch"] | None = None) -> None:
        """Forget all positions but keep the memory, to read another text of the same batch size."""
        self.length = 0
        self.padding = padding
        for window in self.windows.values():
            window.first = 0

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

    def make_room(self, seq: int) -> None:
        """See to it that `seq` more positions fit where they will be written; here they always do."""

    def _check_room(self, seq: int) -> int:
        """How many positions there will be with `seq` more."""
        stop = self.cache.length + seq
        if stop > self.cache.capacity:
            raise ValueError(
                f"a cache for {self.cache.capacity} positions cannot hold {stop}: make it with a larger capacity"
            )
        return stop


class Window:
    """What layers that look back equally far have in common: how far, and which position lies first in their memory."""

    def __init__(self, cache: Cache, size: int) -> None:
        self.cache = cache
        self.size = size
        self.first = 0
        self.layers: list[WindowCache] = []

    def room(self, seq: int) -> int:
        """Positions to take memory for: a quarter more than the window, or as many as a long pass needs."""
        oldest = self.cache.dropped(self.size)
        return max(self.cache.length - oldest + seq, min(self.size * 5 // 4 + 1, self.cache.capacity - oldest))

    def make_room(self, seq: int) -> None:
        """Move what will still be seen to the front of new memory."""
        oldest, room = self.cache.dropped(self.size), self.room(seq)
        for layer in self.layers:
            kept = [buffer[..., oldest - self.first :, :][..., :room, :] for buffer in layer.buffers]
            layer.buffers = tuple(buffer.new_empty((*buffer.shape[:-2], room, buffer.shape[-1])) for buffer in kept)
            for buffer, held in zip(layer.buffers, kept, strict=True):
                buffer[..., : held.shape[-2], :] = held
        self.first = oldest


class WindowCache(LayerCache):
    """One layer's part of a `Cache`, for a layer that looks back only so far: what has dropped out is forgotten.

    The next token sees one position less than the window holds, beside itself. There is room for a quarter more, so
    that they are moved to the front only once in a while, however long the text grows.
    """

    def __init__(self, cache: Cache, window: Window) -> None:
        super().__init__(cache)
        self.window = window
        window.layers.append(self)

    @checked
    def append(self, *new: Shaped[Tensor, "... seq _"]) -> tuple[Shaped[Tensor, "... seq_k _"], ...]:
        """Write new positions behind those held, and return views of all that the first of them sees, and on.

        As in any layer, a pass that fails half-way leaves what was held.

        Raises:
            ValueError: the positions do not fit the cache's capacity.
        """
        seq = new[0].shape[-2]
        start, stop, window = self.cache.length, self._check_room(seq), self.window
        if not self.buffers:
            room = window.room(seq)
            self.buffers = tuple(tensor.new_empty((*tensor.shape[:-2], room, tensor.shape[-1])) for tensor in new)
        self.make_room(seq)
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., start - window.first : stop - window.first, :] = tensor
        oldest = self.cache.dropped(window.size) - window.first
        return tuple(buffer[..., oldest : stop - window.first, :] for buffer in self.buffers)

    def make_room(self, seq: int) -> None:
        """Move what is held, in all layers with this window, unless `seq` more positions fit behind it."""
        if self.buffers and self.cache.length + seq > self.window.first + self.buffers[0].shape[-2]:
            self.window.make_room(seq)
