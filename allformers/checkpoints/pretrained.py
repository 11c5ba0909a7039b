"""Base classes of models: `Pretrained` loads and saves checkpoints; `Encoder` and `Classifier` are two kinds of it."""

import importlib
import importlib.util
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import atomic_update, reading
from allformers.checkpoints.config_json import read_config, write_config
from allformers.checkpoints.hub import read_json, require_file, resolve_checkpoint
from allformers.checkpoints.loading import build_model, checkpoint_tensors
from allformers.checkpoints.tables import Format
from allformers.checkpoints.tensors import in_memory, open_weights, save_tensors


class Pretrained(nn.Module):
    """Base class of all models: `from_pretrained`, `from_huggingface` and `save_pretrained`, by the model's tables.

    A model has a `config`. Its tables stand beside it, in the module `checkpoint` of the same package.
    """

    config: Any

    @classmethod
    def checkpoint_format(cls) -> Format:
        """The tables of the model's checkpoints, imported when they are first asked for.

        They are those of the first class, from this one up, whose package has a module `checkpoint`; so a subclass in a
        script or a notebook has its parent's.

        Raises:
            CheckpointError: neither the class nor any that it extends has tables.
        """
        for base in cls.__mro__:
            found = _format_of(base.__module__.rpartition(".")[0])
            if found is not None:
                return found
        raise CheckpointError(
            f"{cls.__name__} has no tables for checkpoints: put a module `checkpoint` beside it, or extend a model"
        )

    @classmethod
    def is_asked_for(cls, config_json: Mapping[str, Any]) -> bool:
        """True for a variant of a model that a `config.json` asks for; see `Format.variants`."""
        return False

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Load a checkpoint.

        The model is built without memory and each tensor is read straight into its place, so that loading safetensors
        takes little more memory than the weights themselves. The model is returned in evaluation mode. Where the
        configuration asks for a variant of the model, it is of that subclass.

        Args:
            name: a folder, "bundled" for the model that comes with this package, or a model's name on the Hugging
                Face hub ("gpt2", "distilgpt2"), which is then downloaded once and kept in the hub's own cache.
            revision: a branch, tag or commit on the hub.
            dtype: of the weights; if None, the widest in the checkpoint.
            device: the device of the weights; if None, the CPU.

        Raises:
            CheckpointError: the folder or the model does not exist, a file is missing, truncated or unsafe, the
                configuration is of another architecture, or weights are missing, unexpected or of another size.
        """
        with reading(name):
            resolve_file = resolve_checkpoint(name, revision)
            config_dict = read_json(require_file(resolve_file, "config.json", name))
            variant = cls.variant_for(config_dict)
            config = read_config(variant.checkpoint_format(), config_dict, where=f"{name}/config.json")
            model = build_model(variant, config, open_weights(resolve_file, name), dtype, device, where=str(name))
            return cast(Self, model)

    @classmethod
    def from_huggingface(cls, model: Any) -> Self:
        """Copy a live transformers model, for instance a `GPT2LMHeadModel`. The two share no memory.

        Raises:
            CheckpointError: it is of another architecture, or its weights do not fit.
        """
        where = type(model).__name__
        config_dict = model.config.to_dict()
        variant = cls.variant_for(config_dict)
        form = variant.checkpoint_format()
        if form.load_via_files:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                return cls.from_pretrained(folder, device=next(model.parameters()).device)
        config = read_config(form, config_dict, where=f"{where}.config")
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        tensors = {name: in_memory(tensor) for name, tensor in state.items()}
        device = next(iter(state.values())).device if state else None
        return cast(Self, build_model(variant, config, tensors, None, device, where=where))

    @classmethod
    def variant_for(cls, config_dict: Mapping[str, Any]) -> "type[Pretrained]":
        """The class that a `config.json` asks for: this one, or a variant of it for a few published checkpoints."""
        variants = (variant for variant in cls.checkpoint_format().variants() if issubclass(variant, cls))
        return next((variant for variant in variants if variant.is_asked_for(config_dict)), cls)

    def dummy_input(self, batch: int, seq: int, device: torch.device | str) -> Tensor:
        """An input of the right shape and dtype, for tracing and summaries: token ids, all zero."""
        return torch.zeros(batch, seq, dtype=torch.long, device=device)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained` and transformers load with the same logits.

        The folder has the old checkpoint or the new one, whole, whatever fails or is killed meanwhile, and whoever else
        saves there. Its other files stay, except shards of the weights that it had before.

        Raises:
            CheckpointError: `folder` is a file, or the model's parameters are not those of its configuration, such as
                quantized ones.
            OSError: the disk is full, or the folder cannot be written to.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"cannot save to {folder}: it is a file, not a folder")
        form, tensors = self.checkpoint_format(), checkpoint_tensors(self)
        with atomic_update(folder) as draft:
            write_pretrained(draft, form, self.config, tensors)


class Encoder(Pretrained):
    """Base class of models that read in both directions and give a vector, or logits, for each position."""


class Classifier(Pretrained):
    """Base class of models that give one of a set of labels. They have a method `classify`."""

    def classify(self, x: Tensor) -> Tensor:
        """From the residual stream to a score for each label; each model defines it."""
        raise NotImplementedError


def _format_of(package: str) -> Format | None:
    """The tables in a package's module `checkpoint`, if it has such a module, and that has tables."""
    try:
        there = bool(package) and importlib.util.find_spec(f"{package}.checkpoint") is not None
    except ModuleNotFoundError:  # no package: a module may have any name, and its file lie anywhere
        there = False
    found = getattr(importlib.import_module(f"{package}.checkpoint"), "FORMAT", None) if there else None
    return found if isinstance(found, Format) else None


def write_pretrained(draft: Path, form: Format, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint's files into a draft, from the tensors that `checkpoint_tensors` gives."""
    config_json = write_config(form, config)
    config_json["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    (draft / "config.json").write_text(json.dumps(config_json, indent=2) + "\n", encoding="utf-8")
    save_tensors(tensors, draft / "model.safetensors")
