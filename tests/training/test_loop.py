"""The step: the lesson is the right one, gradients and updates equal the reference's, and a run can be repeated."""

import dataclasses
import hashlib
import json
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from allformers.checkpoints.config_json import write_config
from allformers.checkpoints.hub import BUNDLED
from allformers.checkpoints.loading import checkpoint_tensors
from allformers.inspection import summarise
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.training import recipes
from allformers.training.data import HELLO_WORLD, python_documentation, split
from allformers.training.evaluation import evaluate
from allformers.training.loop import Trainer, learning_rate_at, make_optimizer, next_token_loss
from allformers.training.recipes import Recipe
from conftest import perturb, true_float64

TINY = dataclasses.replace(GPT2Config.tiny(), dropout=0.1)


def make_recipe(**changes: Any) -> Recipe:
    """A recipe for a model that takes no time."""
    settings: dict[str, Any] = {
        "model": TINY,
        "corpus": "hello-world",
        "steps": 5,
        "batch_size": 4,
        "seq_length": 16,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
    }
    return Recipe(**{**settings, **changes})


def make_model(seed: int = 0, **changes: Any) -> GPT2:
    torch.manual_seed(seed)
    return GPT2(dataclasses.replace(TINY, **changes))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


TOKENS = torch.randint(256, (500,), generator=torch.Generator().manual_seed(0))


def test_the_loss_is_the_mean_surprise() -> None:
    logits = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]).log()
    loss = next_token_loss(logits, torch.tensor([[0, 2]]))
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(0.1)) / 2)
    assert next_token_loss(torch.zeros(2, 3, 256), torch.zeros(2, 3).long()).item() == pytest.approx(math.log(256))


def test_the_learning_rate_rises_then_falls_to_its_end() -> None:
    recipe = make_recipe(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [learning_rate_at(step, recipe) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_each_step_has_the_learning_rate_of_the_schedule() -> None:
    recipe = make_recipe(warmup_steps=2)
    trainer = Trainer(make_model(), TOKENS, recipe)
    assert [trainer.train_step().learning_rate for _ in range(5)] == [
        learning_rate_at(step, recipe) for step in range(5)
    ]


def test_matrices_decay_and_vectors_do_not_and_each_weight_is_there_once() -> None:
    model = make_model()
    decayed, others = make_optimizer(model, make_recipe(weight_decay=0.3)).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all(names[p].endswith("weight") and "norm" not in names[p] for p in decayed["params"])
    assert all(names[p].endswith("bias") or "norm" in names[p] for p in others["params"])
    assert sorted(names[p] for p in [*decayed["params"], *others["params"]]) == sorted(names.values())


# -- Equal to the reference ------------------------------------------------------------------------------------------


def make_reference(model: GPT2, attention: str) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**write_config(GPT2.checkpoint_format(), model.config))
    config._attn_implementation = attention
    reference = transformers.GPT2LMHeadModel(config)
    reference.load_state_dict(checkpoint_tensors(model), strict=False)
    return reference.train()


def reference_tensors(reference: Any, read: Any) -> dict[str, Tensor]:
    """Something of each of the reference's parameters, laid out and named as ours."""
    form = GPT2.checkpoint_format()
    table = {row.theirs: row for row in (*form.weights, *form.head)}
    tensors = {}
    for name, parameter in reference.named_parameters():
        short = name.removeprefix("transformer.")
        (layer,) = re.findall(r"\.(\d+)\.", short) or [""]
        row = table[short.replace(f".{layer}.", ".{layer}.") if layer else short]
        tensors[row.ours.format(layer=layer)] = read(parameter).T if "->" in row.axes else read(parameter)
    return tensors


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_every_gradient_equal_the_references(tied: bool, attention: str) -> None:
    model = make_model(dropout=0.0, tie_embeddings=tied)
    perturb(model)
    reference = make_reference(model, attention)
    text = torch.randint(256, (3, 65))
    loss = next_token_loss(model.train()(text[:, :-1]), text[:, 1:])
    loss.backward()
    expected = next_token_loss(reference(text[:, :-1]).logits, text[:, 1:])
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    theirs = reference_tensors(reference, lambda parameter: parameter.grad)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert gradient is not None
        if name.endswith("query_key_value.bias"):  # softmax ignores what it adds to all keys alike: zero but for noise
            gradient, theirs[name] = (part.unflatten(0, (3, -1))[[0, 2]] for part in (gradient, theirs[name]))
        difference = (gradient - theirs[name]).abs().max() / theirs[name].abs().max()
        assert difference < 1e-5, (name, difference.item())


def test_three_steps_of_adamw_reach_the_weights_that_the_reference_reaches() -> None:
    """The whole step, clipping and schedule included, beside the same optimiser on the reference.

    In float64: AdamW divides a gradient by its size, and so makes a full step of the noise where there is nothing else.
    """
    model = make_model(dropout=0.0).double()
    perturb(model, 0.1)
    with true_float64():
        reference = make_reference(model, "eager")
    before = weights(model)
    recipe = make_recipe(model=model.config, steps=3, warmup_steps=1, learning_rate=1e-2)
    trainer = Trainer(model, TOKENS, recipe)
    steps = [trainer.train_step() for _ in range(3)]

    batches = torch.Generator().manual_seed(recipe.seed)
    groups = [
        {"params": [p for p in reference.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in reference.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(recipe.beta1, recipe.beta2))
    for ours in steps:
        starts = torch.randint(len(TOKENS) - 16, (4,), generator=batches)
        text = torch.stack([TOKENS[start : start + 17] for start in starts])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(ours.step - 1, recipe)
        optimizer.zero_grad()
        with true_float64():
            logits = reference(text[:, :-1]).logits
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
            loss.backward()
        norm = nn.utils.clip_grad_norm_(reference.parameters(), recipe.clip_norm)
        optimizer.step()
        assert ours.loss.item() == pytest.approx(loss.item(), rel=1e-6)  # kept in float32
        assert ours.gradient_norm.item() == pytest.approx(norm.item(), rel=1e-9)
    theirs = reference_tensors(reference, lambda parameter: parameter.detach())
    for name, parameter in model.named_parameters():
        assert theirs[name].dtype is torch.float64
        assert (parameter.detach() - theirs[name]).abs().max() < 1e-9, name
    assert (weights(model) - before).abs().mean() > 5e-3


# -- The loop --------------------------------------------------------------------------------------------------------


def test_a_small_model_learns_a_sentence_by_heart() -> None:
    sentence = "The quick brown fox jumps over the lazy dog. "
    model = make_model()
    recipe = make_recipe(steps=120, batch_size=8, seq_length=32, learning_rate=1e-2, warmup_steps=10)
    trainer = Trainer(model, torch.tensor(list((sentence * 4).encode())), recipe)
    losses = [trainer.train_step().loss.item() for _ in range(120)]
    assert losses[0] > 5  # near ln(256)
    assert losses[-1] < 0.3
    written = model.generate(torch.tensor([list(b"The quick")]), max_new_tokens=20, temperature=0)
    assert bytes(written[0].tolist()).decode() == sentence[:29]


def test_two_runs_from_one_seed_reach_the_same_weights() -> None:
    reached = []
    for seed in (0, 0, 1):
        trainer = Trainer(make_model(seed), TOKENS, make_recipe(seed=seed))
        steps = [trainer.train_step() for _ in range(5)]
        assert [step.step for step in steps] == [1, 2, 3, 4, 5]
        assert all(step.gradient_norm > 0 for step in steps)
        reached.append(weights(trainer.model))
    assert torch.equal(reached[0], reached[1])
    assert not torch.equal(reached[0], reached[2])


@pytest.mark.parametrize("part", [1, 2, 3, 8])
def test_gradients_of_parts_add_up_to_those_of_the_whole(part: int) -> None:
    """Three does not divide eight: the last part is smaller and must count for less."""
    changes: dict[str, Any] = {"model": dataclasses.replace(TINY, dropout=0.0), "batch_size": 8}
    whole = Trainer(make_model(dropout=0.0), TOKENS, make_recipe(**changes))
    parts = Trainer(make_model(dropout=0.0), TOKENS, make_recipe(**changes, micro_batch_size=part))
    for _ in range(3):
        one, other = whole.train_step(), parts.train_step()
        assert other.loss.item() == pytest.approx(one.loss.item(), rel=1e-5)
        assert other.gradient_norm.item() == pytest.approx(one.gradient_norm.item(), rel=1e-4)


def test_parts_of_a_batch_never_pass_through_the_model_together() -> None:
    model, seen = make_model(), []
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    Trainer(model, TOKENS, make_recipe(batch_size=8, micro_batch_size=3)).train_step()
    assert seen == [3, 3, 2]


def test_long_gradients_are_clipped() -> None:
    """With a tiny bound AdamW's direction stays but its epsilon swallows the step: the weights hardly move."""
    moved = []
    for clip_norm in (1.0, 1e-12):
        model = make_model()
        before = weights(model)
        Trainer(model, TOKENS, make_recipe(steps=1, clip_norm=clip_norm, weight_decay=0.0)).train_step()
        moved.append((weights(model) - before).abs().max().item())
    assert moved[1] < moved[0] / 100


def test_bfloat16_computes_in_bfloat16_on_weights_that_stay_float32() -> None:
    model = make_model(dropout=0.0)
    seen: list[torch.dtype] = []
    model.blocks[0].mlp.up.register_forward_hook(lambda _, args, output: seen.append(output.dtype))
    trainer = Trainer(model, TOKENS, make_recipe(precision="bfloat16"))
    exact = Trainer(make_model(dropout=0.0), TOKENS, make_recipe())
    for _ in range(3):
        loss, expected = trainer.train_step().loss, exact.train_step().loss
        assert loss.dtype is torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
        assert loss.item() != expected.item()
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_model_that_recomputes_learns_the_same_from_fewer_activations() -> None:
    sizes: dict[bool, list[int]] = {False: [], True: []}
    losses = {}
    for again, noted in sizes.items():
        trainer = Trainer(make_model(dropout=0.3), TOKENS, make_recipe(recompute=again))

        def note(saved: Tensor, noted: list[int] = noted) -> Tensor:
            noted.append(saved.nbytes)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            losses[again] = [trainer.train_step().loss.item() for _ in range(3)]
        assert trainer.model.generate(torch.zeros(1, 3, dtype=torch.long), max_new_tokens=2).shape == (1, 5)
    assert losses[True] == losses[False]
    assert sum(sizes[True]) < 0.5 * sum(sizes[False])


@pytest.mark.slow
def test_a_compiled_model_learns_the_same() -> None:
    compiled = Trainer(make_model(dropout=0.0), TOKENS, make_recipe(compile=True))
    eager = Trainer(make_model(dropout=0.0), TOKENS, make_recipe())
    for _ in range(3):
        assert compiled.train_step().loss.item() == pytest.approx(eager.train_step().loss.item(), rel=1e-5)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_restored_trainer_goes_on_to_the_same_bits(taken: int) -> None:
    recipe = make_recipe(steps=6)
    straight = Trainer(make_model(), TOKENS, recipe)
    for _ in range(taken):
        straight.train_step()
    copied = {name: tensor.clone() for name, tensor in straight.model.state_dict().items()}
    state = {name: tensor.clone() for name, tensor in straight.state().items()}
    if taken == 0:
        with pytest.raises(ValueError, match=r"exp_avg\.blocks\.0"):
            Trainer(make_model(), TOKENS, recipe).restore(0, state)
        return
    for _ in range(3):
        straight.train_step()

    other = make_model(seed=99)
    other.load_state_dict(copied)
    resumed = Trainer(other, TOKENS, recipe)
    resumed.restore(taken, state)
    for _ in range(3):
        resumed.train_step()
    assert torch.equal(weights(straight.model), weights(resumed.model))


def test_a_state_that_calls_the_generator_batches_is_read_and_one_without_it_refused() -> None:
    trained, resumed = (Trainer(make_model(), TOKENS, make_recipe(steps=6)) for _ in range(2))
    trained.train_step()
    state = trained.state()
    generator = state.pop("batch_generator")
    with pytest.raises(ValueError, match="batch_generator"):
        resumed.restore(1, state)
    resumed.restore(1, {**state, "batches": generator})
    assert torch.equal(resumed.batch_generator.get_state(), trained.batch_generator.get_state())


# -- Recipes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, r"steps .*\b0\b"),
        ({"batch_size": -1}, "batch_size .*-1"),
        ({"micro_batch_size": 0}, r"micro_batch_size .*\b0\b"),
        ({"learning_rate": 0.0}, r"learning_rate .*\b0\.0"),
        ({"learning_rate": math.nan}, "learning_rate .*nan"),
        ({"final_learning_rate": -1.0}, r"final_learning_rate .*-1\.0"),
        ({"validation_fraction": 1.0}, r"validation_fraction .*1\.0"),
        ({"precision": "float8"}, "precision .*'float8'"),
        ({"seq_length": 129}, "seq_length 129 .*context_length 128"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_recipe(**settings)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_says_what_to_expect_and_where_that_comes_from(name: str) -> None:
    make = recipes.RECIPES[name]
    assert "Expect a" in (make.__doc__ or "")
    recipe = make()
    assert recipe.seq_length == recipe.model.context_length
    assert recipe.model.mlp_dim == 4 * recipe.model.embedding_dim


def test_the_recipes_models_have_the_vocabulary_that_their_texts_have() -> None:
    assert recipes.hello_world().model.vocab_size == len(set(HELLO_WORLD))
    assert recipes.bundled().model.vocab_size == 256
    assert recipes.gpt2_124m().model.vocab_size % recipes.gpt2_124m().vocab_multiple == 0


def test_the_published_recipe_has_the_published_numbers() -> None:
    recipe = recipes.gpt2_124m()
    assert recipe.tokens_per_step == 491_520
    assert summarise(GPT2, dataclasses.replace(recipe.model, vocab_size=50257)).parameters == 124_439_808


def test_the_bundled_model_is_the_one_its_record_describes() -> None:
    record = json.loads((BUNDLED / "training.json").read_text())
    model = GPT2.from_pretrained("bundled")
    assert model.config == GPT2Config.bundled()
    assert record["recipe"] == dataclasses.asdict(recipes.bundled())
    assert record["parameters"] == sum(parameter.numel() for parameter in model.parameters()) <= 1_000_000
    assert sum(file.stat().st_size for file in BUNDLED.iterdir()) < 4_000_000


@pytest.mark.slow
def test_the_bundled_model_has_the_loss_that_its_record_says() -> None:
    record, text = json.loads((BUNDLED / "training.json").read_text()), python_documentation()
    if record["corpus"]["text_sha256"] != hashlib.sha256(text.encode()).hexdigest():
        pytest.skip("this Python's documentation is not the one that the bundled model was measured on")
    _, validation_tokens = split(torch.tensor(list(text.encode())), record["recipe"]["validation_fraction"])
    loss = evaluate(GPT2.from_pretrained("bundled"), validation_tokens, record["recipe"]["seq_length"] + 1).loss
    assert loss == pytest.approx(record["result"]["validation_loss_nats_per_token"], abs=1e-4)
