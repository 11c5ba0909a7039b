"""The KV cache: the keys and values of positions that a decoder has read, so that a new token costs one position.

An earlier token never attends to a later one, so its keys and values do not change as the text grows: they are computed
once and kept. The caller owns the cache and passes it to the model. Each layer appends to its own state, and the model
advances the length once, at the end of a pass that went through; a pass that fails leaves the cache as it was.

| state | what it keeps | a layer calls |
|---|---|---|
| `LayerCache` | keys and values (or one latent) of all positions | `append` |
| `RollingCache` | those of the last positions, within a sliding window | `append` |
| `FixedState` | tensors of a fixed size, replaced at each pass (recurrent layers) | `update` |
| `SourceCache` | keys and values of another text, filled once (cross-attention) | `fill` |
"""

from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from allformers.nn.shapes import checked, checks_are_on, value_outside


class Cache:
    """The KV cache of one batch of sequences: a state for each layer, and the number of positions they hold.

    Args:
        num_layers: layers of the model.
        capacity: positions to make room for. Memory is allocated at the first use, so that appending never copies.
        left_padding: for sequences of different lengths, padded on the left to one length: how many of each row's first
            positions are padding. They are masked, and each row's own positions start after them.
        windows: for layers with a sliding window: for each layer, how many positions a token attends to, its own
            included, or None for all. Such a layer holds no more than the next token will attend to.

    Attributes:
        length: positions held so far, padding included.
        layers: the state of each layer. Several layers may share one: put the same object into their places.
    """

    @checked
    def __init__(
        self,
        num_layers: int,
        capacity: int,
        left_padding: Int[Tensor, "batch"] | None = None,
        windows: Sequence[int | None] | None = None,
    ) -> None:
        if num_layers < 1 or capacity < 1:
            raise ValueError(f"a cache needs at least one layer and one position, not {num_layers} and {capacity}")
        self.capacity = capacity
        self.length = 0
        self.left_padding = self._checked_padding(left_padding)
        self.windows = {
            size: SlidingWindow(self, size) for size in windows or () if size is not None and size <= capacity
        }
        self.layers: list[LayerCache] = [
            RollingCache(self, self.windows[size]) if size in self.windows else LayerCache(self)
            for size in windows or [None] * num_layers
        ]

    def states(self) -> "Iterator[LayerCache]":
        """The state of each layer; one that several layers share comes once."""
        yield from {id(state): state for state in self.layers}.values()

    @property
    def nbytes(self) -> int:
        """Bytes allocated, over all layers; 0 before the first use."""
        return sum(state.nbytes for state in self.states())

    def evicted(self, window: int | None) -> int:
        """The number of first positions that a layer with this window no longer holds."""
        return 0 if window is None or window > self.capacity else max(0, self.length - (window - 1))

    def ensure_capacity(self, seq: int) -> None:
        """Make sure that `seq` more positions only have to be written.

        Move data now if needed, since a compiled pass cannot reallocate.
        """
        for state in self.layers:
            state.ensure_capacity(seq)

    def advance(self, seq: int) -> None:
        """Count `seq` more positions as held. The model calls this once per pass, after its last layer."""
        for state in self.layers:
            state.commit()
        self.length += seq

    @checked
    def clear(self, left_padding: Int[Tensor, "batch"] | None = None) -> None:
        """Forget all positions but keep the memory, to read another text of the same batch size."""
        self.left_padding = self._checked_padding(left_padding)
        self.length = 0
        for window in self.windows.values():
            window.offset = 0
        for state in self.layers:
            state.clear()

    def _checked_padding(self, left_padding: Tensor | None) -> Tensor | None:
        if left_padding is not None and (padding := value_outside(left_padding, self.capacity)) is not None:
            raise ValueError(
                f"left_padding {padding} is out of range: a cache for {self.capacity} positions has from 0 to "
                f"{self.capacity - 1} in front of a text"
            )
        return left_padding

    def check_fits(self, batch: int, windows: Sequence[int | None]) -> None:
        """Refuse a batch of another size than the cache holds, and a cache that was made for another model.

        Args:
            batch: rows of the text.
            windows: the sliding window of each of the model's layers; None for all positions.

        Raises:
            ValueError: with what the cache was made for.
        """
        if not checks_are_on():
            return
        expected = [None if size is None or size > self.capacity else size for size in windows]
        found = [state.window.size if isinstance(state, RollingCache) else None for state in self.layers]
        if found != expected:
            raise ValueError(
                f"this cache was made for another model: it has {len(found)} layers with the windows {set(found)}, and "
                f"the model {len(expected)} with {set(expected)}. `model.make_cache()` makes one that fits"
            )
        rows = batch if self.left_padding is None else len(self.left_padding)
        rows = next((len(state.buffers[0]) for state in self.layers if self.length and state.buffers), rows)
        if rows != batch:
            raise ValueError(f"this cache holds a batch of {rows} rows, but the tokens have {batch}: make a new cache")

    @checked
    def select(self, rows: Int[Tensor, "selected"]) -> None:
        """Keep these rows of the batch, in this order; a row may come several times. Beam search does so."""
        if self.left_padding is not None:
            self.left_padding = self.left_padding[rows]
        for state in self.states():
            state.select(rows)

    @checked
    def positions(self, seq: int, device: torch.device) -> Int[Tensor, "#batch seq"]:
        """The position of each of the next `seq` tokens in its own sequence; negative for padding."""
        return self._positions(self.length, self.length + seq, device)

    @checked
    def key_positions(self, seq: int, device: torch.device, window: int | None = None) -> Int[Tensor, "#batch seq_k"]:
        """The position of each key that a layer with this window holds once `seq` tokens are appended."""
        return self._positions(self.evicted(window), self.length + seq, device)

    @checked
    def _positions(self, start: int, stop: int, device: torch.device) -> Int[Tensor, "#batch seq"]:
        positions = rearrange(torch.arange(start, stop, device=device), "seq -> 1 seq")
        if self.left_padding is None:
            return positions
        return positions - rearrange(self.left_padding, "batch -> batch 1")

    @checked
    def mask_padding(
        self, mask: Bool[Tensor, "1 1 seq seq_k"]
    ) -> Bool[Tensor, "1 1 seq seq_k"] | Bool[Tensor, "batch 1 seq seq_k"]:
        """Set a mask (True where a query may attend to a key) to False for keys that are padding."""
        if self.left_padding is None:
            return mask
        key = rearrange(torch.arange(mask.shape[-1], device=mask.device), "seq_k -> 1 seq_k")
        is_text = key >= rearrange(self.left_padding, "batch -> batch 1")
        return mask & rearrange(is_text, "batch seq_k -> batch 1 1 seq_k")


class LayerCache:
    """One layer's state: tensors whose last axes are `seq` and a width, such as keys and values, or a latent."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.buffers: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes allocated; 0 before the first use."""
        return sum(buffer.nbytes for buffer in self.buffers)

    @checked
    def append(self, *new: Shaped[Tensor, "... seq _"]) -> tuple[Shaped[Tensor, "... seq_k _"], ...]:
        """Write new positions behind those held, and return views of everything up to and including them.

        The same tensors, in the same order, every time. Until the model calls `Cache.advance` the positions count as
        not held, so a pass that fails leaves the cache as it was.

        Raises:
            ValueError: the positions do not fit the cache's capacity, or are those of another model.
        """
        start, stop = self.cache.length, self._end(new[0].shape[-2])
        if not self._can_hold(new):
            self.buffers = tuple(
                tensor.new_empty((*tensor.shape[:-2], self.cache.capacity, tensor.shape[-1])) for tensor in new
            )
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., start:stop, :] = tensor
        return tuple(buffer[..., :stop, :] for buffer in self.buffers)

    def ensure_capacity(self, seq: int) -> None:
        """Make sure that `seq` more positions fit where they will be written; here they always do."""

    def commit(self) -> None:
        """Commit a pass: what it made counts as held. Appended positions are counted by the cache itself."""

    def clear(self) -> None:
        """Forget all positions; the memory is kept, and will be overwritten."""

    @checked
    def select(self, rows: Int[Tensor, "selected"]) -> None:
        """Keep these rows of the batch, in this order."""
        self.buffers = tuple(buffer[rows] for buffer in self.buffers)

    def _can_hold(self, new: tuple[Tensor, ...]) -> bool:
        """True if there is memory for tensors like these; False if it has yet to be allocated.

        Raises:
            ValueError: the positions held are of another shape, dtype or device.
        """
        if not self.buffers or not checks_are_on():
            return bool(self.buffers)
        held, came = (
            [(*one.shape[:-2], one.shape[-1], one.dtype, one.device) for one in x] for x in (self.buffers, new)
        )
        if held != came and self.cache.length:
            raise ValueError(f"this cache holds another batch or that of another model: {held}, but now came {came}")
        return held == came

    def _end(self, seq: int) -> int:
        """The number of positions with `seq` more."""
        stop = self.cache.length + seq
        if stop > self.cache.capacity:
            raise ValueError(
                f"a cache for {self.cache.capacity} positions cannot hold {stop}: make it with a larger capacity"
            )
        return stop


class SlidingWindow:
    """State shared by all layers with the same sliding window: its size, and the position stored at index 0."""

    def __init__(self, cache: Cache, size: int) -> None:
        self.cache = cache
        self.size = size
        self.offset = 0
        self.layers: list[RollingCache] = []

    def allocation(self, seq: int) -> int:
        """The number of positions to allocate: a quarter more than the window, or as many as a long pass needs."""
        oldest = self.cache.evicted(self.size)
        return max(self.cache.length - oldest + seq, min(self.size * 5 // 4 + 1, self.cache.capacity - oldest))

    def move(self, seq: int) -> None:
        """Move what will still be attended to to the front of new memory with room for `seq` more positions."""
        oldest, size = self.cache.evicted(self.size), self.allocation(seq)
        for layer in self.layers:
            kept = [buffer[..., oldest - self.offset :, :][..., :size, :] for buffer in layer.buffers]
            layer.buffers = tuple(buffer.new_empty((*buffer.shape[:-2], size, buffer.shape[-1])) for buffer in kept)
            for buffer, held in zip(layer.buffers, kept, strict=True):
                buffer[..., : held.shape[-2], :] = held
        self.offset = oldest


class RollingCache(LayerCache):
    """The state of a layer with a sliding window: positions that have left the window are evicted.

    Holds the last window - 1 positions, plus a quarter spare room, so data is moved rarely.
    """

    def __init__(self, cache: Cache, window: SlidingWindow) -> None:
        super().__init__(cache)
        self.window = window
        window.layers.append(self)

    @checked
    def append(self, *new: Shaped[Tensor, "... seq _"]) -> tuple[Shaped[Tensor, "... seq_k _"], ...]:
        """Write new positions behind those held, and return views of all that the first of them attends to, and on.

        As in any layer, a pass that fails leaves what was held.

        Raises:
            ValueError: the positions do not fit the cache's capacity, or are those of another model.
        """
        seq = new[0].shape[-2]
        start, stop, window = self.cache.length, self._end(seq), self.window
        if not self._can_hold(new):
            size = window.allocation(seq)
            self.buffers = tuple(tensor.new_empty((*tensor.shape[:-2], size, tensor.shape[-1])) for tensor in new)
        self.ensure_capacity(seq)
        for buffer, tensor in zip(self.buffers, new, strict=True):
            buffer[..., start - window.offset : stop - window.offset, :] = tensor
        oldest = self.cache.evicted(window.size) - window.offset
        return tuple(buffer[..., oldest : stop - window.offset, :] for buffer in self.buffers)

    def ensure_capacity(self, seq: int) -> None:
        """Move what is held, in all layers with this window, unless `seq` more positions fit behind it."""
        if self.buffers and self.cache.length + seq > self.window.offset + self.buffers[0].shape[-2]:
            self.window.move(seq)


class FixedState(LayerCache):
    """A state of a fixed size that each pass replaces, as a recurrent layer or a convolution has.

    No model here has such layers yet.

    The new value is held beside the old one until the cache advances, so a pass that fails leaves the old one.
    """

    def __init__(self, cache: Cache) -> None:
        super().__init__(cache)
        self.pending: tuple[Tensor, ...] | None = None

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The state after the last pass that went through; empty before the first."""
        return self.buffers

    @checked
    def update(self, *new: Shaped[Tensor, "batch ..."]) -> None:
        """Set the state that counts from the end of this pass on."""
        self.pending = new

    def commit(self) -> None:
        """Commit the value of the pass that has ended."""
        if self.pending is not None:
            self.buffers, self.pending = self.pending, None

    def clear(self) -> None:
        """Forget the state."""
        self.buffers, self.pending = (), None

    @checked
    def select(self, rows: Int[Tensor, "selected"]) -> None:
        """Keep these rows of the batch, in this order."""
        super().select(rows)
        self.pending = None


class SourceCache(LayerCache):
    """Keys and values of another text, which cross-attention reads: filled once, and outside the cache's `length`.

    No model here has cross-attention yet.
    """

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The tensors that were filled in; empty before."""
        return self.buffers

    @checked
    def fill(self, *new: Shaped[Tensor, "... source _"]) -> tuple[Shaped[Tensor, "... source _"], ...]:
        """Keep the tensors of the source, and return them.

        Raises:
            ValueError: it was filled before.
        """
        if self.buffers:
            raise ValueError("the source was filled before: clear the cache to read another one")
        self.buffers = new
        return new

    def clear(self) -> None:
        """Forget the source."""
        self.buffers = ()
