"""The models in reading order, and how a checkpoint finds its own. None is imported until it is asked for."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.config_json import read_config
from allformers.checkpoints.hub import read_json, require_file, resolve_checkpoint
from allformers.checkpoints.tables import Size
from allformers.nn.config import Config


class Entry(NamedTuple):
    """One model of the family.

    Attributes:
        name: the name on the command line.
        module: the module that defines it.
        class_name: its class there.
        model_type: the `model_type` of its checkpoints' `config.json`.
    """

    name: str
    module: str
    class_name: str
    model_type: str

    def import_module(self) -> ModuleType:
        """Import the module that defines the model."""
        return importlib.import_module(self.module)

    def load(self) -> Any:
        """Import the model's class."""
        return getattr(self.import_module(), self.class_name)

    def sizes(self) -> tuple[Size, ...]:
        """The model's own sizes, published ones and small ones, from `checkpoint.py` beside it."""
        found: tuple[Size, ...] = importlib.import_module(f"{self.module.rpartition('.')[0]}.checkpoint").SIZES
        return found


READING_ORDER: tuple[Entry, ...] = (
    Entry("gpt2", "allformers.models.gpt2.gpt2", "GPT2", "gpt2"),
    Entry("llama", "allformers.models.llama.llama", "Llama", "llama"),
    Entry("mistral", "allformers.models.mistral.mistral", "Mistral", "mistral"),
    Entry("mixtral", "allformers.models.mixtral.mixtral", "Mixtral", "mixtral"),
    Entry("qwen2", "allformers.models.qwen2.qwen2", "Qwen2", "qwen2"),
    Entry("qwen3", "allformers.models.qwen3.qwen3", "Qwen3", "qwen3"),
    Entry("gemma", "allformers.models.gemma.gemma", "Gemma", "gemma"),
    Entry("gemma2", "allformers.models.gemma2.gemma2", "Gemma2", "gemma2"),
    Entry("gemma3", "allformers.models.gemma3.gemma3", "Gemma3", "gemma3_text"),
    Entry("bert", "allformers.models.bert.bert", "Bert", "bert"),
    Entry("vit", "allformers.models.vit.vit", "ViT", "vit"),
    Entry("deepseek-v3", "allformers.models.deepseek_v3.deepseek_v3", "DeepSeekV3", "deepseek_v3"),
)
"""Each model may import earlier ones, never later ones."""


def entry_for(config: Config) -> Entry:
    """The model that a configuration is for, or the one that it is a variant of.

    Raises:
        ValueError: it is of no model here.
    """
    for entry in READING_ORDER:
        if any(type(config) is one.checkpoint_format().config_class for one in _with_variants(entry)):
            return entry
    raise ValueError(f"{type(config).__name__} is the configuration of no model here")


def class_for(config: Config) -> type[Any]:
    """The class of the model that a configuration is for.

    Raises:
        ValueError: there is none here.
    """
    classes = _with_variants(entry_for(config))
    return next(one for one in classes if one.checkpoint_format().config_class is type(config))


def _with_variants(entry: Entry) -> list[type[Any]]:
    model_class = entry.load()
    return [model_class, *model_class.checkpoint_format().variants()]


def load(name: str | Path, *, revision: str | None = None, **options: Any) -> Any:
    """Load a checkpoint of any model here; see `allformers.load`."""
    config_dict = read_json(require_file(resolve_checkpoint(name, revision), "config.json", name))
    return _class_of(config_dict, name).from_pretrained(name, revision=revision, **options)


def load_config(name: str | Path, revision: str | None = None) -> tuple[type[Any], Any]:
    """The class and the configuration of a checkpoint, without its weights.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not of a family that is here.
    """
    config_dict = read_json(require_file(resolve_checkpoint(name, revision), "config.json", name))
    model_class = _class_of(config_dict, name)
    return model_class, read_config(model_class.checkpoint_format(), config_dict, where=f"{name}/config.json")


def _class_of(config_dict: Mapping[str, Any], name: str | Path) -> type[Any]:
    """The class, or a variant of it, of the model that a `config.json` describes."""
    model_type = config_dict.get("model_type")
    for entry in READING_ORDER:
        if entry.model_type == model_type:
            model_class: type[Any] = entry.load().variant_for(config_dict)
            return model_class
    known = ", ".join(entry.model_type for entry in READING_ORDER)
    raise CheckpointError(f"{name} is a {model_type!r} model; the families here are: {known}")
