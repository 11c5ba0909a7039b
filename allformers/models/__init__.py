"""The models, in reading order, and how a checkpoint finds its own. None is imported until it is asked for."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from allformers.checkpoints import CheckpointError, locate, read_config, read_json, require


class Entry(NamedTuple):
    """One model of the family.

    Attributes:
        name: how the command line calls it.
        module: where it is defined.
        class_name: its class there.
        model_type: what its checkpoints' `config.json` says.
    """

    name: str
    module: str
    class_name: str
    model_type: str

    def load(self) -> Any:
        """Import the model's class."""
        return getattr(import_module(self.module), self.class_name)


READING_ORDER: tuple[Entry, ...] = (Entry("gpt2", "allformers.models.gpt2.gpt2", "GPT2", "gpt2"),)
"""Each model may import earlier ones, never later ones."""


def load(name: str | Path, *, revision: str | None = None, **options: Any) -> Any:
    """Load a checkpoint of any model here; see `allformers.load`."""
    model_class, _ = load_config(name, revision)
    return model_class.from_pretrained(name, revision=revision, **options)


def load_config(name: str | Path, revision: str | None = None) -> tuple[type[Any], Any]:
    """The class and the configuration of a checkpoint, without its weights.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not of a family that is here.
    """
    given = read_json(require(locate(name, revision), "config.json", name))
    model_type = given.get("model_type")
    for entry in READING_ORDER:
        if entry.model_type == model_type:
            model_class = entry.load()
            return model_class, read_config(model_class.format, given, where=f"{name}/config.json")
    known = ", ".join(entry.model_type for entry in READING_ORDER)
    raise CheckpointError(f"{name} is a {model_type!r} model; the families here are: {known}")
