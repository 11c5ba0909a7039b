"""Sampling: each step reshapes the odds as it says, as the reference does, and draws what the odds say."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from allformers.generation.sampling import LogitsError, apply_temperature, greedy, keep_top_k, keep_top_p, sample


def odds(logits: Tensor) -> Tensor:
    return F.softmax(logits.float(), dim=-1)


def kept(logits: Tensor) -> list[int]:
    return (logits > -torch.inf).sum(-1).tolist()


def test_greedy_takes_the_likeliest_and_the_first_of_equals() -> None:
    assert greedy(torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 2.0]])).tolist() == [1, 0]


def test_temperature_is_a_power_of_the_odds() -> None:
    logits = torch.tensor([[0.9, 0.1]]).log()
    assert torch.allclose(odds(apply_temperature(logits, 2.0)), torch.tensor([[0.75, 0.25]]))
    assert torch.allclose(odds(apply_temperature(logits, 0.5)), torch.tensor([[81 / 82, 1 / 82]]))


def test_top_k_keeps_exactly_k_even_of_equals() -> None:
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]])
    assert kept(keep_top_k(logits, 2)) == [2, 2]
    assert (keep_top_k(logits, 2)[1, :2] == logits[1, :2]).all()
    assert torch.equal(keep_top_k(logits, 9), logits)


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.1, 0.3]]).log()
    for top_p, count in ((1e-9, 1), (0.49, 1), (0.51, 2), (0.79, 2), (0.81, 3), (0.95, 4), (1.0, 4)):
        assert kept(keep_top_p(logits, top_p)) == [count]


@pytest.mark.parametrize("seed", range(5))
def test_every_step_and_their_order_are_the_references(seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(7, 50) * 3
    ids = torch.zeros(7, 1, dtype=torch.long)
    temperature, top_k, top_p = TemperatureLogitsWarper(0.7), TopKLogitsWarper(9), TopPLogitsWarper(0.8)
    torch.testing.assert_close(apply_temperature(logits, 0.7), temperature(ids, logits))
    torch.testing.assert_close(keep_top_k(logits, 9), top_k(ids, logits))
    torch.testing.assert_close(keep_top_p(logits, 0.8), top_p(ids, logits))
    ours = keep_top_p(keep_top_k(apply_temperature(logits, 0.7), 9), 0.8)
    torch.testing.assert_close(ours, top_p(ids, top_k(ids, temperature(ids, logits))))


def test_draws_come_as_often_as_the_odds_say() -> None:
    """Pearson's statistic over 20,000 draws; above 27.9 by chance once in a thousand (9 degrees of freedom)."""
    logits = torch.randn(1, 10)
    draws = sample(logits.expand(20_000, -1), generators=[torch.Generator().manual_seed(n) for n in range(20_000)])
    expected = odds(logits)[0] * len(draws)
    seen = torch.bincount(draws, minlength=10)
    assert ((seen - expected) ** 2 / expected).sum() < 27.9


def test_the_steps_are_applied_together() -> None:
    logits = torch.arange(10.0).log().expand(500, -1)
    drawn = sample(logits, temperature=0.5, top_k=4, top_p=0.6)  # odds 81, 64, 49, 36 of 230
    assert set(drawn.tolist()) == {9, 8}


@given(
    st.lists(st.floats(-6e4, 6e4, width=16), min_size=1, max_size=6),
    st.floats(0, 1e300, exclude_min=True),
    st.floats(0, 1, exclude_min=True),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_any_temperature_and_any_top_p_draw_a_token_in_every_dtype(
    row: list[float], temperature: float, top_p: float, dtype: torch.dtype
) -> None:
    logits = torch.tensor([row], dtype=dtype)
    drawn = int(sample(logits, temperature, top_p=top_p))
    largest = logits.double().max()
    assert 0 <= drawn < len(row)
    # A token that lies further behind than float32 can say is never drawn.
    assert (largest - logits[0, drawn].double()) <= 200 * temperature


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e-4, 1e-40, 5e-324])
def test_a_tiny_temperature_is_greedy(dtype: torch.dtype, temperature: float) -> None:
    logits = torch.tensor([[7.0, 3.0, 1.0], [-100.0, -99.0, -101.0]], dtype=dtype)
    assert sample(logits, temperature).tolist() == greedy(logits).tolist() == [0, 1]
    assert sample(logits, 1.0, top_p=1e-300).tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_said_and_ruled_out_tokens_are_none(wrong: float) -> None:
    logits = torch.tensor([[1.0, 2.0], [wrong, 0.0]])
    for draw in (greedy, sample, lambda given: sample(given, 0.0), lambda given: sample(given, 0.5, 1, 0.5)):
        with pytest.raises(LogitsError, match=rf"row 1\b.*{wrong}"):
            draw(logits)
        assert draw(torch.tensor([[-torch.inf, 2.0]])).tolist() == [1]
        with pytest.raises(LogitsError, match=r"row 0\b"):
            draw(torch.full((1, 3), -torch.inf))


@pytest.mark.parametrize(
    ("step", "value"), [(apply_temperature, 0.0), (apply_temperature, -1.0), (keep_top_k, 0), (keep_top_p, -1.0)]
)
def test_each_step_refuses_a_setting_out_of_range(step: Callable[..., Tensor], value: float) -> None:
    with pytest.raises(ValueError, match=f"{value:g}"):
        step(torch.ones(1, 2), value)


def test_a_row_draws_whatever_its_neighbours_do() -> None:
    logits = torch.randn(3, 20)
    together = sample(logits, generators=[torch.Generator().manual_seed(n) for n in range(3)])
    for row in range(3):
        alone = sample(logits[row : row + 1], generators=[torch.Generator().manual_seed(row)])
        assert alone.item() == together[row].item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_dtype_of_logits_will_do(dtype: torch.dtype) -> None:
    logits = torch.randn(4, 30).to(dtype)
    assert sample(logits, temperature=0.8, top_k=5, top_p=0.9).shape == (4,)
    assert torch.equal(sample(logits, temperature=0), logits.argmax(-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature .*-0\.1"),
        ({"temperature": float("nan")}, "temperature .*nan"),
        ({"temperature": float("inf")}, "temperature .*inf"),
        ({"top_k": 0}, r"top_k .*\b0\b"),
        ({"top_k": True}, "top_k .*True"),
        ({"top_p": 0.0}, r"top_p .*\b0\.0"),
        ({"top_p": 1.1}, r"top_p .*1\.1"),
        ({"top_p": float("nan")}, "top_p .*nan"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(torch.zeros(1, 3), **settings)


LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=12)


@given(LOGITS, st.integers(1, 12), st.floats(0.01, 1))
def test_what_is_kept_keeps_its_odds_and_is_the_likeliest(values: list[float], top_k: int, top_p: float) -> None:
    logits = torch.tensor([values])
    for cut in (keep_top_k(logits, top_k), keep_top_p(logits, top_p)):
        mask = cut > -torch.inf
        assert mask.any()
        assert torch.equal(cut[mask], logits[mask])
        if not mask.all():
            assert logits[mask].min() >= logits[~mask].max()
    assert odds(keep_top_p(logits, top_p))[0].sum().item() == pytest.approx(1)
    assert odds(logits)[keep_top_p(logits, top_p) > -torch.inf].sum() >= top_p - 1e-5


@given(LOGITS)
def test_the_order_of_the_vocabulary_does_not_matter(values: list[float]) -> None:
    logits = torch.tensor([sorted(set(values))])
    order = torch.randperm(logits.shape[1])
    torch.testing.assert_close(keep_top_p(logits[:, order], 0.7), keep_top_p(logits, 0.7)[:, order])
    torch.testing.assert_close(keep_top_k(logits[:, order], 3), keep_top_k(logits, 3)[:, order])
