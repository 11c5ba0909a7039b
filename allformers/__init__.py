"""Transformers to read: each model in named axes, checked at run time, proven equal to the reference.

    from allformers.models.gpt2.gpt2 import GPT2, GPT2Config

Importing this package imports nothing else; `allformers.load` imports what the checkpoint at hand needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__version__ = "0.1.0"


def load(name: "str | Path", **options: Any) -> Any:
    """Load a checkpoint of any model here: its `config.json` says which class it is for.

    Args:
        name: a folder, or a model's name on the Hugging Face hub.
        options: `revision`, `dtype`, `device`, as for the model's `from_pretrained`.

    Raises:
        CheckpointError: there is no such checkpoint, it is broken, or it is of a family that is not here.
    """
    from allformers.models import load

    return load(name, **options)
