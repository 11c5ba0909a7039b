"""Models are built without memory, and nothing of that shows in a loaded model, nor in one built at the same time."""

import itertools
import json
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import allformers
from allformers.checkpoints import CheckpointError
from allformers.checkpoints.loading import empty_model
from allformers.checkpoints.pretrained import Classifier, Encoder, Pretrained
from allformers.generation.decoder import Decoder
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.llama.llama import Llama, LlamaConfig
from allformers.models.registry import READING_ORDER
from conftest import names, perturb

MODELS = [
    pytest.param(model_class, id=model_class.__name__)
    for entry in READING_ORDER
    for model_class in (entry.load(), *entry.load().checkpoint_format().variants())
]


def tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """All that a model is made of: parameters and buffers, by name."""
    return itertools.chain(model.named_parameters(remove_duplicate=False), model.named_buffers())


@pytest.mark.parametrize("model_class", MODELS)
def test_nothing_of_a_loaded_model_is_on_the_meta_device(model_class: Any, tmp_path: Path) -> None:
    model = perturb(model_class(model_class.checkpoint_format().config_class.tiny()))
    model.save_pretrained(tmp_path)
    loaded = allformers.load(tmp_path)
    assert type(loaded) is model_class
    ours, theirs = dict(tensors(model)), dict(tensors(loaded))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert tensor.device.type == "cpu", name
        assert torch.equal(tensor, ours[name]), name  # buffers too, which no file holds
        assert tensor.requires_grad == ours[name].requires_grad, name


@pytest.mark.parametrize("model_class", MODELS)
def test_without_memory_parameters_have_shapes_and_buffers_have_values(model_class: Any) -> None:
    config = model_class.checkpoint_format().config_class.tiny()
    model, before = empty_model(model_class, config), torch.get_rng_state()
    real = dict(tensors(model_class(config)))
    torch.set_rng_state(before)
    empty_model(model_class, config)
    assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn
    buffers = dict(model.named_buffers())
    assert buffers.keys() == ({"lower_triangle"} if isinstance(model, GPT2) else set())
    for name, tensor in tensors(model):
        assert (tensor.shape, tensor.dtype) == (real[name].shape, real[name].dtype), name
        assert tensor.requires_grad == real[name].requires_grad, name
        assert tensor.is_meta == (name not in buffers), name
    for name, buffer in buffers.items():
        assert torch.equal(buffer, real[name])
    if hasattr(config, "tie_embeddings"):
        assert (model.unembedding.weight is model.token_embedding.weight) == config.tie_embeddings


def test_a_model_built_while_others_are_built_without_memory_is_real() -> None:
    """And the other way round. Threads take turns as often as they can."""
    config, failed, done = GPT2Config.tiny(num_layers=1), [], threading.Event()

    def build_without_memory() -> None:
        try:
            while not done.is_set():
                model = empty_model(GPT2, config)
                assert all(parameter.is_meta for parameter in model.parameters())
                assert not model.lower_triangle.is_meta
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    others = [threading.Thread(target=build_without_memory) for _ in range(2)]
    try:
        for other in others:
            other.start()
        for _ in range(40):
            model = GPT2(config)
            assert not any(tensor.is_meta for _, tensor in tensors(model))
            assert 0.015 < model.token_embedding.weight.std() < 0.025  # it was initialised
    finally:
        done.set()
        for other in others:
            other.join()
        sys.setswitchinterval(interval)
    assert failed == []


def test_a_model_that_cannot_be_built_leaves_later_ones_real() -> None:
    class Broken(GPT2):
        def __init__(self, config: GPT2Config) -> None:
            super().__init__(config)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        empty_model(Broken, GPT2Config.tiny())
    assert not any(tensor.is_meta for _, tensor in tensors(GPT2(GPT2Config.tiny())))


@pytest.mark.parametrize(
    ("name", "field", "stated", "found"),
    [("llama", "num_hidden_layers", 900, 2), ("mixtral", "num_local_experts", 9000, 4), ("gpt2", "n_layer", 3, 2)],
)
def test_layers_and_experts_that_a_file_has_not_are_refused_before_anything_is_built(
    name: str, field: str, stated: int, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_class = next(entry for entry in READING_ORDER if entry.name == name).load()
    model_class(model_class.checkpoint_format().config_class.tiny()).save_pretrained(tmp_path)
    allformers.load(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: stated}))
    monkeypatch.setattr("allformers.checkpoints.loading.empty_model", None)
    with pytest.raises(CheckpointError, match=names(field, stated, found)):
        allformers.load(tmp_path)


def test_a_model_of_any_allowed_size_is_built_without_memory() -> None:
    """Not even for a moment: these matrices would take four terabytes."""
    config = LlamaConfig.tiny(embedding_dim=2**20, mlp_dim=2**20, vocab_size=2**31 - 1)
    model = empty_model(Llama, config)
    assert sum(parameter.numel() for parameter in model.parameters()) > 2**52
    assert all(parameter.is_meta for parameter in model.parameters())


# Where a class finds its tables


class Mine(Llama):
    """A reader's own model, as a script or a notebook has it."""


class MineToo(Mine):
    """And what somebody made of that."""


@pytest.mark.parametrize("model_class", [Mine, MineToo])
@pytest.mark.parametrize("module", ["__main__", "script", "no_such_package.models", "mine.models"])
def test_a_subclass_loads_what_its_parent_loads(
    model_class: Any, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is: even beside a module `checkpoint` that is about something else."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "checkpoint.py").write_text("FORMAT = 'zip'\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(model_class, "__module__", module)
    model = perturb(Llama(LlamaConfig.tiny())).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    loaded = model_class.from_pretrained(tmp_path / "checkpoint")
    assert type(loaded) is model_class
    token_ids = torch.randint(256, (1, 9))
    with torch.no_grad():
        assert torch.equal(loaded(token_ids), model(token_ids))
    loaded.save_pretrained(tmp_path / "again")
    assert type(allformers.load(tmp_path / "again")) is Llama
    for name in [name for name in sys.modules if name == "mine" or name.startswith("mine.")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("base", [Pretrained, Decoder, Encoder, Classifier], ids=lambda base: base.__name__)
def test_a_class_without_tables_says_so_by_its_name(base: Any, tmp_path: Path) -> None:
    GPT2(GPT2Config.tiny()).save_pretrained(tmp_path)
    stranger = types.new_class("Stranger", (base,))
    for use in (
        stranger.checkpoint_format,
        lambda: stranger.from_pretrained(tmp_path),
        lambda: stranger.from_huggingface(types.SimpleNamespace(config=types.SimpleNamespace(to_dict=dict))),
        lambda: stranger().save_pretrained(tmp_path / "new"),
    ):
        with pytest.raises(CheckpointError, match=r"\bStranger\b"):
            use()
    assert not (tmp_path / "new").exists()
