"""Writing: with a cache, in batches and in streams, the text is what the plain definition gives."""

import dataclasses
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from allformers.generation.sampling import LogitsError
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.nn.shapes import ShapeError
from conftest import perturb

CONFIG = GPT2Config(
    vocab_size=50,
    context_length=12,
    embedding_dim=24,
    num_layers=2,
    num_heads=3,
    mlp_dim=40,
    dropout=0.5,
    tie_embeddings=False,
)


def make_model() -> GPT2:
    torch.manual_seed(0)
    model = GPT2(CONFIG)
    perturb(model, 0.4)
    return model.eval()


@pytest.fixture
def model() -> GPT2:
    return make_model()


def definition(model: GPT2, prompt: list[int], new: int) -> list[int]:
    """Greedy decoding as one would define it: read the last `context_length` tokens, take the likeliest next one."""
    text = list(prompt)
    with torch.no_grad():
        for _ in range(new):
            text.append(int(model(torch.tensor([text[-CONFIG.context_length :]]))[0, -1].argmax()))
    return text


@pytest.mark.parametrize("length", [1, 5, 11, 12, 13, 30])
def test_greedy_text_is_the_definitions_also_far_past_the_context(model: GPT2, length: int) -> None:
    prompt = torch.randint(50, (2, length))
    written = model.generate(prompt, max_new_tokens=30, temperature=0)
    assert written.tolist() == [definition(model, row, 30) for row in prompt.tolist()]
    assert len(set(written[0, length:].tolist())) > 3  # a constant would prove little


MODEL = make_model()
PROMPTS = st.lists(st.lists(st.integers(0, 49), min_size=1, max_size=16), min_size=1, max_size=4)


@given(PROMPTS, st.integers(0, 20), st.sampled_from([0, 1.3]))
def test_each_of_a_batch_gets_what_it_gets_alone(prompts: list[list[int]], new: int, temperature: float) -> None:
    together = MODEL.generate_batch(prompts, max_new_tokens=new, temperature=temperature, top_k=20, seed=7)
    for row, prompt in enumerate(prompts):
        alone = MODEL.generate(
            torch.tensor([prompt]), max_new_tokens=new, temperature=temperature, top_k=20, seed=7 + row
        )
        assert together[row].tolist() == alone[0].tolist()


def test_a_seed_repeats_the_text_and_another_does_not(model: GPT2) -> None:
    prompt = torch.randint(50, (3, 4))
    texts = [model.generate(prompt, max_new_tokens=20, seed=seed).tolist() for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    torch.manual_seed(5)
    first = model.generate(prompt, max_new_tokens=20)
    torch.manual_seed(5)
    assert torch.equal(model.generate(prompt, max_new_tokens=20), first)


@pytest.fixture
def passes(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many positions each forward pass has read."""
    lengths: list[int] = []
    original = model.residual_stream

    def spy(token_ids: Tensor, cache: object = None) -> Tensor:
        lengths.append(token_ids.shape[1])
        return original(token_ids, cache)

    monkeypatch.setattr(model, "residual_stream", spy)
    return lengths


def test_the_prompt_is_read_once_then_one_token_a_step_then_the_window(model: GPT2, passes: list[int]) -> None:
    model.generate(torch.randint(50, (1, 8)), max_new_tokens=8, temperature=0)
    assert passes == [8, 1, 1, 1, 1, 12, 12, 12]


@pytest.mark.parametrize("piece", [1, 3, 5, 8, 99])
def test_a_prompt_read_in_pieces_gives_the_same_text(model: GPT2, passes: list[int], piece: int) -> None:
    prompts = [torch.randint(50, (length,)) for length in (8, 3, 6)]
    whole = model.generate_batch(prompts, max_new_tokens=9, temperature=0)
    read_at_once, passes[:] = max(passes), []
    pieces = model.generate_batch(prompts, max_new_tokens=9, temperature=0, prefill_chunk_size=piece)
    assert [row.tolist() for row in pieces] == [row.tolist() for row in whole]
    assert max(passes) == min(piece, read_at_once)


def test_a_stream_gives_each_token_as_soon_as_it_is_known(model: GPT2, passes: list[int]) -> None:
    prompt = torch.randint(50, (2, 3))
    stream = model.stream(prompt, max_new_tokens=6, temperature=0)
    assert passes == []
    tokens = [next(stream), next(stream)]
    assert len(passes) == 2
    tokens += list(stream)
    assert torch.equal(torch.stack(tokens, dim=1), model.generate(prompt, max_new_tokens=6, temperature=0)[:, 3:])


def test_the_cache_is_made_once_also_while_the_window_slides(model: GPT2, monkeypatch: pytest.MonkeyPatch) -> None:
    caches = []
    original = model.make_cache

    def spy(*arguments: object) -> object:
        caches.append(original(*arguments))
        return caches[-1]

    monkeypatch.setattr(model, "make_cache", spy)
    stream = model.stream(torch.randint(50, (2, 9)), max_new_tokens=9, temperature=0)
    next(stream)
    places = {buffer.data_ptr() for layer in caches[0].layers for buffer in layer.buffers}
    list(stream)
    assert len(caches) == 1
    assert {buffer.data_ptr() for layer in caches[0].layers for buffer in layer.buffers} == places
    assert caches[0].nbytes == 4 * 2 * 2 * 2 * 12 * 24  # float32; keys and values; batch, layers, positions, width


def test_a_row_ends_with_its_stop_token_and_repeats_it_until_all_have_ended(model: GPT2) -> None:
    prompts = [[3], [4, 9], [5, 1, 2]]
    free = [row.tolist() for row in model.generate_batch(prompts, max_new_tokens=12, temperature=0)]
    stop = free[0][3]
    ended = [
        row[: row.index(stop, len(prompt)) + 1] if stop in row[len(prompt) :] else row
        for row, prompt in zip(free, prompts, strict=True)
    ]
    stopped = model.generate_batch(prompts, max_new_tokens=12, temperature=0, stop_tokens=[stop])
    assert [row.tolist() for row in stopped] == ended
    alone = model.generate(torch.tensor([prompts[0]]), max_new_tokens=12, temperature=0, stop_tokens=[stop])
    assert alone[0].tolist() == ended[0]
    rows = model.generate(torch.tensor([[3], [4]]), max_new_tokens=12, temperature=0, stop_tokens=[stop])
    first = rows[0].tolist()
    assert set(first[first.index(stop, 1) :]) == {stop}


def test_nothing_is_written_if_nothing_is_asked_for(model: GPT2) -> None:
    prompt = torch.randint(50, (2, 3), dtype=torch.int32)
    assert model.generate(prompt, max_new_tokens=0).tolist() == prompt.tolist()
    assert model.generate(prompt, max_new_tokens=1).shape == (2, 4)


def test_generation_drops_nothing_and_leaves_training_as_it_was(model: GPT2) -> None:
    prompt = torch.randint(50, (1, 4))
    expected = model.generate(prompt, max_new_tokens=10, temperature=0)
    model.train()
    model.blocks[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert torch.equal(model.generate(prompt, max_new_tokens=10, temperature=0), expected)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not expected.requires_grad
    assert torch.is_grad_enabled()


def test_threads_that_generate_in_training_mode_do_not_disturb_one_another() -> None:
    model = GPT2(dataclasses.replace(CONFIG, dropout=0.5)).train()
    prompt = torch.tensor([[1, 2, 3]])
    expected = model.generate(prompt, max_new_tokens=8, temperature=0)
    texts, ever_off = [], []

    def write() -> None:
        for _ in range(4):
            for token in model.stream(prompt, max_new_tokens=8, temperature=0):
                texts.append(int(token))
                ever_off.extend(name for name, module in model.named_modules() if not module.training)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(texts) == sorted(16 * expected[0, 3:].tolist())
    assert ever_off == []


def test_a_stream_heeds_what_happens_to_the_model_between_its_tokens(model: GPT2) -> None:
    """Dropout stays off if training begins, and new weights count."""
    prompt = torch.tensor([[1, 2, 3]])
    expected = model.generate(prompt, max_new_tokens=6, temperature=0)[0, 3:].tolist()
    stream = model.stream(prompt, max_new_tokens=6, temperature=0)
    written = [int(next(stream))]
    model.train()
    written += [int(token) for token in stream]
    assert written == expected
    stream = model.stream(prompt, max_new_tokens=6, temperature=0)
    next(stream)
    other = (expected[1] + 1) % 50
    with torch.no_grad():
        model.final_norm.weight.zero_()
        model.final_norm.bias.copy_(100 * model.unembedding.weight[other])
    assert int(next(stream)) == other


def test_a_model_can_be_trained_on_the_tokens_of_a_stream(model: GPT2) -> None:
    tokens = list(model.stream([[1, 2], [3]], max_new_tokens=3, temperature=0))
    assert not any(token.is_inference() for token in tokens)
    model(rearrange(tokens, "seq batch -> batch seq")).sum().backward()
    assert model.token_embedding.weight.grad is not None


@pytest.mark.parametrize(
    ("prompt", "settings", "error", "message"),
    [
        (torch.zeros(3, dtype=torch.long), {}, ShapeError, "`token_ids`"),
        (torch.zeros(1, 3), {}, ShapeError, "`token_ids`"),
        (torch.zeros(1, 0, dtype=torch.long), {}, ValueError, "."),
        (torch.zeros(0, 3, dtype=torch.long), {}, ValueError, "."),
        (torch.tensor([[1, 50]]), {}, ValueError, r"\b50\b.*\b49\b"),
        (torch.tensor([[1]]), {"max_new_tokens": -1}, ValueError, "max_new_tokens .*-1"),
        (torch.tensor([[1]]), {"prefill_chunk_size": 0}, ValueError, r"prefill_chunk_size .*\b0\b"),
        (torch.tensor([[1]]), {"max_new_tokens": 2.5}, ShapeError, "`max_new_tokens`"),
        (torch.tensor([[1]]), {"temperature": -1}, ValueError, "temperature"),
        (torch.tensor([[1]]), {"top_k": 0}, ValueError, "top_k"),
        (torch.tensor([[1]]), {"top_p": 0.0}, ValueError, "top_p"),
        (torch.tensor([[1]]), {"stop_tokens": [77]}, ValueError, r"\b77\b"),
        (torch.tensor([[1]]), {"stop_tokens": (1.5,)}, ShapeError, r"\b1\.5\b"),
        (torch.tensor([[1]]), {"stop_tokens": "a"}, ShapeError, "'a'"),
        (torch.tensor([[1]]), {"max_new_tokens": True}, ValueError, "max_new_tokens .*True"),
        (torch.tensor([[1]]), {"seed": 2**64}, ValueError, f"seed .*{2**64}"),
        (torch.tensor([[1]]), {"seed": -(2**63) - 1}, ValueError, f"seed .*{-(2**63) - 1}"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(
    model: GPT2, passes: list[int], prompt: Tensor, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    for write in (model.generate, model.stream):
        with pytest.raises(error, match=message):
            write(prompt, **({"max_new_tokens": 3} | settings))
    assert passes == []


@pytest.mark.parametrize("prompts", [[[1, 2.7, 3, 4]], [[1, 2, 3], "ab"], [[1, True]], [[1, None, 2, 3]]])
def test_token_ids_that_are_no_whole_numbers_are_refused_each_time(model: GPT2, prompts: list[Any]) -> None:
    """Beartype looks at one item of a list, drawn at random."""
    for _ in range(12):
        with pytest.raises(ShapeError):
            model.generate_batch(prompts, max_new_tokens=0)


def test_a_token_id_larger_than_any_vocabulary_is_refused(model: GPT2) -> None:
    with pytest.raises(ValueError, match=str(2**70)):
        model.generate_batch([[1, 2**70]], max_new_tokens=1)


def test_a_model_that_gives_no_numbers_says_so(model: GPT2) -> None:
    with torch.no_grad():
        model.final_norm.weight[3] = torch.nan
    for temperature in (0.0, 1.0):
        with pytest.raises(LogitsError, match="nan"):
            model.generate(torch.tensor([[1, 2]]), max_new_tokens=1, temperature=temperature)


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_a_batch_without_text_is_refused(model: GPT2, prompts: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"."):
        model.generate_batch(prompts, max_new_tokens=3)


def test_a_model_that_does_not_say_how_it_reads_cannot_write() -> None:
    from allformers.generation.decoder import Decoder

    class Unfinished(Decoder):
        config = CONFIG

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    with pytest.raises(NotImplementedError):
        Unfinished().generate(torch.tensor([[1]]), max_new_tokens=1)


ODD: dict[str, list[Any]] = {
    "token_ids": [
        *(torch.tensor([[1, 2]]), torch.tensor([[49], [0]], dtype=torch.int8), torch.zeros(1, 30, dtype=torch.long)),
        *(torch.tensor([[50]]), torch.tensor([[-1]]), torch.zeros(0, 2, dtype=torch.long), torch.ones(1, 2), None),
        *([[1, 2], [3]], [[1.5]], [["a"]], [[]], [], "ab", [[2**70]], [[True]], [torch.tensor([3])], 7),
    ],
    "max_new_tokens": [0, 1, 3, -1, 2.0, True, None, "3"],
    "temperature": [0, 0.0, 1.0, 1e-40, 5e-324, 1e300, -1.0, float("nan"), float("inf"), "1", None],
    "top_k": [None, 1, 5, 10**9, 0, -1, 1.0, True],
    "top_p": [None, 1.0, 0.5, 1e-300, 0.0, -1.0, 2.0, float("nan"), "x"],
    "seed": [None, 0, -1, 2**64 - 1, 2**64, -(2**70), 1.5],
    "stop_tokens": [(), (3,), [49], (50,), (1.5,), "a", None, (x for x in ())],
    "prefill_chunk_size": [None, 1, 100, 0, -1, True, 1.5],
}


def _random_calls(count: int) -> None:
    """Random calls, each with a few odd arguments: each ends in a result, or in an error that is documented."""
    draw, model, broken = random.Random(0), make_model(), make_model()
    with torch.no_grad():
        broken.final_norm.weight[0] = torch.inf
    results = 0
    for _ in range(count):
        settings = {"token_ids": torch.tensor([[1, 2, 3]]), "max_new_tokens": 2}
        settings |= {name: draw.choice(ODD[name]) for name in draw.sample(list(ODD), draw.randint(1, 4))}
        called = draw.choice([model, model, model, broken])
        name = draw.choice(["generate", "generate_batch", "stream", "forward", "make_cache"])
        first = settings.pop("token_ids")
        try:
            if name == "forward":
                cache = model.make_cache(draw.choice([1, 4, 0, -1]), draw.choice([None, torch.tensor([-5])]))
                model(first, cache=cache)
            elif name == "make_cache":
                model.make_cache(settings["max_new_tokens"], first)
            else:
                written = getattr(called, name)(first, **settings)
                list(written) if name == "stream" else None
            results += 1
        except (ShapeError, ValueError):
            continue
    assert count / 20 < results < count


def test_random_calls_end_in_a_result_or_a_documented_error() -> None:
    _random_calls(100)


@pytest.mark.slow
def test_five_thousand_random_calls_end_in_a_result_or_a_documented_error() -> None:
    _random_calls(5000)
