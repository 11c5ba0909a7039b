"""`allformers show`: a model as one file."""

from pathlib import Path
from typing import Annotated

import typer

from allformers.cli.console import find_config


def show(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model (gemma3), a preset (gemma3-1b), a folder or a hub name.")
    ],
    class_name: Annotated[
        str | None, typer.Argument(metavar="[CLASS]", help="One class of it, such as Attention.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="A file to write to instead of the screen.")] = None,
) -> None:
    """Print a model as one file: each class with all its methods, wherever in the family they are written.

    The file can be run. It has the model's state dict and gives the same logits.
    """
    from allformers.inspection.flatten import classes, flatten
    from allformers.models.registry import READING_ORDER

    entries = {entry.name: entry for entry in READING_ORDER}
    model_class = entries[name].load() if name in entries else find_config(name)[0]
    source = flatten(model_class)
    if class_name is not None:
        parts = classes(source)
        if class_name not in parts:
            raise ValueError(f"{model_class.__name__} has no class {class_name}; it has {', '.join(parts)}")
        source = parts[class_name]
    print(source, end="") if output is None else output.write_text(source, encoding="utf-8")
