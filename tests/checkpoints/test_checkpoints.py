"""Checkpoints: whatever the reference can write loads with its weights, and whatever is wrong is named."""

import collections
import contextlib
import dataclasses
import hashlib
import http.server
import itertools
import json
import os
import posix
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

import allformers
from allformers.checkpoints import CheckpointError, pretrained
from allformers.checkpoints.atomic import JOURNAL
from allformers.checkpoints.config_json import read_config, write_config
from allformers.checkpoints.loading import checkpoint_tensors, weight_axes
from allformers.models.gpt2.gpt2 import GPT2, GPT2Config
from allformers.models.gpt2.variants import CerebrasGPT2, StanfordGPT2
from conftest import names, perturb

CONFIG = GPT2Config(vocab_size=97, context_length=20, embedding_dim=12, num_layers=2, num_heads=3, mlp_dim=31)
FORMAT = GPT2.checkpoint_format()
Weights = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _quiet_libraries() -> None:
    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.disable_progress_bars()


def make_model(**changes: Any) -> GPT2:
    return perturb(GPT2(dataclasses.replace(CONFIG, **changes))).eval()


@pytest.fixture
def model() -> GPT2:
    """A small model with every parameter perturbed; its weights are what each file below holds."""
    return make_model()


@pytest.fixture
def folder(model: GPT2, tmp_path: Path) -> Path:
    """A checkpoint of `model`."""
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def write_checkpoint(folder: Path, config: GPT2Config | dict[str, Any], weights: Weights) -> Path:
    """A folder with these weights, whatever they are."""
    folder.mkdir(exist_ok=True)
    described = config if isinstance(config, dict) else write_config(FORMAT, config)
    (folder / "config.json").write_text(json.dumps(described))
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    return folder


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder: Path, edit: Callable[[Weights], Any]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    edit(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def write_pickle(folder: Path, weights: Any, **options: Any) -> None:
    """Put a pickled file in the place of the safetensors one."""
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin", **options)


def write_shards(folder: Path, weights: Weights, suffix: str, save: Callable[[Weights, Path], None]) -> None:
    """Three files and an index, in the place of the one."""
    (folder / "model.safetensors").unlink()
    stem, places = "model" if suffix == "safetensors" else "pytorch_model", {}
    for number in range(3):
        file, names = f"{stem}-{number + 1:05}-of-00003.{suffix}", list(weights)[number::3]
        save({name: weights[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name


def same_logits(model: GPT2, reference: transformers.GPT2LMHeadModel) -> bool:
    token_ids = torch.randint(model.config.vocab_size, (2, 9))
    with torch.no_grad():
        ours, theirs = model(token_ids), reference(token_ids).logits
    return bool((ours - theirs).abs().max() <= 5e-6 * theirs.abs().max())


# The tables


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_weight_of_both_sides_stands_in_the_table_once(tied: bool) -> None:
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    layers = range(config.num_layers)
    table = (*FORMAT.weights, *FORMAT.head)
    rows = [(row, layer) for row in table for layer in (layers if "{layer}" in row.theirs else [0])]
    ours = [row.ours.format(layer=layer) for row, layer in rows]
    theirs = [row.theirs.format(layer=layer) for row, layer in rows]
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**write_config(FORMAT, config)))
    assert sorted(ours) == sorted(name for name, _ in GPT2(config).named_parameters(remove_duplicate=False))
    assert sorted(theirs) == sorted(name.removeprefix(FORMAT.prefix) for name in reference.state_dict())
    assert all(("{layer}" in row.theirs) == ("{layer}" in row.ours) for row in table)


def test_every_weight_has_the_shape_that_its_axes_say(model: GPT2) -> None:
    for name, axes in weight_axes(model).items():
        sizes = [CONFIG.axes[axis] for axis in re.findall(r"\w+", axes)]
        assert torch.Size(sizes).numel() == model.get_parameter(name).numel(), name


def test_every_field_of_the_reference_is_handled_ignored_or_refused_once() -> None:
    tables = [field.theirs for field in FORMAT.fields], list(FORMAT.ignored_fields), list(FORMAT.unsupported_fields)
    counts = collections.Counter(name for table in tables for name in table)
    assert set(counts.values()) == {1}
    assert set(transformers.GPT2Config().to_dict()) <= set(counts)
    assert {field.ours for field in FORMAT.fields} == {field.name for field in dataclasses.fields(GPT2Config)}


def test_the_references_defaults_are_ours() -> None:
    assert read_config(FORMAT, {"model_type": "gpt2"}) == read_config(FORMAT, transformers.GPT2Config().to_dict())
    assert read_config(FORMAT, {"model_type": "gpt2"}) == GPT2Config.gpt2_small()


@pytest.mark.parametrize("field", FORMAT.fields, ids=lambda field: field.theirs)
def test_every_field_of_the_table_arrives(field: Any) -> None:
    """And each is written as it was read."""
    config = GPT2Config(
        vocab_size=11,
        context_length=12,
        embedding_dim=15,
        num_layers=13,
        num_heads=5,
        mlp_dim=14,
        dropout=0.3,
        norm_eps=1e-4,
        tie_embeddings=False,
    )
    described = write_config(FORMAT, config)
    assert read_config(FORMAT, described) == config
    assert described[field.theirs] == getattr(config, field.ours)
    assert described[field.theirs] != write_config(FORMAT, CONFIG)[field.theirs]


# What published checkpoints look like

SUMMARY = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}
OLD = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 96,
    "embd_pdrop": 0.1,
    "eos_token_id": 96,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 20,
    "n_embd": 12,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": 20,
    "resid_pdrop": 0.1,
    "vocab_size": 97,
    **SUMMARY,
}
PUBLISHED = {
    "gpt2": {**OLD, "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}},
    "gpt2-medium": {**OLD, "n_special": 0, "predict_special_tokens": True},
    "gpt2-xl": {**OLD, "output_past": True},
    "distilgpt2": {**OLD, "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    "DialoGPT": {**OLD, "task_specific_params": {"conversational": {"max_length": 1000}}},
    "Cerebras-GPT": {
        **{name: value for name, value in OLD.items() if name != "n_ctx"},
        "activation_function": "gelu",
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "n_inner": 48,
        "reorder_and_upcast_attn": False,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
        "torch_dtype": "float32",
        "transformers_version": "4.20.1",
        "use_cache": True,
    },
    "stanford-crfm": {
        **OLD,
        "_name_or_path": "hello",
        "gradient_checkpointing": False,
        "n_inner": None,
        "reorder_and_upcast_attn": True,
        "scale_attn_by_inverse_layer_idx": True,
        "scale_attn_weights": True,
        "transformers_version": "4.5.0",
        "use_cache": False,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configurations_of_published_checkpoints_load(name: str, tmp_path: Path) -> None:
    """Without a warning, too: these fields are known."""
    model_class = {"Cerebras-GPT": CerebrasGPT2, "stanford-crfm": StanfordGPT2}.get(name, GPT2)
    config = read_config(model_class.checkpoint_format(), PUBLISHED[name])
    assert config.mlp_dim == 48  # four times the width where nothing is said
    write_checkpoint(tmp_path, PUBLISHED[name], checkpoint_tensors(perturb(model_class(config))))
    reference = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    for load in (GPT2.from_pretrained, model_class.from_pretrained, allformers.load):
        ours = load(tmp_path)
        assert type(ours) is model_class
        assert ours.config == config
        assert same_logits(ours, reference)
    ours.save_pretrained(tmp_path / "again")
    again = GPT2.from_pretrained(tmp_path / "again")
    assert type(again) is model_class
    assert again.config == config
    assert_same(again, ours)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    assert same_logits(ours, theirs)


def test_a_variant_refuses_what_makes_another_model_of_it(folder: Path) -> None:
    """Each class takes what it is, and no checkpoint is two variants at once."""
    edit_config(folder, activation_function="gelu", reorder_and_upcast_attn=True)
    assert_refused(folder, "activation_function", "'gelu'", "'gelu_new'")
    for model_class, name in ((CerebrasGPT2, "reorder_and_upcast_attn"), (StanfordGPT2, "activation_function")):
        with pytest.raises(CheckpointError, match=rf"\b{name} is "):
            model_class.from_pretrained(folder)
    edit_config(folder, activation_function="gelu_new", reorder_and_upcast_attn=False)
    for activation in ("gelu_new", None):
        edit_config(folder, activation_function=activation)
        with pytest.raises(CheckpointError, match=rf"{activation!r} \(activation_function\)"):
            CerebrasGPT2.from_pretrained(folder)
    edit_config(folder, activation_function="gelu_new")
    edit_config(folder, reorder_and_upcast_attn=3)
    assert_refused(folder, "reorder_and_upcast_attn", "3")


def test_a_field_that_nobody_knows_is_ignored_aloud(folder: Path, model: GPT2) -> None:
    edit_config(folder, flash_dance=True)
    with pytest.warns(UserWarning, match=r"config\.json.*flash_dance"):
        assert_same(GPT2.from_pretrained(folder), model)


# Files


@pytest.mark.parametrize("prefix", ["", "transformer."], ids=["bare", "prefixed"])
@pytest.mark.parametrize("kind", ["safetensors", "safetensors shards", "zip", "legacy", "pickled shards"])
def test_every_kind_of_file(kind: str, prefix: str, folder: Path, model: GPT2) -> None:
    weights = {prefix + name.removeprefix("transformer."): one for name, one in checkpoint_tensors(model).items()}
    if kind == "safetensors":
        write_checkpoint(folder, CONFIG, weights)
    elif kind == "safetensors shards":
        write_shards(folder, weights, "safetensors", safetensors.torch.save_file)
    elif kind == "pickled shards":
        write_shards(folder, weights, "bin", torch.save)
    else:
        write_pickle(folder, weights, _use_new_zipfile_serialization=kind == "zip")
    assert_same(GPT2.from_pretrained(folder), model)


@pytest.mark.parametrize("shard_size", ["50GB", "6KB"])
def test_files_that_the_reference_wrote(shard_size: str, tmp_path: Path) -> None:
    reference = perturb(transformers.GPT2LMHeadModel(transformers.GPT2Config(**write_config(FORMAT, CONFIG)))).eval()
    reference.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "6KB")
    assert same_logits(GPT2.from_pretrained(tmp_path), reference)


def test_safetensors_are_preferred_to_pickles(folder: Path, model: GPT2) -> None:
    torch.save(checkpoint_tensors(make_model()), folder / "pytorch_model.bin")
    assert_same(GPT2.from_pretrained(folder), model)


def test_masks_among_the_weights_are_ignored(folder: Path, model: GPT2) -> None:
    def add_masks(weights: Weights) -> None:
        for layer in range(CONFIG.num_layers):
            weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 20, 20, dtype=torch.bool).tril()
            weights[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    edit_weights(folder, add_masks)
    assert_same(GPT2.from_pretrained(folder), model)


@pytest.mark.parametrize("head", ["absent", "equal", "different"])
@pytest.mark.parametrize("says_tied", [True, False], ids=["says tied", "says untied"])
def test_a_head_is_what_the_reference_makes_of_it(head: str, says_tied: bool, tmp_path: Path) -> None:
    """Two different matrices stay two, whatever the configuration says; no matrix at all is only right if tied."""
    weights = checkpoint_tensors(make_model())
    if head != "absent":
        weights["lm_head.weight"] = weights["transformer.wte.weight"] * (1 if head == "equal" else 2)
    write_checkpoint(tmp_path, dataclasses.replace(CONFIG, tie_embeddings=says_tied), weights)
    if head == "absent" and not says_tied:
        with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
            GPT2.from_pretrained(tmp_path)
        return
    ours = GPT2.from_pretrained(tmp_path)
    assert ours.config.tie_embeddings == (says_tied and head != "different")
    assert (ours.unembedding.weight is ours.token_embedding.weight) == ours.config.tie_embeddings
    assert same_logits(ours, transformers.GPT2LMHeadModel.from_pretrained(tmp_path, attn_implementation="eager").eval())
    ours.save_pretrained(tmp_path / "again")
    assert_same(GPT2.from_pretrained(tmp_path / "again"), ours)


# Dtypes and devices


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_weights_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model().to(dtype)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert_same(GPT2.from_pretrained(tmp_path), model)
    assert_same(GPT2.from_pretrained(tmp_path, dtype=torch.float64), model.double())


@pytest.mark.parametrize(
    ("odd_one", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),  # neither holds the other's values
        (torch.float16, torch.float16),
    ],
    ids=str,
)
def test_mixed_weights_take_the_dtype_that_holds_all(
    odd_one: torch.dtype, expected: torch.dtype, tmp_path: Path
) -> None:
    weights = {name: one.half() for name, one in checkpoint_tensors(make_model()).items()}
    weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"].to(odd_one)
    loaded = GPT2.from_pretrained(write_checkpoint(tmp_path, CONFIG, weights))
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}


def test_a_mask_among_the_weights_does_not_widen_them(tmp_path: Path) -> None:
    weights = {name: one.half() for name, one in checkpoint_tensors(make_model()).items()}
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    loaded = GPT2.from_pretrained(write_checkpoint(tmp_path, CONFIG, weights))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "meta"], ids=repr)
def test_weights_go_to_the_device_asked_for(device: Any, folder: Path) -> None:
    loaded = GPT2.from_pretrained(folder, device=device)
    assert {parameter.device for parameter in loaded.parameters()} == {torch.device(device)}
    assert not loaded.training


def test_a_loaded_model_trains(folder: Path) -> None:
    loaded = GPT2.from_pretrained(folder)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in loaded.parameters())
    loaded(torch.randint(97, (2, 9))).sum().backward()


@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_loaded_model_does_not_need_its_files(kind: str, folder: Path, model: GPT2) -> None:
    if kind == "pickle":
        write_pickle(folder, checkpoint_tensors(model))
    loaded = GPT2.from_pretrained(folder)
    for path in folder.iterdir():
        path.write_bytes(bytes(path.stat().st_size))  # in place: memory that is mapped to the file would follow
    assert_same(loaded, model)
    shutil.rmtree(folder)
    assert_same(loaded, model)


# Any family


def test_load_finds_the_class(folder: Path, model: GPT2) -> None:
    loaded = allformers.load(folder, dtype=torch.float64)
    assert type(loaded) is GPT2
    assert_same(loaded, model.double())


def test_load_names_the_families_that_it_knows(folder: Path) -> None:
    edit_config(folder, model_type="mamba")
    with pytest.raises(CheckpointError, match=r"'mamba'.*gpt2, llama"):
        allformers.load(folder)


# Bad input


def assert_refused(folder: str | Path, *culprits: str) -> None:
    """One error, that names each culprit."""
    with pytest.raises(CheckpointError) as refusal:
        GPT2.from_pretrained(folder)
    for culprit in culprits:
        assert culprit in str(refusal.value)


def test_a_place_that_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "nowhere")
    assert_refused(str(tmp_path / "nowhere"), "nowhere")
    assert_refused("./nowhere", "nowhere")
    assert_refused(folder / "config.json", "config.json")
    (tmp_path / "empty").mkdir()
    assert_refused(tmp_path / "empty", "empty", "config.json")
    (folder / "model.safetensors").unlink()
    assert_refused(folder, str(folder), "model.safetensors", "pytorch_model.bin")


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        (b'{"model_type": ', "JSON"),
        (b"[1, 2]", "list"),
        (b"", "JSON"),
        (b"\xff\xfe\x00", "JSON"),
    ],
    ids=["broken", "a list", "empty", "not text"],
)
def test_a_config_that_is_no_json_object(content: bytes, culprit: str, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert_refused(folder, "config.json", culprit)


@pytest.mark.parametrize(
    ("fields", "culprits"),
    [
        ({"model_type": "llama"}, ["'llama'", "'gpt2'"]),
        ({"add_cross_attention": True}, ["add_cross_attention is True"]),
        ({"is_encoder_decoder": True}, ["is_encoder_decoder is True"]),
        ({"attn_pdrop": -0.2}, ["attn_pdrop", "-0.2"]),
        ({"activation_function": "quick_gelu"}, ["'quick_gelu'", "activation_function"]),
        ({"activation_function": "relu"}, ["'relu'", "activation_function"]),
        ({"scale_attn_weights": False}, ["scale_attn_weights is False"]),
        ({"n_head": 5}, ["12", "5"]),
        ({"n_layer": "two"}, ["num_layers", "'two'"]),
        ({"layer_norm_epsilon": "tiny"}, ["layer_norm_epsilon", "'tiny'"]),
        (
            {"add_cross_attention": True, "is_encoder_decoder": True, "scale_attn_weights": False},
            ["add_cross_attention", "is_encoder_decoder", "scale_attn_weights"],
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_a_config_of_another_model(fields: dict[str, Any], culprits: list[str], folder: Path) -> None:
    edit_config(folder, **fields)
    assert_refused(folder, "config.json", *culprits)


def test_dropouts_that_differ_are_one_dropout_and_said_so(folder: Path) -> None:
    edit_config(folder, embd_pdrop=0.0, attn_pdrop=0.2, resid_pdrop=0.3)
    with pytest.warns(UserWarning, match=names("embd_pdrop", "0.0", "attn_pdrop", "0.2", "resid_pdrop", "0.3")) as said:
        model = allformers.load(folder)
    assert len(said) == 1
    assert model.config.dropout == 0.3


def test_all_faults_of_the_weights_are_in_one_error(folder: Path) -> None:
    def spoil(weights: Weights) -> None:
        del weights["transformer.h.1.ln_2.bias"]
        weights["transformer.h.2.ln_2.bias"] = torch.zeros(12)
        weights["transformer.h.0.attn.c_attn.weight"] = torch.zeros(36, 12)
        weights["transformer.h.0.attn.q_norm"] = torch.zeros(12)
        weights["transformer.h.1.mlp.c_fc.bias"] = torch.zeros(31, dtype=torch.int8)

    edit_weights(folder, spoil)
    assert_refused(
        folder,
        "h.1.ln_2.bias",
        "blocks.1.mlp_norm.bias",
        "transformer.h.2.ln_2.bias",
        "transformer.h.0.attn.q_norm",
        "transformer.h.0.attn.c_attn.weight",
        "(36, 12)",
        "(12, 36)",
        "transformer.h.1.mlp.c_fc.bias",
        "int8",
    )


def test_a_long_list_of_faults_is_cut(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({f"extra.{i}": torch.zeros(1) for i in range(576)}))
    assert_refused(folder, "extra.1", " more")


def test_weights_that_are_there_twice(folder: Path) -> None:
    """With and without the prefix: which one holds is anyone's guess."""
    edit_weights(folder, lambda weights: weights.update({"ln_f.bias": torch.zeros(12)}))
    assert_refused(folder, "ln_f.bias")


@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=["nothing", "4 bytes", "100 bytes", "all but one byte"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_a_truncated_file(kind: str, kept: int, folder: Path, model: GPT2) -> None:
    if kind != "safetensors":
        write_pickle(folder, checkpoint_tensors(model), _use_new_zipfile_serialization=kind == "zip")
    (path,) = set(folder.iterdir()) - {folder / "config.json"}
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(folder, path.name)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_that_are_not_there(suffix: str, folder: Path, model: GPT2) -> None:
    save = safetensors.torch.save_file if suffix == "safetensors" else torch.save
    write_shards(folder, checkpoint_tensors(model), suffix, save)
    (index,) = folder.glob("*.index.json")
    listed = json.loads(index.read_text())
    shard = next(iter(listed["weight_map"].values()))

    for name in (f"../{shard}", f"/tmp/{shard}", f"{folder}/{shard}"):
        index.write_text(json.dumps({"weight_map": listed["weight_map"] | {"transformer.ln_f.bias": name}}))
        assert_refused(folder, index.name, repr(name)[:30])
    index.write_text(json.dumps({"weight_map": listed["weight_map"] | {"transformer.h.9.ln_1.bias": shard}}))
    assert_refused(folder, "transformer.h.9.ln_1.bias", index.name)
    for content in ({}, {"weight_map": [1]}, {"weight_map": {"transformer.ln_f.bias": 1}}):
        index.write_text(json.dumps(content))
        assert_refused(folder, index.name, "weight_map")
    index.write_text(json.dumps(listed))
    (folder / shard).unlink()
    assert_refused(folder, shard)


class _Malicious:
    """Unpickled, it makes a folder: it might as well run anything else."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_would_run_code_is_refused(new_format: bool, folder: Path, model: GPT2, tmp_path: Path) -> None:
    content = checkpoint_tensors(model) | {"transformer.ln_f.bias": _Malicious(tmp_path / "mark")}
    write_pickle(folder, content, _use_new_zipfile_serialization=new_format)
    assert_refused(folder, "pytorch_model.bin")
    assert not (tmp_path / "mark").exists()
    with contextlib.suppress(Exception):
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "mark").exists()  # so the file was dangerous indeed


@pytest.mark.parametrize("content", [[1, 2], {"transformer.wte.weight": [1.0]}], ids=["a list", "no tensors"])
def test_a_pickle_of_something_else(content: Any, folder: Path) -> None:
    write_pickle(folder, content)
    assert_refused(folder, "pytorch_model.bin")


# Saving


def test_saving_makes_a_folder_and_nothing_else(model: GPT2, tmp_path: Path) -> None:
    target = tmp_path / "new" / "nested"
    model.save_pretrained(str(target))
    model.save_pretrained(target)
    assert {path.name for path in target.iterdir()} == {"config.json", "model.safetensors"}
    assert_same(GPT2.from_pretrained(target), model)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file"):
        model.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize("culprit", ["save_file", "write_text"])
def test_a_failed_save_leaves_the_earlier_checkpoint(
    culprit: str, folder: Path, model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_half(tensors: Weights, path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half of")
        raise OSError("no space left on device")

    def write_half(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b'{"model_ty')
        raise OSError("no space left on device")

    other = make_model(num_layers=1)
    with monkeypatch.context() as patch:
        if culprit == "save_file":
            patch.setattr(safetensors.torch, "save_file", save_half)
        else:
            patch.setattr(Path, "write_text", write_half)
        with pytest.raises(OSError, match="no space left"):
            other.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert_same(GPT2.from_pretrained(folder), model)


def other_norms() -> tuple[GPT2, GPT2]:
    """Two models of the same shapes, of which neither could be told from a mixture by its shapes."""
    return make_model(), make_model(norm_eps=1e-2)


def which(folder: Path, models: tuple[GPT2, GPT2]) -> int:
    """The number of the model that a folder holds; -1 for a mixture."""
    found = allformers.load(folder)
    same = [
        found.config == model.config and all(map(torch.equal, found.parameters(), model.parameters()))
        for model in models
    ]
    return same.index(True) if any(same) else -1


@pytest.mark.slow  # hundreds of processes
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("savers", [1, 2])
def test_kills_at_random_moments_leave_the_one_model_or_the_other(savers: int, tmp_path: Path) -> None:
    """200 kills while two models are saved in turn over one folder; the folder is loaded before and after each."""
    models, folder, rounds = other_norms(), tmp_path / "checkpoint", 200 // savers
    models[0].save_pretrained(folder)

    def save_for_ever(first: int) -> None:
        os.fsync = posix.fsync  # to wait for the disk, as outside of tests
        for turn in itertools.count(first):
            models[turn % 2].save_pretrained(folder)

    found = []
    for number in range(rounds):
        began = time.monotonic()
        models[number % 2].save_pretrained(folder)
        duration = time.monotonic() - began  # it depends on the machine, and on what else that does
        children = []
        for _ in range(savers):
            children.append(os.fork())
            if children[-1] == 0:
                save_for_ever(number + 1)
        end = time.monotonic() + random.uniform(0, 4 * savers * duration)
        while time.monotonic() < end:
            found.append(which(folder, models))
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            os.waitpid(child, 0)
        found.append(which(folder, models))
    assert set(found) == {0, 1}
    models[0].save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_load_that_a_save_interrupts_is_of_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, folder = other_norms(), tmp_path / "checkpoint"
    models[0].save_pretrained(folder)
    saver = threading.Thread(target=models[1].save_pretrained, args=(folder,))
    read = pretrained.read_config

    def read_while_somebody_saves(*arguments: Any, **options: Any) -> Any:
        monkeypatch.undo()
        saver.start()
        saver.join(0.1)
        return read(*arguments, **options)

    monkeypatch.setattr(pretrained, "read_config", read_while_somebody_saves)
    assert which(folder, models) == 0
    saver.join()
    assert which(folder, models) == 1


def test_a_save_that_was_interrupted_counts_and_is_finished_where_that_can_be(
    folder: Path, model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(folder / JOURNAL)
    make_model(norm_eps=1e-2).save_pretrained(folder)  # finishes it first
    model.save_pretrained(folder / JOURNAL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("read-only")))
        assert allformers.load(folder).config == model.config
    assert (folder / JOURNAL).exists()
    assert_same(allformers.load(folder), model)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_link_is_no_journal(folder: Path, model: GPT2, tmp_path: Path) -> None:
    make_model(norm_eps=1e-2).save_pretrained(tmp_path / "elsewhere")
    (folder / JOURNAL).symlink_to(tmp_path / "elsewhere")
    assert_same(allformers.load(folder), model)
    assert {path.name for path in (tmp_path / "elsewhere").iterdir()} == {"config.json", "model.safetensors"}


def test_a_save_takes_the_place_of_shards(folder: Path, tmp_path: Path) -> None:
    write_shards(folder, checkpoint_tensors(make_model()), "safetensors", safetensors.torch.save_file)
    write_pickle(write_checkpoint(tmp_path / "pickle", CONFIG, {}), checkpoint_tensors(make_model()))
    for before in (folder, tmp_path / "pickle"):
        model = make_model(norm_eps=1e-3)
        model.save_pretrained(before)
        assert_same(GPT2.from_pretrained(before), model)
        reference = transformers.GPT2LMHeadModel.from_pretrained(before)
        assert same_logits(model, reference.eval())
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


class _LoRA(nn.Module):
    """A wrapper around a layer, as libraries for fine-tuning have one."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a = nn.Parameter(torch.zeros(2, base.in_features))


def wrap(model: GPT2) -> None:
    model.blocks[0].mlp.up = _LoRA(model.blocks[0].mlp.up)  # type: ignore[assignment]


def add(model: GPT2) -> None:
    model.blocks[0].mlp.up.adapter = nn.Parameter(torch.zeros(3))  # type: ignore[assignment]


def grow(model: GPT2) -> None:
    model.token_embedding = nn.Embedding(98, 12)
    model.unembedding.weight = model.token_embedding.weight


def to_meta(model: GPT2) -> None:
    model.final_norm.to("meta")


def round_off(model: GPT2) -> None:
    rounded = model.blocks[0].mlp.up.weight.detach().round().to(torch.int8)
    model.blocks[0].mlp.up.weight = nn.Parameter(rounded, requires_grad=False)


def reparametrise(model: GPT2) -> None:
    nn.utils.parametrizations.weight_norm(model.blocks[0].mlp.up)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (wrap, ["blocks.0.mlp.up.weight", "_LoRA", "blocks.0.mlp.up.a"]),
        (add, ["blocks.0.mlp.up.adapter"]),
        (grow, ["token_embedding.weight", "98", "97"]),
        (to_meta, ["final_norm.weight", "meta"]),
        (round_off, ["blocks.0.mlp.up.weight", "int8"]),
        (reparametrise, ["blocks.0.mlp.up.weight"]),
        (lambda model: model.blocks.append(model.blocks[0]), ["blocks.2.attention_norm.weight", 6]),
    ],
)
def test_a_model_that_is_not_what_its_configuration_says_is_not_saved(
    change: Callable[[GPT2], object], named: list[object], folder: Path, model: GPT2
) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = make_model()
    change(changed)
    with pytest.raises(CheckpointError, match=names("GPT2", *named)):
        changed.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


class _Compiled(nn.Module):
    """A layer as `torch.compile` wraps it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._orig_mod = module


def test_a_model_with_compiled_layers_is_saved_whole(model: GPT2, tmp_path: Path) -> None:
    original = model.blocks[0]
    model.blocks[0] = _Compiled(original)  # type: ignore[assignment]
    model.save_pretrained(tmp_path)
    model.blocks[0] = original
    assert_same(GPT2.from_pretrained(tmp_path), model)


def test_a_head_that_was_tied_later_is_in_the_file_if_the_configuration_says_so(tmp_path: Path) -> None:
    model = make_model(tie_embeddings=False)
    model.unembedding.weight = model.token_embedding.weight
    model.save_pretrained(tmp_path)
    assert_same(GPT2.from_pretrained(tmp_path), model)


def test_a_subclass_that_needs_more_than_a_configuration_is_saved(model: GPT2, tmp_path: Path) -> None:
    class Mine(GPT2):
        def __init__(self, config: GPT2Config, note: str) -> None:
            super().__init__(config)
            self.note = note

    mine = Mine(CONFIG, "note")
    mine.load_state_dict(model.state_dict())
    mine.save_pretrained(tmp_path)
    assert_same(GPT2.from_pretrained(tmp_path), model)


# The hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(http.server.ThreadingHTTPServer):
    """What `huggingface_hub` asks for: `/owner/name/resolve/revision/file`, served from a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _HubHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _HubHandler(http.server.BaseHTTPRequestHandler):
    server: _Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"/(?P<repo>.+?)/resolve/(?P<revision>[^/]+)/(?P<file>.+)", self.path)
        error, content = "RepoNotFound", b""
        if found and (repo := self.server.folder / found["repo"]).is_dir():
            path = repo / found["file"]
            error = "RevisionNotFound" if found["revision"] not in {"main", COMMIT} else "EntryNotFound"
            if error == "EntryNotFound" and path.is_file():
                error, content = "", path.read_bytes()
        self.send_response(404 if error else 200)
        if error:
            self.send_header("X-Error-Code", error)
        if error in {"", "EntryNotFound"}:
            self.send_header("X-Repo-Commit", COMMIT)
        if not error:
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    """A hub on this machine, with an empty cache; `hub.folder / owner / name` are its models."""
    with _Hub(tmp_path / "hub") as server:
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        point_to(server.url, monkeypatch)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        impatient = types.SimpleNamespace(**vars(time) | {"sleep": lambda _: None})
        monkeypatch.setattr("huggingface_hub.utils._http.time", impatient)  # it waits between attempts
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_OFFLINE would do, had they been set before the import."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("kind", ["safetensors", "shards", "pickle", "pickled shards"])
@pytest.mark.parametrize("then", ["offline", "unreachable"])
def test_a_hub_model_is_downloaded_once(
    kind: str, then: str, hub: _Hub, model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.folder / "someone" / "tiny"
    model.save_pretrained(repo)
    if kind == "shards":
        write_shards(repo, checkpoint_tensors(model), "safetensors", safetensors.torch.save_file)
    elif kind == "pickled shards":
        write_shards(repo, checkpoint_tensors(model), "bin", torch.save)
    elif kind == "pickle":
        write_pickle(repo, checkpoint_tensors(model))
    assert_same(GPT2.from_pretrained("someone/tiny"), model)
    assert_same(allformers.load("someone/tiny", revision=COMMIT), model)
    fetched = [request for request in hub.asked if re.match("GET .*/resolve/", request)]
    assert len(fetched) == len(set(fetched)) == len(list(repo.iterdir()))

    if then == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    else:
        point_to("http://127.0.0.1:9", monkeypatch)
    count = len(hub.asked)
    assert_same(GPT2.from_pretrained("someone/tiny"), model)
    assert len(hub.asked) == count


def test_names_that_the_hub_does_not_know(hub: _Hub, model: GPT2) -> None:
    model.save_pretrained(hub.folder / "someone" / "tiny")
    assert_refused("someone/tinny", "someone/tinny")
    assert_refused("not a name!", "not a name!")
    with pytest.raises(CheckpointError, match=r"someone/tiny.*v9"):
        GPT2.from_pretrained("someone/tiny", revision="v9")


def test_a_hub_that_cannot_be_reached(hub: _Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    point_to("http://127.0.0.1:9", monkeypatch)
    assert_refused("someone/tiny", "someone/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_refused("someone/tiny", "someone/tiny")
    assert hub.asked == []


def test_a_file_that_the_hub_does_not_have(hub: _Hub, model: GPT2) -> None:
    repo = hub.folder / "tiny"
    model.save_pretrained(repo)
    (repo / "model.safetensors").unlink()
    assert_refused("tiny", "tiny", "model.safetensors", "pytorch_model.bin")


# Memory

PEAK = """
import sys, torch
if len(sys.argv) > 1:
    from allformers.models.gpt2.gpt2 import GPT2
    model = GPT2.from_pretrained(sys.argv[1])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize(("kind", "bar"), [("safetensors", 1.3), ("pickle", 2.3)])
def test_loading_takes_little_more_than_the_weights(kind: str, bar: float, tmp_path: Path) -> None:
    """A pickle is mapped until its last tensor is read, and those pages count, though the system could drop them.

    The peak is VmHWM and not getrusage's: that one starts from what the process had which started this one. And glibc's
    allocator is told to give back what is freed: what it keeps by default differs by half the weights between runs.
    """
    model = GPT2(GPT2Config.gpt2_small())
    model.save_pretrained(tmp_path)
    if kind == "pickle":
        write_pickle(tmp_path, checkpoint_tensors(model))
    weights = sum(parameter.nbytes for parameter in model.parameters())

    def peak(*arguments: Any) -> int:
        command = [sys.executable, "-c", PEAK, *map(str, arguments)]
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
        return 1024 * int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)

    empty, loaded = peak(), peak(tmp_path)
    print(f"{kind}: weights {weights / 1e6:.0f} MB, torch alone {empty / 1e6:.0f} MB, peak {loaded / 1e6:.0f} MB")
    assert loaded - empty < bar * weights


@pytest.mark.parametrize(("vocab_size", "stops"), [(50257, True), (97, False)])
def test_the_reference_expects_an_end_of_text_only_where_there_is_one(vocab_size: int, stops: bool) -> None:
    """Unless told otherwise it takes token 50256 for one, and complains if there is no such token."""
    config = GPT2Config(vocab_size=vocab_size, context_length=8, embedding_dim=4, num_layers=1, num_heads=1, mlp_dim=4)
    assert (transformers.GPT2Config(**write_config(FORMAT, config)).eos_token_id == 50256) is stops
