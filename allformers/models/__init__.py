"""The models, in reading order. None is imported until it is asked for."""

from importlib import import_module
from typing import Any, NamedTuple


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
