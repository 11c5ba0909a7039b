"""The cache: memory made once, written once, never copied; and whole again after a failure."""

import dataclasses
from typing import Any

import pytest
import torch
from einops import reduce, repeat
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from allformers.generation.decoder import Decoder
from allformers.models.registry import READING_ORDER
from allformers.nn.cache import Cache, FixedState, LayerCache, RollingCache, SourceCache
from conftest import perturb


def test_appending_returns_everything_so_far_in_the_same_memory() -> None:
    cache = Cache(num_layers=1, capacity=6)
    keys, values = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6, 5)
    places = set()
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        held = cache.layers[0].append(keys[:, :, start:stop], values[:, :, start:stop])
        cache.advance(stop - start)
        assert torch.equal(held[0], keys[:, :, :stop])
        assert torch.equal(held[1], values[:, :, :stop])
        places.add(tuple(tensor.data_ptr() for tensor in held))
    assert len(places) == 1
    assert cache.length == 6
    assert cache.nbytes == 4 * (keys.numel() + values.numel())


@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_any_split_into_chunks_holds_the_same(chunks: list[int]) -> None:
    total = sum(chunks)
    latent = torch.randn(2, total, 3)  # any tensor whose axes end in seq and a width
    cache, start = Cache(num_layers=2, capacity=total + 1), 0
    for chunk in chunks:
        for layer in cache.layers:
            (held,) = layer.append(latent[:, start : start + chunk])
        cache.advance(chunk)
        start += chunk
    assert torch.equal(held, latent)


def test_layers_do_not_share() -> None:
    cache = Cache(num_layers=2, capacity=1)
    (first,) = cache.layers[0].append(torch.ones(1, 1, 1))
    cache.layers[1].append(torch.zeros(1, 1, 1))
    assert first.item() == 1


def test_a_full_cache_says_how_much_it_was_made_for() -> None:
    cache = Cache(num_layers=1, capacity=2)
    with pytest.raises(ValueError, match=r"\b2\b.*\b3\b"):
        cache.layers[0].append(torch.zeros(1, 3, 1))
    with pytest.raises(ValueError, match=r"\b0\b.*\b2\b"):
        Cache(num_layers=0, capacity=2)


def test_clearing_forgets_positions_and_keeps_memory() -> None:
    cache = Cache(num_layers=1, capacity=3, left_padding=torch.tensor([1]))
    (held,) = cache.layers[0].append(torch.ones(1, 2, 1))
    cache.advance(2)
    cache.clear()
    assert (cache.length, cache.left_padding) == (0, None)
    (again,) = cache.layers[0].append(torch.zeros(1, 1, 1))
    assert again.data_ptr() == held.data_ptr()


def test_positions_count_on_and_start_after_padding() -> None:
    plain, cpu = Cache(num_layers=1, capacity=9), torch.device("cpu")
    plain.advance(4)
    assert plain.positions(3, cpu).tolist() == [[4, 5, 6]]
    assert plain.key_positions(3, cpu).tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert plain.key_positions(3, cpu, 3).tolist() == [[2, 3, 4, 5, 6]]  # what a window of 3 still holds, and the new
    padded = Cache(num_layers=1, capacity=9, left_padding=torch.tensor([0, 2]))
    assert padded.positions(3, cpu).tolist() == [[0, 1, 2], [-2, -1, 0]]  # negative for padding
    padded.advance(3)
    assert padded.positions(3, cpu).tolist() == [[3, 4, 5], [1, 2, 3]]
    assert padded.key_positions(1, cpu).tolist() == [[0, 1, 2, 3], [-2, -1, 0, 1]]


def test_padding_is_hidden_from_every_query_of_its_row() -> None:
    everything = torch.ones(1, 1, 2, 3, dtype=torch.bool)
    assert Cache(num_layers=1, capacity=3).mask_padding(everything) is everything
    mask = Cache(num_layers=1, capacity=3, left_padding=torch.tensor([0, 2])).mask_padding(everything)
    assert mask[:, 0].tolist() == [[[True] * 3] * 2, [[False, False, True]] * 2]


# Every kind of state, in a pass that fails, and for other rows

WINDOW = 3
FAILURES = [None, 0, 1, 2, 3]
"""After the state of which layer a pass fails, if it does."""


class PassError(Exception):
    """Raised in the middle of a pass."""


def make_states(left_padding: Tensor | None = None) -> Cache:
    """A cache with a state of each kind; the first layer and the last share one."""
    cache = Cache(num_layers=5, capacity=40, left_padding=left_padding, windows=[None, WINDOW, None, None, None])
    cache.layers[2:] = [FixedState(cache), SourceCache(cache), cache.layers[0]]
    assert [type(state) for state in cache.states()] == [LayerCache, RollingCache, FixedState, SourceCache]
    return cache


def read(x: Tensor, cache: Cache, fail_after: int | None = None) -> Tensor:
    """A pass through five layers, each of which adds to x what its state tells it."""
    every, last, fixed, source, _ = cache.layers
    seq = x.shape[1]

    def end_of(layer: int) -> None:
        if layer == fail_after:
            raise PassError

    (held,) = every.append(x)
    sums = held.cumsum(dim=1)[:, -seq:]
    end_of(0)
    (near,) = last.append(x + sums)
    reach = near.shape[1]
    windows = [near[:, max(0, reach - seq + at + 1 - WINDOW) : reach - seq + at + 1].sum(dim=1) for at in range(seq)]
    x = x + sums + torch.stack(windows, dim=1)
    end_of(1)
    assert isinstance(fixed, FixedState)
    before = fixed.values[0] if fixed.values else torch.zeros_like(x[:, 0])
    running = x.cumsum(dim=1) + before[:, None]
    fixed.update(running[:, -1])
    assert fixed.values == () or torch.equal(fixed.values[0], before)  # until the pass ends
    x = x + running
    end_of(2)
    assert isinstance(source, SourceCache)
    x = x * reduce(source.values[0], "batch source width -> batch 1 width", "sum")
    end_of(3)
    cache.advance(seq)
    return x


def filled(rows: int, left_padding: Tensor | None = None) -> Cache:
    """The cache of so many rows, with its source."""
    cache = make_states(left_padding)
    source = torch.arange(1, rows + 1).double()
    (kept,) = cache.layers[3].fill(repeat(source, "batch -> batch source width", source=4, width=2))  # type: ignore[attr-defined]
    assert torch.equal(kept, cache.layers[3].buffers[0])
    return cache


@given(st.lists(st.tuples(st.integers(1, 7), st.sampled_from(FAILURES), st.integers(1, 7)), min_size=1, max_size=5))
def test_a_pass_that_fails_leaves_every_kind_of_state_as_it_was(passes: list[tuple[int, int | None, int]]) -> None:
    """Each pass may be tried first with other positions, and more or fewer of them, and fail in any layer."""
    total = sum(length for length, _, _ in passes)
    x = torch.randn(2, total, 2, dtype=torch.float64)
    whole, cache, start = read(x, filled(2)), filled(2), 0
    for length, fail_after, tried in passes:
        if fail_after is not None and start + tried <= cache.capacity:
            with pytest.raises(PassError):
                read(torch.full((2, tried, 2), 1e9, dtype=torch.float64), cache, fail_after)
            assert cache.length == start
        got = read(x[:, start : start + length], cache)
        start += length
        torch.testing.assert_close(got, whole[:, start - length : start], rtol=1e-12, atol=1e-9)
    assert cache.length == total


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(1, 9), st.sampled_from(FAILURES))
def test_selected_rows_go_on_as_by_themselves(rows: list[int], read_before: int, fails: int | None) -> None:
    x = torch.randn(3, read_before + 4, 2, dtype=torch.float64)
    whole = read(x, filled(3))
    cache = filled(3, left_padding=torch.tensor([0, 1, 2]))
    read(x[:, :read_before], cache)
    if fails is not None:
        with pytest.raises(PassError):
            read(x[:, :5], cache, fails)
    chosen = torch.tensor(rows)
    cache.select(chosen)
    assert cache.left_padding is not None
    assert cache.left_padding.tolist() == rows
    assert cache.length == read_before
    got = torch.cat([read(x[chosen, at : at + 1], cache) for at in range(read_before, read_before + 4)], dim=1)
    torch.testing.assert_close(got, whole[chosen, read_before:], rtol=1e-12, atol=1e-9)


def test_a_shared_state_counts_once_and_is_selected_once() -> None:
    cache = Cache(num_layers=3, capacity=4)
    cache.layers[2] = cache.layers[0]
    shared, own, _ = cache.layers
    assert list(cache.states()) == [shared, own]
    x = torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])
    for layer in cache.layers:
        layer.append(x)
    cache.advance(2)
    assert cache.nbytes == 2 * (2 * 4 * 1 * 4)
    cache.select(torch.tensor([1, 0]))  # twice would be the old order
    for layer in cache.layers:
        assert layer.buffers[0][:, :2, 0].tolist() == [[3.0, 4.0], [1.0, 2.0]]


def test_a_source_is_filled_once_and_cleared_with_the_rest() -> None:
    cache = filled(2)
    read(torch.ones(2, 3, 2, dtype=torch.float64), cache)
    with pytest.raises(ValueError, match="source"):
        cache.layers[3].fill(torch.zeros(2, 4, 2))  # type: ignore[attr-defined]
    cache.clear()
    assert cache.length == 0
    assert cache.layers[3].buffers == cache.layers[2].buffers == ()
    cache.layers[3].fill(torch.ones(2, 4, 2).double())  # type: ignore[attr-defined]
    once = read(torch.ones(2, 3, 2, dtype=torch.float64), cache)
    assert torch.equal(once[0], once[1])


DECODERS = [entry for entry in READING_ORDER if issubclass(entry.load(), Decoder)]


@pytest.mark.parametrize("entry", DECODERS, ids=lambda entry: entry.name)
def test_a_models_pass_that_fails_leaves_the_cache_as_it_was(entry: Any) -> None:
    """After each block in turn, with longer and shorter texts than what comes then; past every window."""
    config = entry.load().checkpoint_format().config_class.tiny()
    if hasattr(config, "sliding_window"):
        config = dataclasses.replace(config, sliding_window=5)
    model = perturb(entry.load()(config)).double().eval()
    token_ids, cache, start = torch.randint(256, (2, 30)), model.make_cache(left_padding=torch.tensor([0, 3])), 0
    calm = model.make_cache(left_padding=torch.tensor([0, 3]))

    def fail(*_: object) -> None:
        raise PassError

    with torch.no_grad():
        for number, length in enumerate((3, 1, 1, 9, 1, 1, 1, 6, 1, 1)):
            part = model.blocks[number % len(model.blocks)].mlp  # attention has taken its keys by then
            handle = part.register_forward_pre_hook(fail)
            for tried in (1, 11):
                with pytest.raises(PassError):
                    model(torch.randint(256, (2, tried)), cache=cache)
                assert cache.length == start
            handle.remove()
            chunk = token_ids[:, start : start + length]
            assert torch.equal(model(chunk, cache=cache), model(chunk, cache=calm))
            start += length


def decoders() -> list[Any]:
    return [entry for entry in READING_ORDER if issubclass(entry.load(), Decoder)]


@pytest.mark.parametrize("entry", decoders(), ids=lambda entry: entry.name)
def test_a_cache_of_another_batch_or_model_is_refused_and_stays_as_it_was(entry: Any) -> None:
    model = entry.load()(entry.load().checkpoint_format().config_class.tiny()).eval()
    cache, token_ids = model.make_cache(8), torch.zeros(1, 2, dtype=torch.long)
    with torch.no_grad():
        model(token_ids, cache=cache)
        with pytest.raises(ValueError, match=r"\b1 rows.*\b2\b"):
            model(torch.zeros(2, 2, dtype=torch.long), cache=cache)
        assert cache.length == 2
        assert model(token_ids, cache=cache).isfinite().all()
        with pytest.raises(ValueError, match=r"\b99 layers"):
            model(token_ids, cache=Cache(99, 8))
        with pytest.raises(ValueError, match=r"\b2 rows.*\b3\b"):
            model(torch.zeros(3, 2, dtype=torch.long), cache=model.make_cache(8, torch.tensor([0, 1])))
        assert model(token_ids[:0], cache=model.make_cache(8)).shape[:2] == (0, 2)
        assert model(token_ids[:0]).shape[:2] == (0, 2)


def test_positions_of_another_shape_or_dtype_are_refused_and_an_empty_cache_takes_any() -> None:
    cache = Cache(1, 8)
    cache.layers[0].append(torch.zeros(2, 3, 4))  # a pass that failed further on
    cache.layers[0].append(torch.zeros(1, 3, 4))
    cache.advance(3)
    for other in (torch.zeros(2, 1, 4), torch.zeros(1, 1, 5), torch.zeros(1, 1, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"another"):
            cache.layers[0].append(other)
    with pytest.raises(ValueError, match=r"another"):
        cache.layers[0].append(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))


@pytest.mark.parametrize("padding", [-5, 8, 99])
def test_padding_that_does_not_fit_the_cache_is_refused(padding: int) -> None:
    with pytest.raises(ValueError, match=rf"left_padding {padding}\b.* 7\b"):
        Cache(1, 8, torch.tensor([0, padding]))
    cache = Cache(1, 8)
    cache.advance(3)
    with pytest.raises(ValueError, match=rf"left_padding {padding}\b"):
        cache.clear(torch.tensor([padding]))
    assert cache.length == 3
