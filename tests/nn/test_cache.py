"""The cache: memory made once, written once, never copied; and whole again after a failure."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.nn.cache import Cache


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


def test_a_forward_pass_that_fails_leaves_the_cache_as_it_was() -> None:
    model = GPT2(GPT2Config.tiny()).eval()
    token_ids = torch.randint(256, (1, 7))
    cache = model.make_cache()
    model(token_ids[:, :4], cache=cache)

    def fail(*_: object) -> None:
        raise RuntimeError("mine")

    handle = model.blocks[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mine"):
        model(torch.randint(256, (1, 5)), cache=cache)
    handle.remove()
    assert cache.length == 4
    torch.testing.assert_close(model(token_ids[:, 4:], cache=cache), model(token_ids)[:, 4:])


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
