"""Evaluation: every token is predicted where it should be, once, and the figures follow from it."""

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from allformers.generation.sampling import LogitsError
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.training.evaluation import Evaluation, evaluate, evaluation_windows
from conftest import perturb


@pytest.fixture(scope="module")
def model() -> GPT2:
    torch.manual_seed(0)
    model = GPT2(dataclasses.replace(GPT2Config.tiny(), dropout=0.5))
    perturb(model, 0.1)
    return model


@given(length=st.integers(2, 200), window=st.integers(2, 40), data=st.data())
def test_windows_predict_each_token_once_with_all_the_context_they_can(
    length: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    found = evaluation_windows(length, window, stride)
    predicted = [token for w in found for token in range(w.stop - w.num_targets, w.stop)]
    assert predicted == sorted(set(predicted))
    never = set(range(length)) - set(predicted)
    assert never == ({w.start for w in found} | {0} if stride == window else {0}) | (never & {length - 1})
    assert not never & {length - 1} or (stride == window and (length - 1) % window == 0)
    for w in found:
        assert w.stop - w.start <= window
        for token in range(w.stop - w.num_targets, w.stop):
            assert token - w.start >= min(token, window - stride)  # at least so much context


@pytest.mark.parametrize(
    ("length", "window", "stride", "message"),
    [
        (1, 8, 8, r"\b1\b"),
        (9, 1, 1, r"window.*\b1\b"),
        (9, 8, 9, r"stride .*\b8\b.*\b9\b"),
        (9, 8, 0, r"stride .*\b0\b"),
    ],
)
def test_windows_that_make_no_sense_are_refused(length: int, window: int, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluation_windows(length, window, stride)


@pytest.mark.parametrize("length", [2, 17, 33, 100, 129])
@pytest.mark.parametrize(("window", "stride"), [(17, None), (16, 16), (16, 5), (129, 1)])
def test_the_loss_is_what_a_loop_over_windows_gives(model: GPT2, length: int, window: int, stride: int | None) -> None:
    tokens = torch.randint(256, (length,))
    model.train()
    found = evaluate(model, tokens, window, stride, batch_size=3)
    assert model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for place in evaluation_windows(length, window, window - 1 if stride is None else stride):
            text = tokens[place.start : place.stop]
            surprises = F.cross_entropy(model(text[None, :-1])[0], text[1:], reduction="none")
            total += surprises[-place.num_targets :].sum().item()
            count += place.num_targets
    assert found.num_tokens == count
    assert found.loss == pytest.approx(total / count, rel=1e-5)


def test_a_model_that_gives_no_numbers_has_no_loss(model: GPT2) -> None:
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.final_norm.weight[0] = torch.nan
    with pytest.raises(LogitsError, match="nan"):
        evaluate(broken, torch.arange(20), 9)


def test_a_sliding_window_measures_as_the_reference_documents_it(model: GPT2) -> None:
    """The loop of transformers' page on perplexity, written anew: labels of -100 for what was predicted before."""
    transformers = pytest.importorskip("transformers")
    from allformers.checkpoints.config_json import write_config
    from allformers.checkpoints.loading import checkpoint_tensors

    config = transformers.GPT2Config(**write_config(GPT2.checkpoint_format(), model.config))
    reference = transformers.GPT2LMHeadModel(config).eval()
    reference.load_state_dict(checkpoint_tensors(model), strict=False)
    tokens = torch.randint(256, (300,))
    for stride in (64, 128):
        total, count, covered = 0.0, 0, 0
        for start in range(0, 300, stride):
            stop = min(start + 128, 300)
            labels = tokens[start:stop].clone()
            labels[: covered - start] = -100
            counted = int((labels[1:] != -100).sum())
            with torch.no_grad():
                total += counted * reference(tokens[None, start:stop], labels=labels[None]).loss.item()
            count, covered = count + counted, stop
            if stop == 300:
                break
        found = evaluate(model, tokens, 128, stride)
        assert found.num_tokens == count
        assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)


def test_the_figures_follow_from_the_sum() -> None:
    found = Evaluation(total_nll=80 * math.log(2), num_tokens=40)
    assert found.loss == pytest.approx(2 * math.log(2))
    assert found.perplexity == pytest.approx(4)
    assert found.bits_per_byte(text_tokens=41, num_bytes=164) == pytest.approx(0.5)
    assert Evaluation(total_nll=1e6, num_tokens=1).perplexity == math.inf


def test_a_model_that_knows_nothing_needs_eight_bits_a_byte() -> None:
    model = GPT2(GPT2Config.tiny())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    found = evaluate(model, torch.randint(256, (500,)), 100)
    assert found.perplexity == pytest.approx(256, rel=1e-6)
    assert found.bits_per_byte(500, 500) == pytest.approx(8, rel=1e-6)
