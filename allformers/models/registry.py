"""The models in reading order, and how a checkpoint finds its own. None is imported until it is asked for."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from allformers.checkpoints import CheckpointError
from allformers.checkpoints.atomic import reading
from allformers.checkpoints.config_json import read_config
from allformers.checkpoints.hub import read_json, require_file, resolve_checkpoint
from allformers.checkpoints.loading import has_head
from allformers.checkpoints.tables import Size
from allformers.checkpoints.tensors import open_weights
from allformers.messages import shown
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

HEADS = ("ForMaskedLM", "ForPreTraining", "LMHeadModel", "ForImageClassification")
"""The ends of the names of the reference's encoders that have the head that the models here have."""

TASKS = (
    "Model|LMHeadModel|DoubleHeadsModel|For(PreTraining|CausalLM|MaskedLM|MaskedImageModeling|QuestionAnswering|"
    "MultipleChoice|NextSentencePrediction|(Image|Sequence|Token)Classification)"
)
"""The ends of the names of the reference's classes, behind the family's."""


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
    with reading(name):
        resolve_file = resolve_checkpoint(name, revision)
        model_class = _class_of(read_json(require_file(resolve_file, "config.json", name)), name)
        encoder_class = model_class.encoder_class()
        if encoder_class is not None and not has_head(
            model_class.checkpoint_format(), open_weights(resolve_file, name)
        ):
            model_class = encoder_class
        return model_class.from_pretrained(name, revision=revision, **options)


def load_config(name: str | Path, revision: str | None = None) -> tuple[type[Any], Any]:
    """The class and the configuration of a checkpoint, without its weights.

    So it is `architectures` that says whether the model has a head; where it says nothing, it has one.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not of a family that is here.
    """
    config_dict = read_json(require_file(resolve_checkpoint(name, revision), "config.json", name))
    model_class = _class_of(config_dict, name)
    encoder_class = model_class.encoder_class()
    architectures = _architectures(config_dict)
    if encoder_class is not None and architectures and not any(one.endswith(HEADS) for one in architectures):
        model_class = encoder_class
    return model_class, read_config(model_class.checkpoint_format(), config_dict, where=f"{name}/config.json")


def _class_of(config_dict: Mapping[str, Any], name: str | Path) -> type[Any]:
    """The class, or a variant of it, of the model that a `config.json` describes."""
    model_class: type[Any] = _entry_of(config_dict, name).load().variant_for(config_dict)
    return model_class


def _architectures(config_dict: Mapping[str, Any]) -> list[str]:
    """The names of the reference's classes that a `config.json` gives; none where it has no list of names."""
    given = config_dict.get("architectures")
    return [one for one in given if isinstance(one, str)] if isinstance(given, list) else []


def _entry_of(config_dict: Mapping[str, Any], name: str | Path) -> Entry:
    """The family that `config.json` says: by `model_type`, or, in old files that have none, by `architectures`."""
    model_type, architectures = config_dict.get("model_type"), _architectures(config_dict)
    for entry in READING_ORDER:
        reference_class = re.compile(rf"{entry.class_name}({TASKS})", re.IGNORECASE)
        if model_type == entry.model_type or (
            model_type is None and any(reference_class.fullmatch(one) for one in architectures)
        ):
            return entry
    if model_type is None:
        said = f", and architectures {architectures}" if architectures else ""
        known = ", ".join(entry.class_name for entry in READING_ORDER)
        raise CheckpointError(
            f"{name}/config.json has no model_type{said}: say which model it is by its class, as in "
            f"GPT2.from_pretrained({str(name)!r}); the classes here are: {known}"
        )
    known = ", ".join(entry.model_type for entry in READING_ORDER)
    raise CheckpointError(f"{name} is a {shown(model_type)} model; the families here are: {known}")
