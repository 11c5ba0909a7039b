"""`prepare` swaps linear layers and changes nothing else; `unprepare` takes it back."""

import copy
import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allformers.cli.console import load_model
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.registry import READING_ORDER
from allformers.speed import linear as linear_module
from allformers.speed import onednn as onednn_module
from allformers.speed.linear import PackedLinear, prepare, unprepare
from allformers.speed.onednn import HAS_ONEDNN, OneDNNLinear
from allformers.training import train as train_module
from allformers.training.recipes import hello_world
from conftest import perturb

WAYS: dict[str, dict[str, Any]] = {"plain": {}, "training": {"training": True}, "packed": {"weights": "packed"}}

KINDS: dict[str, type[nn.Linear]] = {"plain": OneDNNLinear, "training": OneDNNLinear, "packed": PackedLinear}


@pytest.fixture(autouse=True)
def _small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send products as small as those of the tests to oneDNN, and compile nothing."""
    monkeypatch.setattr(onednn_module, "_MIN_MACS", 0)
    monkeypatch.setattr(linear_module, "MIN_WEIGHTS", 0)
    monkeypatch.setattr(linear_module, "can_compile", lambda: False)


def make(**changes: Any) -> GPT2:
    return perturb(GPT2(GPT2Config.tiny(dropout=0.0, **changes)).eval(), 0.1)


def text(batch: int = 4, seq: int = 17) -> Tensor:
    return torch.randint(256, (batch, seq), generator=torch.Generator().manual_seed(1))


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


def kinds(model: nn.Module) -> set[type]:
    return {type(layer) for layer in linears(model)}


def difference(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).abs().max() / other.abs().max())


def loss_of(model: nn.Module, token_ids: Tensor) -> Tensor:
    return F.cross_entropy(model(token_ids[:, :-1]).flatten(0, 1), token_ids[:, 1:].flatten())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("entry", READING_ORDER, ids=lambda entry: entry.name)
def test_every_model_is_prepared_and_goes_back(entry: Any, way: str) -> None:
    model = entry.load()(entry.sizes()[0].config)
    layers, parameters = linears(model), dict(model.named_parameters(remove_duplicate=False))
    assert kinds(model) == {nn.Linear}
    assert prepare(model, **WAYS[way]) is model
    assert kinds(model) == {KINDS[way]}
    assert unprepare(model) is model
    assert kinds(model) == {nn.Linear}
    assert linears(model) == layers
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameters[name] for name in parameters)
    assert all(vars(layer).keys() == vars(nn.Linear(1, 1)).keys() for layer in layers)


@pytest.mark.parametrize("way", WAYS)
def test_parameters_ties_hooks_and_the_state_dict_stay(way: str) -> None:
    model = make()
    before, layer = model.state_dict(keep_vars=True), model.blocks[0].mlp.up
    called: list[nn.Module] = []
    layer.register_forward_hook(lambda module, *_: called.append(module))
    prepare(model, **WAYS[way])
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert model.unembedding.weight is model.token_embedding.weight
    assert model.blocks[0].mlp.up is layer
    with torch.inference_mode():
        model(text())
    assert called == [layer]


def test_what_counts_is_how_a_model_was_prepared_last() -> None:
    model, given = make(), text()
    with torch.inference_mode():
        expected = model(given)
        for way in ("plain", "plain", "packed", "packed", "training", "packed", "plain"):
            prepare(model, **WAYS[way])
            assert kinds(model) == {KINDS[way]}
            assert ("packed_weights" in vars(model.unembedding)) == (way == "packed")
            assert difference(model(given), expected) < 1e-5
        held = prepare(model, "packed").unembedding.packed_weights
        assert prepare(model, "packed").unembedding.packed_weights is held  # it is not packed twice
        assert torch.equal(unprepare(model)(given), expected)


@pytest.mark.parametrize("way", WAYS)
def test_copies_and_pickles_are_plain(way: str) -> None:
    model, given = make(), text()
    with torch.inference_mode():
        expected = model(given)
    prepare(model, **WAYS[way])
    stored = io.BytesIO()
    torch.save(model, stored)
    assert b"allformers.speed" not in stored.getvalue()
    stored.seek(0)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(stored, weights_only=False)]
    for other in copies:
        assert kinds(other) == {nn.Linear}
        assert other.unembedding.weight is other.token_embedding.weight is not model.token_embedding.weight
        with torch.inference_mode():
            assert torch.equal(other(given), expected)
    assert type(copy.copy(model.unembedding)) is nn.Linear
    assert kinds(model) == {KINDS[way]}


@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_are_the_same_files(way: str, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "before")
    prepare(model, **WAYS[way]).save_pretrained(tmp_path / "after")
    for file in (tmp_path / "before").iterdir():
        assert (tmp_path / "after" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.skipif(not HAS_ONEDNN, reason="this build of PyTorch has no oneDNN")
def test_both_ways_of_a_training_step_go_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    original = onednn_module.onednn
    monkeypatch.setattr(onednn_module, "onednn", lambda *given: (calls.append(given[0]), original(*given))[1])
    model = prepare(make(), training=True)
    loss = loss_of(model, text())
    assert len(calls) == len(linears(model))
    loss.backward()
    assert len(calls) == 3 * len(linears(model))  # the derivative of the input, and that of the weight


def test_gradients_and_steps_are_pytorchs_to_rounding() -> None:
    plain, given = make(), text()
    trained, before = copy.deepcopy(plain), copy.deepcopy(plain.token_embedding.weight)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in (plain, trained)]  # before it is prepared
    prepare(trained, training=True)
    for _ in range(3):
        for model, optimizer in zip((plain, trained), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, given).backward()
        ours, theirs = dict(trained.named_parameters()), dict(plain.named_parameters())
        assert all(difference(ours[name].grad, theirs[name].grad) < 1e-5 for name in theirs)
        for optimizer in optimizers:
            optimizer.step()
        assert all(difference(ours[name], theirs[name]) < 1e-5 for name in theirs)
    assert difference(trained.token_embedding.weight, before) > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_greedy_tokens_are_the_same(way: str) -> None:
    model, given = make(), text(2, 9)
    expected = model.generate(given, max_new_tokens=140, temperature=0)
    assert torch.equal(prepare(model, **WAYS[way]).generate(given, max_new_tokens=140, temperature=0), expected)


def test_other_classes_of_linear_layers_are_left_alone() -> None:
    class Mine(nn.Linear):
        pass

    model = nn.Sequential(Mine(8, 8), nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    others = type(model[0]), type(model[2])
    prepare(model)
    assert (type(model[0]), type(model[2])) == others
    assert type(model[1]) is OneDNNLinear
    wrapped = nn.utils.parametrizations.weight_norm(model[1])  # on top of it
    x = torch.randn(3, 8)
    assert torch.allclose(wrapped(x), copy.deepcopy(wrapped)(x))


def test_commands_prepare_what_they_load() -> None:
    model, _ = load_model("bundled")
    assert kinds(model) == {OneDNNLinear}


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_trains_a_prepared_model(resume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, given = dataclasses.replace(hello_world(), steps=2, save_every=1), []
    if resume:
        next(train_module.train(recipe, tmp_path, peak_flops=1e9))
    original = train_module.Trainer

    def spy(model: nn.Module, *others: Any) -> Any:
        given.append(model)
        return original(model, *others)

    monkeypatch.setattr(train_module, "Trainer", spy)
    list(train_module.train(recipe, tmp_path, resume=resume, peak_flops=1e9))
    assert kinds(given[0]) == {OneDNNLinear}
    assert kinds(GPT2.from_pretrained(tmp_path)) == {nn.Linear}
