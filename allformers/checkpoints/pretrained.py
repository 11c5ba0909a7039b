"""Base classes of models: `Pretrained` loads and saves checkpoints; `Encoder` and `Classifier` are two kinds of it."""

import importlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import atomic_update, reading
from allformers.checkpoints.config_json import read_config, write_config
from allformers.checkpoints.hub import read_json, require_file, resolve_checkpoint
from allformers.checkpoints.loading import build_model, check_target, checkpoint_tensors, unwrapped
from allformers.checkpoints.quantised import dequantised
from allformers.checkpoints.tables import Format
from allformers.checkpoints.tensors import LazyTensor, in_memory, open_weights, save_tensors
from allformers.messages import shown


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
            found = _format_of(base)
            if found is not None:
                return found
        raise CheckpointError(
            f"{cls.__name__} has no tables for checkpoints: put a module `checkpoint` beside it, or extend a model"
        )

    @classmethod
    def encoder_class(cls) -> "type[Pretrained] | None":
        """The class that this one extends by a head, for checkpoints without one; None if there is none."""
        return next((base for base in cls.__mro__ if (form := _format_of(base)) is not None and not form.head), None)

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
        configuration asks for a variant of the model, it is of that subclass. Weights of a head that the model does not
        have are left out, and a warning names them.

        Args:
            name: a folder, "bundled" for the model that comes with this package, or a model's name on the Hugging
                Face hub ("gpt2", "distilgpt2"), which is then downloaded once and kept in the hub's own cache.
            revision: a branch, tag or commit on the hub.
            dtype: of the weights; if None, the widest in the checkpoint. Float8 with scales counts as bfloat16.
            device: the device of the weights; if None, the CPU.

        Raises:
            CheckpointError: the folder or the model does not exist, a file is missing, truncated or unsafe, the
                configuration is of another architecture, weights are missing, unexpected, there twice, of another size
                or quantised in a way that is not known here, or the model cannot have this dtype or device.
        """
        check_target(dtype, device)
        with reading(name):
            resolve_file = resolve_checkpoint(name, revision)
            config_dict = read_json(require_file(resolve_file, "config.json", name))
            return cls._build(config_dict, lambda: open_weights(resolve_file, name), dtype, device, name)

    @classmethod
    def from_huggingface(cls, model: Any) -> Self:
        """Copy a live transformers model, for instance a `GPT2LMHeadModel`. The two share no memory.

        It may have been compiled by `torch.compile`, or be wrapped for training on several devices.

        Raises:
            CheckpointError: it is of another architecture, or its weights do not fit.
        """
        model = unwrapped(model)
        config_dict = model.config.to_dict()
        if cls.checkpoint_format().load_via_files:
            with tempfile.TemporaryDirectory() as folder:
                model.save_pretrained(folder)
                return cls.from_pretrained(folder, device=next(model.parameters()).device)
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        tensors = {name: in_memory(tensor) for name, tensor in state.items()}
        device = next(iter(state.values())).device if state else None
        return cls._build(config_dict, lambda: tensors, None, device, type(model).__name__)

    @classmethod
    def _build(
        cls,
        config_dict: Mapping[str, Any],
        open_tensors: Callable[[], Mapping[str, LazyTensor]],
        dtype: torch.dtype | None,
        device: torch.device | str | None,
        where: str | Path,
    ) -> Self:
        """Build the model that a `config.json` and tensors describe, or the variant of it that they ask for."""
        variant = cls.variant_for(config_dict)
        form = variant.checkpoint_format()
        config = read_config(form, config_dict, where=f"{where}/config.json")
        tensors = dequantised(open_tensors(), config_dict, where=str(where))
        extra_layers = config_dict.get(form.extra_layers) if form.extra_layers else None
        if extra_layers is not None and type(extra_layers) is not int:
            raise CheckpointError(
                f"{where}/config.json: {form.extra_layers} is {shown(extra_layers)}; expected a number"
            )
        return cast(Self, build_model(variant, config, tensors, dtype, device, str(where), extra_layers or 0))

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
                quantised ones.
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


class Classifier(Encoder):
    """Base class of encoders that give one of a set of labels. They have a method `classify`."""

    def classify(self, x: Tensor) -> Tensor:
        """From the residual stream to a score for each label; each model defines it."""
        raise NotImplementedError


def _format_of(model_class: type[Any]) -> Format | None:
    """The tables of a class in the module `checkpoint` of its package, if there is such a module, and it has any.

    A module has one `FORMAT`; or, where its package has models with a head and without, `FORMATS`, by class.
    """
    package = model_class.__module__.rpartition(".")[0]
    try:
        there = bool(package) and importlib.util.find_spec(f"{package}.checkpoint") is not None
    except ModuleNotFoundError:  # no package: a module may have any name, and its file lie anywhere
        there = False
    tables = vars(importlib.import_module(f"{package}.checkpoint")) if there else {}
    found = tables["FORMATS"].get(model_class) if "FORMATS" in tables else tables.get("FORMAT")
    return found if isinstance(found, Format) else None


def write_pretrained(draft: Path, form: Format, config: Any, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint's files into a draft, from the tensors that `checkpoint_tensors` gives."""
    config_json = write_config(form, config)
    config_json["dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    (draft / "config.json").write_text(json.dumps(config_json, indent=2) + "\n", encoding="utf-8")
    save_tensors(tensors, draft / "model.safetensors")
