"""Experiments: their numbers say what their conclusions say."""

import functools
import math
import re

import pytest
import torch

from allformers import experiments
from allformers.experiments import EXPERIMENTS
from allformers.experiments.experiment import Experiment
from allformers.experiments.rotary import RotaryGPT2
from allformers.inspection.figures import to_svg
from allformers.models.gpt2.gpt2 import GPT2Config
from conftest import perturb

pytestmark = pytest.mark.xdist_group("experiments")
LONG = ("rotary", "weight-tying", "kv-cache")
"""One trains two models, the others look at models of full size; whatever needs them is slow."""


@functools.cache
def result(name: str) -> Experiment:
    """What an experiment finds, once for all tests."""
    return experiments.pre_norm(depths=(6, 24)) if name == "pre-norm" else EXPERIMENTS[name]()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in EXPERIMENTS]
)
def test_each_has_a_question_numbers_a_conclusion_and_a_figure(name: str) -> None:
    assert_complete(result(name))


@pytest.mark.slow
def test_pre_norm_at_the_depths_that_the_command_shows() -> None:
    assert_complete(EXPERIMENTS["pre-norm"]())


def assert_complete(done: Experiment) -> None:
    assert done.question.endswith("?")
    assert done.conclusion.endswith(".")
    assert re.search(r"\d", done.conclusion)
    assert "nan" not in done.conclusion
    assert done.numbers
    assert to_svg(done.figure).startswith("<svg")


def test_with_the_mask_one_pass_is_many_and_without_it_answers_leak() -> None:
    found = result("causal-mask").numbers
    assert found["largest difference between one pass and a pass for each prefix"] < 1e-4
    assert found["largest change of an earlier answer, with the mask"] == 0
    assert found["largest change of an earlier answer, without"] > 1


def test_with_pre_norm_gradients_shrink_with_depth_as_the_source_says() -> None:
    found = result("pre-norm").numbers["gradient of the last layer"]
    assert found["pre-norm"][1] / found["pre-norm"][0] == pytest.approx(0.5, abs=0.2)  # 1/sqrt(4)
    assert found["post-norm"][1] / found["post-norm"][0] > 0.9


def test_positions_that_were_never_trained_say_nothing() -> None:
    found = result("positions").numbers
    assert found["loss within"] < 1.3
    assert found["loss beyond"] > found["loss within"] + 1
    assert "257" in found["refusal"]


@pytest.mark.slow
def test_rotary_positions_lose_less_at_places_that_were_never_trained() -> None:
    found = result("rotary").numbers
    within, beyond = found["loss within"], found["loss beyond"]
    assert within["rotary"] < within["learned"]
    assert 0 < beyond["rotary"] - within["rotary"] < 0.8 * (beyond["learned"] - within["learned"])


def test_a_rotary_gpt2_says_the_same_with_a_cache_and_knows_no_absolute_positions() -> None:
    torch.manual_seed(0)
    model = perturb(RotaryGPT2(GPT2Config.tiny()).eval())
    token_ids = torch.randint(256, (1, 12))
    with torch.no_grad():
        cache = model.make_cache()
        parts = [model(token_ids[:, :7], cache=cache), model(token_ids[:, 7:], cache=cache)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(token_ids), atol=1e-4, rtol=1e-4)
        attention, x = model.blocks[0].attention, torch.randn(1, 1, 64)
        mask = torch.ones(1, 1, 5, 5, dtype=torch.bool)
        same = attention(x.expand(1, 5, 64).contiguous(), mask)
    torch.testing.assert_close(same[:, 0], same[:, 4], atol=1e-5, rtol=1e-5)  # equal values: any weights give the same


def test_unshifted_targets_teach_copying() -> None:
    found = result("shifted-targets").numbers
    assert found["last loss, not shifted"] < 0.05
    assert found["loss at the next token, not shifted"] > math.log(24)
    assert set(found["written, not shifted"]) == {"H"}
    assert found["written, shifted"] == "Hello, world!"


def test_temperature_changes_how_unsure_and_the_others_how_many() -> None:
    found = result("sampling").numbers
    bits, kept = found["entropy in bits"], found["tokens that can be drawn"]
    assert bits["temperature 0.5"] < bits["as it is"] < bits["temperature 1.5"]
    assert kept["temperature 0.5"] == kept["temperature 1.5"] == kept["as it is"] == 256
    assert kept["top-k 5"] == 5
    assert 1 < kept["top-p 0.8"] < 256


def test_scaled_scores_have_a_variance_of_one_at_any_width() -> None:
    found = result("scale").numbers
    plain, scaled = found["variance"].values()
    for width, variance in zip(found["head_dim"], plain, strict=True):
        assert variance == pytest.approx(width, rel=0.3)
    assert all(0.7 < variance < 1.3 for variance in scaled)
    saturated, soft = found["largest weight"].values()
    assert saturated == sorted(saturated)
    assert saturated[-1] > 0.8
    assert soft[-1] < 0.2


@pytest.mark.slow
def test_the_cache_saves_what_the_formulas_say() -> None:
    found = result("kv-cache").numbers
    again, cached = found["GFLOPs"].values()
    matrices = 2 * (12 * 12 * 768**2 + 50257 * 768)
    for length, whole, step in zip(found["lengths"], again, cached, strict=True):
        assert whole * 1e9 == pytest.approx(length * matrices + 4 * 12 * length**2 * 768)
        assert step * 1e9 == pytest.approx(matrices + 4 * 12 * length * 768)
    assert found["bytes a token"] == 2 * 12 * 768 * 4


@pytest.mark.slow
def test_tying_saves_a_vocabulary_times_a_width() -> None:
    found = result("weight-tying").numbers
    sizes = found["parameters"]
    assert sizes["untied"]["gpt2-small"] - sizes["tied"]["gpt2-small"] == 50257 * 768
    assert found["gpt2-small"] > found["gpt2-medium"] > found["gpt2-large"] > found["gpt2-xl"]
