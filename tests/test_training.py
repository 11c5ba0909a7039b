"""Training: the lesson is the right one, the figures are what they say, and a run can be repeated."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.training import (
    Recipe,
    digest,
    draw_batch,
    evaluate,
    learning_rate_at,
    make_optimizer,
    next_token_loss,
    python_documentation,
    split,
    train,
)

BUNDLED = Path(__file__).parents[1] / "allformers" / "bundled"


def make_model(seed: int = 0) -> GPT2:
    torch.manual_seed(seed)
    return GPT2(dataclasses.replace(GPT2Config.tiny(), dropout=0.1))


def test_targets_are_inputs_moved_on_by_one_and_every_passage_can_come() -> None:
    tokens = torch.arange(10)
    generator = torch.Generator().manual_seed(0)
    inputs, targets = draw_batch(tokens, 500, 7, generator)
    assert torch.equal(targets, inputs + 1)
    assert set(inputs[:, 0].tolist()) == {0, 1, 2}  # the last passage ends with the last token
    again = draw_batch(tokens, 500, 7, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], inputs)


def test_a_text_too_short_for_a_passage_is_refused() -> None:
    with pytest.raises(ValueError, match="text of 8 tokens is too short to cut passages of 8"):
        draw_batch(torch.arange(8), 1, 8, torch.Generator())
    draw_batch(torch.arange(9), 1, 8, torch.Generator())


def test_the_loss_is_the_mean_surprise() -> None:
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]).log()
    loss = next_token_loss(logits, torch.tensor([[0, 2]]))
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)
    assert next_token_loss(torch.zeros(2, 3, 256), torch.zeros(2, 3).long()).item() == pytest.approx(math.log(256))


def test_the_text_is_cut_where_it_says() -> None:
    learn, measure = split(torch.arange(100), 0.1)
    assert (learn.tolist(), measure.tolist()) == (list(range(90)), list(range(90, 100)))


def test_the_learning_rate_rises_then_falls_to_its_end() -> None:
    recipe = Recipe(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate_at(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_matrices_decay_and_vectors_do_not_and_each_weight_is_there_once() -> None:
    model = make_model()
    decayed, others = make_optimizer(model, Recipe(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all(names[p].endswith("weight") and "norm" not in names[p] for p in decayed["params"])
    assert all(names[p].endswith("bias") or "norm" in names[p] for p in others["params"])
    assert sorted(names[p] for p in [*decayed["params"], *others["params"]]) == sorted(names.values())


@pytest.mark.parametrize("length", [2, 17, 33, 100, 129])
def test_every_token_but_the_first_is_measured_once(length: int) -> None:
    model = make_model()
    tokens = torch.randint(256, (length,))
    model.train()
    loss = evaluate(model, tokens, seq_length=16, batch_size=2)
    assert model.training
    model.eval()
    losses = []
    with torch.no_grad():
        for start in range(0, length - 1, 16):
            passage = tokens[start : start + 17]
            losses.append(F.cross_entropy(model(passage[None, :-1])[0], passage[1:], reduction="none"))
    assert torch.cat(losses).numel() == length - 1
    assert loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_measuring_takes_something_to_predict() -> None:
    with pytest.raises(ValueError, match="at least two tokens, not 1"):
        evaluate(make_model(), torch.tensor([1]), 16)


def test_a_small_model_learns_a_sentence_by_heart() -> None:
    sentence = "The quick brown fox jumps over the lazy dog. "
    model = make_model()
    recipe = Recipe(steps=120, batch_size=8, seq_length=32, learning_rate=1e-2, warmup_steps=10)
    losses = [progress.loss for progress in train(model, torch.tensor(list((sentence * 4).encode())), recipe)]
    assert losses[0] > 5  # near ln(256)
    assert losses[-1] < 0.3
    written = model.generate(torch.tensor([list(b"The quick")]), max_new_tokens=20, temperature=0)
    assert bytes(written[0].tolist()).decode() == sentence[:29]


def test_two_runs_from_one_seed_reach_the_same_weights() -> None:
    weights = []
    for seed in (0, 0, 1):
        model = make_model(seed)
        steps = list(train(model, torch.arange(200) % 256, Recipe(steps=5, batch_size=2, seq_length=16, seed=seed)))
        assert [step.step for step in steps] == [1, 2, 3, 4, 5]
        assert all(step.gradient_norm > 0 for step in steps)
        weights.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_long_gradients_are_clipped() -> None:
    """With a tiny bound AdamW's direction stays but its epsilon swallows the step: the weights hardly move."""
    moved = []
    for clip_norm in (1.0, 1e-12):
        model = make_model()
        before = model.blocks[0].mlp.up.weight.detach().clone()
        recipe = Recipe(steps=1, batch_size=2, seq_length=16, clip_norm=clip_norm, weight_decay=0.0)
        list(train(model, torch.arange(200) % 256, recipe))
        moved.append((model.blocks[0].mlp.up.weight - before).abs().max().item())
    assert moved[1] < moved[0] / 100


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"validation_fraction": 1.0}, "validation_fraction must be between 0 and 1"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**settings)


def test_the_built_in_corpus_is_a_text_of_some_length() -> None:
    text = python_documentation()
    assert len(text) > 300_000
    assert '"for" statement' in text
    assert digest(text) == hashlib.sha256(text.encode()).hexdigest()


def test_the_bundled_model_is_the_one_its_record_describes() -> None:
    record = json.loads((BUNDLED / "training.json").read_text())
    model = GPT2.from_pretrained("bundled")
    assert model.config == GPT2Config.bundled()
    assert record["recipe"] == dataclasses.asdict(Recipe())
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters()) <= 1_000_000
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 4_000_000
    text = python_documentation()
    if digest(text) != record["corpus_sha256"]:
        pytest.skip("this Python's documentation is not the one that the bundled model was measured on")
    _, measure = split(torch.tensor(list(text.encode())), record["recipe"]["validation_fraction"])
    loss = evaluate(model, measure, record["recipe"]["seq_length"])
    assert loss == pytest.approx(record["validation_loss_nats_per_token"], abs=1e-3)
